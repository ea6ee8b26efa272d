//! How long a change takes from the API server's socket to the kernel's tables, while pods come and go.
//!
//! Each change is looked for in the pinned maps; the agent's own word is printed beside. A pod that comes on this node is
//! asked for with `/v1/wait` instead, as its programs must be on its interface too: that answer has the agent ask the API
//! server once more.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use netpol_apiserver::Resource;
use netpol_tests::PodSpec;
use serde::Serialize;
use serde_json::Value;

use super::changes::Changes;
use super::ground::Ground;
use super::report::{Machine, Row, milliseconds};
use super::watch::{Kind, Made, Watch};
use super::world::{World, namespace_name};
use crate::cli::{BenchArgs, Output};

/// In milliseconds, of the slowest in a hundred.
const AIM: f64 = 10.0;
/// What is not there after so long will not come.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between one pod of this node and the next.
const PAUSE: Duration = Duration::from_millis(300);

#[derive(Debug, Serialize)]
struct Report {
    pods: usize,
    policies: usize,
    seconds: u32,
    machine: Machine,
    rows: Vec<Row>,
    /// All but pods of this node that come.
    all: Row,
    /// What every figure may be too high by: how far looks into the tables were apart.
    looks: Row,
    agent: Own,
    aim_ms: f64,
}

/// What the agent says of its own part: from the bytes of an event to the tables.
#[derive(Debug, Serialize)]
struct Own {
    batches: f64,
    mean_ms: f64,
    within_10_ms_percent: f64,
    /// The bound of its histogram below which 99 of a hundred are.
    p99_at_most_ms: f64,
}

pub(super) fn run(args: &BenchArgs) -> Result<ExitCode> {
    let world = World::asked(args, 10_000, 0)?;
    let mut ground = Ground::prepare(world, &[])?;
    let machine = Machine::now()?;
    eprintln!("starting the agent …");
    ground.start()?;
    eprintln!("changing things for {} s …", args.seconds);
    let before = histogram(&ground)?;
    let (times, looks) = measure(&mut ground, world, Duration::from_secs(args.seconds.into()))?;
    let agent = own(&before, &histogram(&ground)?)?;
    let looked: Vec<_> =
        times.iter().filter(|(kind, _)| **kind != Kind::LocalComes).flat_map(|(_, times)| times).copied().collect();
    let rows = Kind::ALL.into_iter().filter_map(|kind| Some(Row::of(kind.name(), times.get(&kind)?))).collect();
    let report = Report {
        pods: world.pods,
        policies: world.policies,
        seconds: args.seconds,
        machine,
        rows,
        all: Row::of("all but the last", &looked),
        looks: Row::of("between looks", &looks),
        agent,
        aim_ms: AIM,
    };
    match args.output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&report)?),
        Output::Text => print(&report),
    }
    Ok(ExitCode::SUCCESS)
}

fn print(report: &Report) {
    let Report { pods, policies, machine, agent, all, .. } = report;
    println!("{pods} pods, {policies} policies; {} CPUs, load {:.1} before", machine.cpus, machine.load);
    Row::head();
    report.rows.iter().for_each(Row::print);
    all.print();
    report.looks.print();
    println!(
        "the agent itself: {:.0} batches, mean {:.2} ms, {:.1} % within 10 ms, p99 at most {:.1} ms",
        agent.batches, agent.mean_ms, agent.within_10_ms_percent, agent.p99_at_most_ms
    );
    let verdict = if all.p99_ms < AIM { "below" } else { "above" };
    println!("p99 of all but the last: {:.2} ms, {verdict} the aim of {AIM} ms", all.p99_ms);
}

type Times = BTreeMap<Kind, Vec<Duration>>;

/// Times by kind, and how far looks were apart.
fn measure(ground: &mut Ground, world: World, time: Duration) -> Result<(Times, Vec<Duration>)> {
    let watch = Watch::default();
    let until = Instant::now() + time;
    let pins = ground.agent.pin_path().to_owned();
    let changes = Changes::prepare(ground, world)?;
    let Ground { agent, cluster } = ground;
    let server = agent.api_server().context("the agent has an API server")?;
    let looks = std::thread::scope(|scope| {
        let looker = scope.spawn(|| watch.look(&pins));
        let changer = scope.spawn(|| changes.make(server, &watch, until));
        let came = pods_come(agent, cluster, &watch, until);
        let changed = changer.join().expect("who makes changes does not panic");
        let begun = Instant::now();
        while watch.open() > 0 && begun.elapsed() < PATIENCE && !looker.is_finished() {
            std::thread::sleep(Duration::from_millis(10));
        }
        let missing = watch.open();
        watch.end();
        let looks = looker.join().expect("who looks does not panic")?;
        changed?;
        came?;
        ensure!(missing == 0, "{missing} changes were never seen in the tables; the agent says:\n{}", agent.log());
        Ok(looks)
    })?;
    let mut times = Times::new();
    for (Made { kind, version }, at) in watch.take() {
        let sent = server.sent_at(version).with_context(|| format!("version {version} was found, but never sent"))?;
        times.entry(kind).or_default().push(at.saturating_duration_since(sent));
    }
    Ok((times, looks))
}

/// Pods of this node come and go, one after the other.
fn pods_come(
    agent: &netpol_tests::Agent,
    cluster: &mut netpol_tests::Cluster,
    watch: &Watch,
    until: Instant,
) -> Result<()> {
    let server = agent.api_server().context("the agent has an API server")?;
    let namespace = namespace_name(0);
    for number in 0.. {
        if Instant::now() >= until {
            break;
        }
        let short = format!("late-{number}");
        let name = format!("{namespace}/{short}");
        cluster.add_pod_quietly(PodSpec::new(&name))?;
        let address = cluster.host(&name).v4();
        let object = super::world::pod_in(&namespace, &short, &netpol_tests::cluster::node_name(1), 3, address);
        let version = super::world::apply(server, object)?;
        let answer = agent.get(&format!("/v1/wait?for=pod/{name}&timeout=10s"))?;
        let at = Instant::now();
        let answer: Value = serde_json::from_str(&answer).context("reading the answer to a wait")?;
        ensure!(answer.pointer("/results/0/result").is_some_and(|result| result == "met"), "{name}: {answer}");
        watch.found(Made { kind: Kind::LocalComes, version }, at);
        cluster.remove_pod_quietly(&name)?;
        server.delete(Resource::Pods, &namespace, &short);
        std::thread::sleep(PAUSE);
    }
    Ok(())
}

/// `netpol_convergence_seconds` as it stands: buckets by bound, sum and count.
fn histogram(ground: &Ground) -> Result<BTreeMap<String, f64>> {
    let page = ground.agent.get("/metrics")?;
    let lines = page.lines().filter_map(|line| line.strip_prefix("netpol_convergence_seconds_")?.rsplit_once(' '));
    lines.map(|(name, value)| Ok((name.to_owned(), value.parse()?))).collect()
}

fn own(before: &BTreeMap<String, f64>, after: &BTreeMap<String, f64>) -> Result<Own> {
    let grew = |name: &str| after.get(name).map(|value| value - before.get(name).unwrap_or(&0.0));
    let batches = grew("count").context("the agent's metrics have no netpol_convergence_seconds_count")?;
    let sum = grew("sum").context("the agent's metrics have no netpol_convergence_seconds_sum")?;
    let bounds = after.keys().filter_map(|name| {
        let bound = name.strip_prefix("bucket{le=\"")?.strip_suffix("\"}")?;
        Some((bound.parse::<f64>().ok()?, grew(name)?))
    });
    let mut bounds: Vec<_> = bounds.collect();
    bounds.sort_by(|one, other| one.0.total_cmp(&other.0));
    let within = bounds.iter().find(|(bound, _)| (bound - 0.01).abs() < 1e-9);
    let (_, within) = within.context("the agent's histogram has no bound at 10 ms")?;
    let p99 = bounds.iter().find(|(_, count)| *count >= batches * 0.99).map_or(f64::INFINITY, |(bound, _)| *bound);
    Ok(Own {
        batches,
        mean_ms: milliseconds(Duration::from_secs_f64(sum / batches.max(1.0))),
        within_10_ms_percent: within / batches.max(1.0) * 100.0,
        p99_at_most_ms: p99 * 1e3,
    })
}
