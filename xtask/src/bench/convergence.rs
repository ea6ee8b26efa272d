//! Measures the time from when the fake API server sends a change until the kernel's maps contain the change. A
//! change adds or removes a pod, or changes a policy or labels.
//!
//! The pinned maps are polled until they contain the change. A pod that is added on this node is an exception: its
//! programs must be attached, too. So for this pod, the measured time ends when the agent has answered a request to
//! `/v1/wait`. To answer this request, the agent sends one more request to the API server. The measured time includes
//! both requests. The agent's own measurement is printed for comparison.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use netpol_apiserver::Resource;
use netpol_tests::PodSpec;
use serde::Serialize;
use serde_json::Value;

use super::changes::Changes;
use super::cluster_state::{self, ClusterSize, namespace_name};
use super::map_watcher::{ChangeKind, MapWatcher, SentChange};
use super::report::{self, Machine, Row, milliseconds};
use super::testbed::Testbed;
use crate::cli::BenchArgs;

/// Target of the 99th percentile, in milliseconds.
const TARGET: f64 = 10.0;
/// How long to wait for changes that are not in the maps yet.
const WAIT_LIMIT: Duration = Duration::from_secs(10);
/// Pause between one added pod of this node and the next.
const PAUSE: Duration = Duration::from_millis(300);

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    pods: usize,
    policies: usize,
    seconds: u32,
    machine: Machine,
    rows: Vec<Row>,
    /// All changes except added pods of this node.
    all: Row,
    /// Times between two polls of the maps. A measured time may be too long by this much.
    poll_intervals: Row,
    agent: AgentMeasurement,
    target_ms: f64,
}

/// The agent's own measurement: from the arrival of a batch of changes until the maps contain it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct AgentMeasurement {
    batches: f64,
    mean_ms: f64,
    within_10_ms_percent: f64,
    /// Upper bound of the histogram bucket that has the 99th percentile.
    p99_at_most_ms: f64,
}

pub(super) fn run(args: &BenchArgs) -> Result<ExitCode> {
    let cluster_size = ClusterSize::from_args(args, 10_000, 0)?;
    let mut testbed = Testbed::prepare(cluster_size, &[])?;
    let machine = Machine::now()?;
    eprintln!("starting the agent …");
    testbed.start()?;
    eprintln!("making changes for {} s …", args.seconds);
    let before = histogram(&testbed)?;
    let (times, intervals) = measure(&mut testbed, cluster_size, Duration::from_secs(args.seconds.into()))?;
    let agent = agent_measurement(&before, &histogram(&testbed)?)?;
    let polled: Vec<_> = times
        .iter()
        .filter(|(kind, _)| **kind != ChangeKind::LocalPodAdded)
        .flat_map(|(_, times)| times)
        .copied()
        .collect();
    let rows = ChangeKind::ALL.into_iter().filter_map(|kind| Some(Row::of(kind.name(), times.get(&kind)?))).collect();
    let report = Report {
        pods: cluster_size.pods,
        policies: cluster_size.policies,
        seconds: args.seconds,
        machine,
        rows,
        all: Row::of("all changes except added local pods", &polled),
        poll_intervals: Row::of("between polls", &intervals),
        agent,
        target_ms: TARGET,
    };
    report::print(args.output, &report, print_report)
}

fn print_report(report: &Report) {
    let Report { pods, policies, machine, agent, all, .. } = report;
    println!(
        "{pods} pods, {policies} policies; {} CPUs, load {:.1} before the measurement",
        machine.cpus, machine.load
    );
    Row::print_header();
    report.rows.iter().for_each(Row::print);
    all.print();
    report.poll_intervals.print();
    println!(
        "measured by the agent: {:.0} batches, mean {:.2} ms, {:.1} % within 10 ms, p99 at most {:.1} ms",
        agent.batches, agent.mean_ms, agent.within_10_ms_percent, agent.p99_at_most_ms
    );
    let verdict = if all.p99_ms < TARGET { "below" } else { "above" };
    println!("p99 of all changes except added local pods: {:.2} ms, {verdict} the target of {TARGET} ms", all.p99_ms);
}

/// The measured times, for each kind of change.
type Times = BTreeMap<ChangeKind, Vec<Duration>>;

/// Makes changes for this duration. Returns how long each took to reach the maps, and the times between polls.
fn measure(testbed: &mut Testbed, cluster_size: ClusterSize, duration: Duration) -> Result<(Times, Vec<Duration>)> {
    let watcher = MapWatcher::default();
    let until = Instant::now() + duration;
    let pins = testbed.agent.pin_path().to_owned();
    let changes = Changes::prepare(testbed, cluster_size)?;
    let Testbed { agent, cluster } = testbed;
    let server = agent.api_server().context("the agent does not use an API server")?;
    let intervals = std::thread::scope(|scope| {
        let poller = scope.spawn(|| watcher.poll(&pins));
        let change_maker = scope.spawn(|| changes.run(server, &watcher, until));
        let added = add_local_pods(agent, cluster, &watcher, until);
        let changed = change_maker.join().expect("the thread that makes changes panicked");
        let start = Instant::now();
        while watcher.pending_count() > 0 && start.elapsed() < WAIT_LIMIT && !poller.is_finished() {
            std::thread::sleep(Duration::from_millis(10));
        }
        let missing = watcher.pending_count();
        watcher.stop();
        let intervals = poller.join().expect("the thread that polls the maps panicked")?;
        changed?;
        added?;
        ensure!(missing == 0, "{missing} changes did not reach the BPF maps. The agent's log:\n{}", agent.log());
        Ok(intervals)
    })?;
    let mut times = Times::new();
    for (SentChange { kind, version }, at) in watcher.take_found() {
        let sent = server
            .sent_at(version)
            .with_context(|| format!("the fake API server did not send resource version {version}"))?;
        times.entry(kind).or_default().push(at.saturating_duration_since(sent));
    }
    Ok((times, intervals))
}

/// Adds and removes pods of this node, one after the other. Records when the agent enforces the policies of each pod.
fn add_local_pods(
    agent: &netpol_tests::Agent,
    cluster: &mut netpol_tests::Cluster,
    watcher: &MapWatcher,
    until: Instant,
) -> Result<()> {
    let server = agent.api_server().context("the agent does not use an API server")?;
    let namespace = namespace_name(0);
    for number in 0.. {
        if Instant::now() >= until {
            break;
        }
        let short_name = format!("late-{number}");
        let name = format!("{namespace}/{short_name}");
        cluster.add_pod_without_manifest(PodSpec::new(&name))?;
        let address = cluster.host(&name).v4();
        let object = cluster_state::pod_in(&namespace, &short_name, &netpol_tests::cluster::node_name(1), 3, address);
        let version = cluster_state::apply(server, object)?;
        let response = agent.get(&format!("/v1/wait?for=pod/{name}&timeout=10s"))?;
        let at = Instant::now();
        let response: Value = serde_json::from_str(&response).context("parsing the response of /v1/wait")?;
        ensure!(response.pointer("/results/0/result").is_some_and(|result| result == "met"), "{name}: {response}");
        watcher.add_found(SentChange { kind: ChangeKind::LocalPodAdded, version }, at);
        cluster.remove_pod_keep_manifest(&name)?;
        server.delete(Resource::Pods, &namespace, &short_name);
        std::thread::sleep(PAUSE);
    }
    Ok(())
}

/// Returns the current `netpol_convergence_seconds`: its sum, its count, and its buckets by bound.
fn histogram(testbed: &Testbed) -> Result<BTreeMap<String, f64>> {
    let metrics = testbed.agent.get("/metrics")?;
    let lines = metrics.lines().filter_map(|line| line.strip_prefix("netpol_convergence_seconds_")?.rsplit_once(' '));
    lines.map(|(name, value)| Ok((name.to_owned(), value.parse()?))).collect()
}

/// Returns the agent's measurement between two readings of [`histogram`].
fn agent_measurement(before: &BTreeMap<String, f64>, after: &BTreeMap<String, f64>) -> Result<AgentMeasurement> {
    let increase = |name: &str| after.get(name).map(|value| value - before.get(name).unwrap_or(&0.0));
    let batches = increase("count").context("the agent's metrics have no netpol_convergence_seconds_count")?;
    let sum = increase("sum").context("the agent's metrics have no netpol_convergence_seconds_sum")?;
    let bounds = after.keys().filter_map(|name| {
        let bound = name.strip_prefix("bucket{le=\"")?.strip_suffix("\"}")?;
        Some((bound.parse::<f64>().ok()?, increase(name)?))
    });
    let mut bounds: Vec<_> = bounds.collect();
    bounds.sort_by(|one, other| one.0.total_cmp(&other.0));
    let within = bounds.iter().find(|(bound, _)| (bound - 0.01).abs() < 1e-9);
    let (_, within) = within.context("the agent's histogram has no bound at 10 ms")?;
    let p99 = bounds.iter().find(|(_, count)| *count >= batches * 0.99).map_or(f64::INFINITY, |(bound, _)| *bound);
    Ok(AgentMeasurement {
        batches,
        mean_ms: milliseconds(Duration::from_secs_f64(sum / batches.max(1.0))),
        within_10_ms_percent: within / batches.max(1.0) * 100.0,
        p99_at_most_ms: p99 * 1e3,
    })
}
