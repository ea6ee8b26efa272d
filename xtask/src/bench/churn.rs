//! Pod churn: adds and removes pods on a node, at several rates and for several values of the agent's option `--attach`
//! (how eBPF programs are attached). Counts the pods that are removed before their policies are enforced.

use std::collections::{BTreeMap, VecDeque};
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use netpol_apiserver::Resource;
use netpol_tests::PodSlots;
use netpol_tests::cluster::node_name;
use serde::Serialize;

use super::cluster_state::{ClusterSize, apply, namespace_name, pod_in};
use super::report::{self, Machine, Row};
use super::testbed::Testbed;
use crate::cli::BenchArgs;

/// How many pods are added per second.
const RATES: [u32; 3] = [25, 50, 100];
/// Values of `--attach`. The first is the default.
const ATTACH: [&str; 2] = ["auto", "tcx"];
/// How many groups of pods are removed per second, the oldest group first. A group has all pods that were added in a
/// fifth of a second. A pod exists for about a second.
const REMOVALS_PER_SECOND: u32 = 5;
/// Number of prepared network namespaces: one for each pod that exists at the highest rate, and some more.
const SLOTS: u8 = 120;
/// How long to wait for pods that are not enforced yet.
const WAIT_LIMIT: Duration = Duration::from_secs(10);
/// Seconds in a day. Only the times of day in the agent's log are used, without the dates.
const DAY: f64 = 86_400.0;

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    /// Number of pods on other nodes.
    pods: usize,
    policies: usize,
    /// Duration of each run.
    seconds: u32,
    machine: Machine,
    runs: Vec<Run>,
}

/// Result at one rate, with one value of `--attach`.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Run {
    attach: &'static str,
    requested_per_second: u32,
    /// Pods per second that were actually created. The machine may not reach the requested rate, because the kernel
    /// creates and removes interfaces under one lock.
    created_per_second: f64,
    /// Number of pods that were created.
    pods: usize,
    /// Number of pods that were removed before their policies were enforced.
    missed: usize,
    /// Time from just before a pod is added to the API server until the agent logs that the pod is enforced.
    times: Row,
}

pub(super) fn run(args: &BenchArgs) -> Result<ExitCode> {
    let cluster_size = ClusterSize::from_args(args, 10_000, 0)?;
    let mut runs = Vec::new();
    let mut machine = None;
    for attach in ATTACH {
        let mut testbed = Testbed::prepare(cluster_size, &["--attach", attach])?;
        if machine.is_none() {
            machine = Some(Machine::now()?);
        }
        eprintln!("starting the agent with --attach {attach} …");
        testbed.start()?;
        let mut slots = PodSlots::prepare(&testbed.cluster, SLOTS)?;
        for rate in RATES {
            eprintln!("adding and removing {rate} pods a second for {} s …", args.seconds);
            runs.push(measure_at_rate(&testbed, &mut slots, attach, rate, Duration::from_secs(args.seconds.into()))?);
        }
    }
    let machine = machine.context("no way of attaching was measured")?;
    let report =
        Report { pods: cluster_size.pods, policies: cluster_size.policies, seconds: args.seconds, machine, runs };
    report::print(args.output, &report, print_report)
}

fn print_report(report: &Report) {
    let Report { pods, policies, machine, .. } = report;
    println!(
        "{pods} pods, {policies} policies; {} CPUs, load {:.1} before the measurement",
        machine.cpus, machine.load
    );
    println!(
        "{:<8}{:>7}{:>7}{:>7}{:>8}  {:>8}{:>8}{:>8}{:>8} ms until enforced",
        "attach", "target", "actual", "pods", "missed", "median", "p95", "p99", "max"
    );
    for Run { attach, requested_per_second, created_per_second, pods, missed, times } in &report.runs {
        let Row { median_ms, p95_ms, p99_ms, max_ms, .. } = times;
        println!(
            "{attach:<8}{requested_per_second:>5}/s{created_per_second:>5.0}/s{pods:>7}{missed:>8}  \
             {median_ms:>8.1}{p95_ms:>8.1}{p99_ms:>8.1}{max_ms:>8.1}"
        );
    }
}

fn measure_at_rate(
    testbed: &Testbed,
    slots: &mut PodSlots,
    attach: &'static str,
    rate: u32,
    duration: Duration,
) -> Result<Run> {
    let server = testbed.server()?;
    let namespace = namespace_name(0);
    let mut created_at = BTreeMap::new();
    let mut present = VecDeque::new();
    let start = Instant::now();
    let group_size = rate / REMOVALS_PER_SECOND;
    // Removes the oldest group as a kubelet does: first the pods' network, then the Pod objects.
    let remove_oldest = |slots: &mut PodSlots, present: &mut VecDeque<(u32, String)>| -> Result<()> {
        let Some((oldest, _)) = present.front().cloned() else { return Ok(()) };
        slots.detach_group(oldest)?;
        while let Some((_, name)) = present.pop_front_if(|(group, _)| *group == oldest) {
            server.delete(Resource::Pods, &namespace, &name);
        }
        Ok(())
    };
    for number in 0_u32.. {
        let due = start + Duration::from_secs(1) * number / rate;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        if start.elapsed() >= duration {
            break;
        }
        if number % group_size == 0 && present.len() >= usize::try_from(rate)? {
            remove_oldest(slots, &mut present)?;
        }
        let slot = usize::try_from(number)? % slots.count();
        let name = format!("{attach}-{rate}-{number}");
        // `group` is also the interface group of the pod's veth (as in `ip link set … group`). By default, all
        // interfaces are in group 0, so the pods' groups start at 1.
        let group = number / group_size + 1;
        let address = slots.attach(slot, &format!("swift{number}"), group)?;
        let at = time_of_day()?;
        // All pods have the labels of the same app, number 3.
        apply(server, pod_in(&namespace, &name, &node_name(1), 3, address))?;
        created_at.insert(name.clone(), at);
        present.push_back((group, name));
    }
    let elapsed = start.elapsed();
    let wait_start = Instant::now();
    while testbed.pods_waiting()? > 0 && wait_start.elapsed() < WAIT_LIMIT {
        std::thread::sleep(Duration::from_millis(50));
    }
    while !present.is_empty() {
        remove_oldest(slots, &mut present)?;
    }
    let times = enforcement_times(&testbed.agent.log(), &namespace, &created_at);
    Ok(Run {
        attach,
        requested_per_second: rate,
        created_per_second: f64::from(u32::try_from(created_at.len())?) / elapsed.as_secs_f64(),
        pods: created_at.len(),
        missed: created_at.len() - times.len(),
        times: Row::of("enforced", &times),
    })
}

/// Returns the time from the creation of a pod until it was enforced, for each pod that the agent's log reports as
/// enforced.
fn enforcement_times(log: &str, namespace: &str, created_at: &BTreeMap<String, f64>) -> Vec<Duration> {
    let pods = log.lines().filter_map(|line| {
        let (at, rest) = line.split_once('Z')?;
        let (_, rest) = rest.split_once(" enforced pod=")?;
        let (pod_namespace, name) = rest.split(' ').next()?.split_once('/')?;
        let created_at = created_at.get(name).filter(|_| pod_namespace == namespace)?;
        let mut clock = at.split_once('T')?.1.split(':').map(str::parse::<f64>);
        let (hours, minutes, seconds) = (clock.next()?.ok()?, clock.next()?.ok()?, clock.next()?.ok()?);
        Some(Duration::from_secs_f64((hours * 3600.0 + minutes * 60.0 + seconds - created_at).rem_euclid(DAY)))
    });
    pods.collect()
}

/// Returns the seconds since midnight, UTC.
fn time_of_day() -> Result<f64> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).context("reading the clock")?;
    Ok(now.as_secs_f64().rem_euclid(DAY))
}

#[cfg(test)]
mod tests {
    use super::super::report::milliseconds;
    use super::*;

    #[test]
    fn enforcement_times_are_read_from_the_log() {
        let log = "2026-11-25T00:01:00.250000Z  INFO enforced pod=ns-0/a interface=\"swift0\" packets=0\n\
                   2026-11-25T00:01:00.300000Z  INFO detached pod=ns-0/a interface=7\n\
                   2026-11-25T00:01:00.400000Z  INFO enforced pod=ns-1/b interface=\"swift1\" packets=0\n";
        let created_at = BTreeMap::from([("a".to_owned(), 60.0), ("b".to_owned(), 60.0)]);
        let times: Vec<_> = enforcement_times(log, "ns-0", &created_at)
            .into_iter()
            .map(|duration| format!("{}", milliseconds(duration).round()))
            .collect();
        assert_eq!(times, ["250"], "b is in another namespace");
    }
}
