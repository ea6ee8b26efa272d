//! What the agent needs for a big cluster.

use std::process::ExitCode;

use anyhow::{Result, ensure};
use netpol_apiserver::{Resource, StreamingLists};
use serde::Serialize;

use super::ground::{Ground, LOCAL_NAMESPACES};
use super::report::Machine;
use super::world::{APPS, World};
use crate::cli::{BenchArgs, Output};

/// MB, a million bytes each.
const AIM: f64 = 200.0;

/// An agent that got the cluster in one way. Megabytes are a million bytes.
#[derive(Debug, Serialize)]
struct Line {
    list: &'static str,
    pods: usize,
    policies: usize,
    services: usize,
    /// From its start until everything was enforced.
    ready_s: f64,
    /// Resident a few seconds after.
    resident_mb: f64,
    /// Of it, what is not part of a file.
    anonymous_mb: f64,
    /// The most that was resident at any time.
    peak_mb: f64,
    machine: Machine,
}

pub(super) fn run(args: &BenchArgs) -> Result<ExitCode> {
    let world = World::asked(args, 100_000, 5_000)?;
    let mut ground = Ground::prepare(world, &[])?;
    let mut lines = Vec::new();
    for (list, streaming) in [("streamed", StreamingLists::Served), ("in pages", StreamingLists::Forbidden)] {
        ground.server()?.set_streaming_lists(streaming);
        let machine = Machine::now()?;
        eprintln!("starting the agent, its objects {list} …");
        let ready = ground.start()?;
        let pods = world.pods + LOCAL_NAMESPACES * APPS;
        for (resource, wanted) in [(Resource::Pods, pods), (Resource::Services, world.services)] {
            let known = ground.known(resource)?;
            ensure!(known == wanted, "the agent is ready and knows {known} {} of {wanted}", resource.plural());
        }
        #[expect(clippy::cast_precision_loss, reason = "kilobytes of one process")]
        let megabytes = |name: &str| Ok::<_, anyhow::Error>(ground.agent.memory_kib(name)? as f64 * 1024.0 / 1e6);
        lines.push(Line {
            list,
            pods,
            policies: world.policies,
            services: world.services,
            ready_s: ready.as_secs_f64(),
            resident_mb: megabytes("VmRSS")?,
            anonymous_mb: megabytes("RssAnon")?,
            peak_mb: megabytes("VmHWM")?,
            machine,
        });
    }
    match args.output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&lines)?),
        Output::Text => {
            println!("{} pods, {} policies, {} Services", lines[0].pods, world.policies, world.services);
            println!(
                "{:<12}{:>10}{:>14}{:>14}{:>10}",
                "objects", "ready, s", "resident, MB", "anonymous, MB", "peak, MB"
            );
            for line in &lines {
                let Line { list, ready_s, resident_mb, anonymous_mb, peak_mb, .. } = line;
                let verdict = if *peak_mb < AIM { "below the aim of 200" } else { "above the aim of 200" };
                println!("{list:<12}{ready_s:>10.1}{resident_mb:>14.0}{anonymous_mb:>14.0}{peak_mb:>10.0}  {verdict}");
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}
