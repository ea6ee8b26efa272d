//! Measures the agent's memory for a large cluster.

use std::process::ExitCode;

use anyhow::{Result, ensure};
use netpol_apiserver::{Resource, StreamingLists};
use serde::Serialize;

use super::cluster_state::{APPS, ClusterSize};
use super::report::{self, Machine};
use super::testbed::{LOCAL_NAMESPACES, Testbed};
use crate::cli::BenchArgs;

/// The peak of the resident memory should be below this number of megabytes (a million bytes).
const TARGET_MB: f64 = 200.0;

/// Result for one way in which the agent lists objects. A megabyte is a million bytes.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Line {
    /// `streamed` (a watch with `sendInitialEvents`) or `in pages`.
    list: &'static str,
    pods: usize,
    policies: usize,
    services: usize,
    /// From the agent's start until everything is enforced.
    ready_seconds: f64,
    /// Resident memory a few seconds after everything is enforced.
    resident_mb: f64,
    /// Resident memory that no file backs.
    anonymous_mb: f64,
    /// Peak of the resident memory.
    peak_mb: f64,
    machine: Machine,
}

pub(super) fn run(args: &BenchArgs) -> Result<ExitCode> {
    let cluster_size = ClusterSize::from_args(args, 100_000, 5_000)?;
    let mut testbed = Testbed::prepare(cluster_size, &[])?;
    let mut lines = Vec::new();
    for (list, streaming) in [("streamed", StreamingLists::Served), ("in pages", StreamingLists::Forbidden)] {
        testbed.server()?.set_streaming_lists(streaming);
        let machine = Machine::now()?;
        eprintln!("starting the agent, objects {list} …");
        let ready = testbed.start()?;
        // The pods of other nodes, and those of the agent's node.
        let pods = cluster_size.pods + LOCAL_NAMESPACES * APPS;
        for (resource, expected) in [(Resource::Pods, pods), (Resource::Services, cluster_size.services)] {
            let found = testbed.objects(resource)?;
            ensure!(found == expected, "the agent is ready, but has {found} of {expected} {}", resource.plural());
        }
        #[expect(clippy::cast_precision_loss, reason = "kilobytes of one process")]
        let megabytes = |name: &str| Ok::<_, anyhow::Error>(testbed.agent.memory_kib(name)? as f64 * 1024.0 / 1e6);
        lines.push(Line {
            list,
            pods,
            policies: cluster_size.policies,
            services: cluster_size.services,
            ready_seconds: ready.as_secs_f64(),
            resident_mb: megabytes("VmRSS")?,
            anonymous_mb: megabytes("RssAnon")?,
            peak_mb: megabytes("VmHWM")?,
            machine,
        });
    }
    report::print(args.output, lines.as_slice(), |lines| {
        println!("{} pods, {} policies, {} Services", lines[0].pods, cluster_size.policies, cluster_size.services);
        println!("{:<12}{:>10}{:>14}{:>14}{:>10}", "objects", "ready, s", "resident, MB", "anonymous, MB", "peak, MB");
        for line in lines {
            let Line { list, ready_seconds, resident_mb, anonymous_mb, peak_mb, .. } = line;
            let comparison = if *peak_mb < TARGET_MB { "below" } else { "above" };
            println!(
                "{list:<12}{ready_seconds:>10.1}{resident_mb:>14.0}{anonymous_mb:>14.0}{peak_mb:>10.0}  {comparison} the \
                 target of {TARGET_MB}"
            );
        }
    })
}
