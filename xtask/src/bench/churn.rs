//! How many pods a second may come and go on a node before the agent falls behind, with either way of attaching.

use std::collections::{BTreeMap, VecDeque};
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use netpol_apiserver::Resource;
use netpol_tests::Berths;
use netpol_tests::cluster::node_name;
use serde::Serialize;

use super::ground::Ground;
use super::report::{Machine, Row};
use super::world::{World, apply, namespace_name, pod_in};
use crate::cli::{BenchArgs, Output};

/// Pods a second.
const RATES: [u32; 3] = [25, 50, 100];
/// How programs are put on interfaces; the first is the default.
const ATTACH: [&str; 2] = ["auto", "tcx"];
/// How often in a second some go, those that came a second before.
const GOINGS: u32 = 5;
/// One for each that is there at the highest rate, and some more.
const BERTHS: u8 = 120;
/// What is not enforced after so long will not be.
const PATIENCE: Duration = Duration::from_secs(10);
/// Of a day: the agent's log has the time of day.
const DAY: f64 = 86_400.0;

#[derive(Debug, Serialize)]
struct Report {
    pods: usize,
    policies: usize,
    seconds: u32,
    machine: Machine,
    runs: Vec<Run>,
}

/// At one rate.
#[derive(Debug, Serialize)]
struct Run {
    attach: &'static str,
    asked_a_second: u32,
    /// How many the machine made: the kernel makes and removes interfaces under the same lock.
    made_a_second: f64,
    came: usize,
    /// Never enforced: they went before.
    missed: usize,
    /// From the moment the API server was told of a pod to the moment the agent says that it is enforced.
    times: Row,
}

pub(super) fn run(args: &BenchArgs) -> Result<ExitCode> {
    let world = World::asked(args, 10_000, 0)?;
    let mut runs = Vec::new();
    let mut machine = None;
    for attach in ATTACH {
        let mut ground = Ground::prepare(world, &["--attach", attach])?;
        if machine.is_none() {
            machine = Some(Machine::now()?);
        }
        eprintln!("starting the agent with --attach {attach} …");
        ground.start()?;
        let mut berths = Berths::prepare(&ground.cluster, BERTHS)?;
        for rate in RATES {
            eprintln!("{rate} pods a second come and go for {} s …", args.seconds);
            runs.push(at_rate(&ground, &mut berths, attach, rate, Duration::from_secs(args.seconds.into()))?);
        }
    }
    let machine = machine.context("there is a way to attach")?;
    let report = Report { pods: world.pods, policies: world.policies, seconds: args.seconds, machine, runs };
    match args.output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&report)?),
        Output::Text => print(&report),
    }
    Ok(ExitCode::SUCCESS)
}

fn print(report: &Report) {
    let Report { pods, policies, machine, .. } = report;
    println!("{pods} pods, {policies} policies; {} CPUs, load {:.1} before", machine.cpus, machine.load);
    println!(
        "{:<8}{:>7}{:>7}{:>7}{:>8}  {:>8}{:>8}{:>8}{:>8} ms until enforced",
        "attach", "asked", "made", "came", "missed", "median", "p95", "p99", "max"
    );
    for Run { attach, asked_a_second, made_a_second, came, missed, times } in &report.runs {
        let Row { median_ms, p95_ms, p99_ms, max_ms, .. } = times;
        println!(
            "{attach:<8}{asked_a_second:>5}/s{made_a_second:>5.0}/s{came:>7}{missed:>8}  \
             {median_ms:>8.1}{p95_ms:>8.1}{p99_ms:>8.1}{max_ms:>8.1}"
        );
    }
}

fn at_rate(ground: &Ground, berths: &mut Berths, attach: &'static str, rate: u32, time: Duration) -> Result<Run> {
    let server = ground.server()?;
    let namespace = namespace_name(0);
    let mut told = BTreeMap::new();
    let mut alive = VecDeque::new();
    let begun = Instant::now();
    let together = rate / GOINGS;
    // As a kubelet has them go: first the network, then the objects.
    let go = |berths: &mut Berths, alive: &mut VecDeque<(u32, String)>| -> Result<()> {
        let Some((oldest, _)) = alive.front().cloned() else { return Ok(()) };
        berths.go(oldest)?;
        while let Some((_, name)) = alive.pop_front_if(|(group, _)| *group == oldest) {
            server.delete(Resource::Pods, &namespace, &name);
        }
        Ok(())
    };
    for number in 0_u32.. {
        let due = begun + Duration::from_secs(1) * number / rate;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        if begun.elapsed() >= time {
            break;
        }
        if number % together == 0 && alive.len() >= usize::try_from(rate)? {
            go(berths, &mut alive)?;
        }
        let berth = usize::try_from(number)? % berths.count();
        let name = format!("{attach}-{rate}-{number}");
        // The default group is 0.
        let group = number / together + 1;
        let address = berths.come(berth, &format!("swift{number}"), group)?;
        let at = time_of_day()?;
        apply(server, pod_in(&namespace, &name, &node_name(1), 3, address))?;
        told.insert(name.clone(), at);
        alive.push_back((group, name));
    }
    let took = begun.elapsed();
    let last = Instant::now();
    while ground.pods_waiting()? > 0 && last.elapsed() < PATIENCE {
        std::thread::sleep(Duration::from_millis(50));
    }
    while !alive.is_empty() {
        go(berths, &mut alive)?;
    }
    let times = enforced(&ground.agent.log(), &namespace, &told);
    Ok(Run {
        attach,
        asked_a_second: rate,
        made_a_second: f64::from(u32::try_from(told.len())?) / took.as_secs_f64(),
        came: told.len(),
        missed: told.len() - times.len(),
        times: Row::of("enforced", &times),
    })
}

/// How long each pod of these took, by the agent's log.
fn enforced(log: &str, namespace: &str, told: &BTreeMap<String, f64>) -> Vec<Duration> {
    let pods = log.lines().filter_map(|line| {
        let (at, rest) = line.split_once('Z')?;
        let (_, rest) = rest.split_once(" enforced pod=")?;
        let (home, name) = rest.split(' ').next()?.split_once('/')?;
        let told = told.get(name).filter(|_| home == namespace)?;
        let mut clock = at.split_once('T')?.1.split(':').map(str::parse::<f64>);
        let (hours, minutes, seconds) = (clock.next()?.ok()?, clock.next()?.ok()?, clock.next()?.ok()?);
        Some(Duration::from_secs_f64((hours * 3600.0 + minutes * 60.0 + seconds - told).rem_euclid(DAY)))
    });
    pods.collect()
}

/// Seconds since midnight, UTC.
fn time_of_day() -> Result<f64> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).context("reading the clock")?;
    Ok(now.as_secs_f64().rem_euclid(DAY))
}

#[cfg(test)]
mod tests {
    use super::super::report::milliseconds;
    use super::*;

    #[test]
    fn the_log_tells_how_long_pods_took() {
        let log = "2026-11-25T00:01:00.250000Z  INFO enforced pod=ns-0/a interface=\"swift0\" packets=0\n\
                   2026-11-25T00:01:00.300000Z  INFO let go pod=ns-0/a interface=7\n\
                   2026-11-25T00:01:00.400000Z  INFO enforced pod=ns-1/b interface=\"swift1\" packets=0\n";
        let told = BTreeMap::from([("a".to_owned(), 60.0), ("b".to_owned(), 60.0)]);
        let times: Vec<_> = enforced(log, "ns-0", &told).into_iter().map(|time| milliseconds(time).round()).collect();
        assert_eq!(times.iter().map(|time| format!("{time}")).collect::<Vec<_>>(), ["250"], "b is another namespace's");
    }
}
