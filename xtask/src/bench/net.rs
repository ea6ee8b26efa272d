//! Cost of enforcement for real traffic between two pods of a node. Compares no filter, an empty program, netpol, and
//! packet filters with similar rules. Runs several rounds in shuffled order and prints medians.

use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use netpol_tests::cluster::{Topology, node_name};
use netpol_tests::program::Programs;
use netpol_tests::runs::Runs;
use netpol_tests::traffic::Load;
use netpol_tests::{Agent, Cluster, policy};
use serde::Serialize;

use crate::cli::{BenchArgs, Output};

const ROUNDS: usize = 5;
/// Number of policies or rules that do not match the traffic, in setups with 1,000 policies or rules.
const OTHER_RULES: usize = 998;
const CLIENT: &str = "bench/client";
const SERVER: &str = "bench/server";
/// netpol's programs at a pod's veth, by the names of their pins.
const PROGRAMS: [&str; 2] = ["netpol_ingress", "netpol_egress"];

/// What filters the traffic between the two pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Setup {
    Nothing,
    EmptyProgram,
    FewPolicies,
    ManyPolicies,
    Nftables,
    Iptables,
}

impl Setup {
    const ALL: [Self; 6] =
        [Self::Nothing, Self::EmptyProgram, Self::FewPolicies, Self::ManyPolicies, Self::Nftables, Self::Iptables];

    const fn name(self) -> &'static str {
        match self {
            Self::Nothing => "no filter",
            Self::EmptyProgram => "empty program, 4 hooks",
            Self::FewPolicies => "netpol, 2 policies",
            Self::ManyPolicies => "netpol, 1,000 policies",
            Self::Nftables => "nftables, verdict map",
            Self::Iptables => "iptables, 1,000 rules",
        }
    }
}

/// Result for one setup.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Line {
    setup: &'static str,
    gigabits_per_second: f64,
    requests_per_second: f64,
    connections_per_second: f64,
    /// Mean nanoseconds of one run of the ingress program for established flows, minus those of the empty program.
    ingress_ns: Option<f64>,
    /// The same for the egress program.
    egress_ns: Option<f64>,
    /// Microseconds of all program runs for one connection, minus those of as many runs of the empty program.
    connection_us: Option<f64>,
}

/// The programs that [`install`] has attached for a setup. Rules of nftables and iptables are not part of this type:
/// they are in the node's network namespace until [`remove`] deletes them.
enum Installed {
    NoPrograms,
    EmptyProgram(Box<Programs>),
    Agent(Box<Agent>),
}

/// Runs the benchmark.
pub(super) fn run(args: &BenchArgs) -> Result<ExitCode> {
    let cluster = Cluster::builder()
        .topology(Topology::Routed)
        .pods(&[(CLIENT, "app=client"), (SERVER, "app=server")])
        .serve(&[])
        .build()?;
    cluster.host(CLIENT).netns().sysctl(&[("ipv4/ip_local_port_range", "10000 65000")])?;
    // A round has 24 loads: three loads for each of the six setups, and two more for each of the three setups with
    // programs. With the divisor 25, the traffic of a round takes a little less than `seconds`.
    let duration = Duration::from_millis(u64::from(args.seconds) * 1000 / 25);
    let mut rates = vec![[const { Vec::new() }; Load::ALL.len()]; Setup::ALL.len()];
    let mut costs = vec![Vec::new(); Setup::ALL.len()];
    let mut random = Random::new();
    for round in 0..ROUNDS {
        let mut order = Setup::ALL;
        random.shuffle(&mut order);
        for setup in order {
            eprintln!("round {} of {ROUNDS}: {} …", round + 1, setup.name());
            let mut installed = install(&cluster, setup)?;
            let index = Setup::ALL.iter().position(|other| *other == setup).context("unknown setup")?;
            for (load, rates) in Load::ALL.into_iter().zip(&mut rates[index]) {
                let (count, elapsed) = load.run(cluster.host(CLIENT), cluster.host(SERVER), duration)?;
                rates.push(rate(load, count, elapsed));
            }
            costs[index].extend(cost(&cluster, &installed, duration)?);
            remove(&cluster, setup, &mut installed)?;
        }
    }
    let empty = median_cost(&costs[Setup::EmptyProgram as usize]).unwrap_or_default();
    let lines: Vec<Line> = Setup::ALL
        .iter()
        .map(|setup| line(*setup, &mut rates[*setup as usize], &costs[*setup as usize], empty))
        .collect();
    print(&lines, args.output)?;
    Ok(ExitCode::SUCCESS)
}

fn line(setup: Setup, rates: &mut [Vec<f64>; 3], costs: &[Cost], empty: Cost) -> Line {
    let [gigabits_per_second, requests_per_second, connections_per_second] =
        rates.each_mut().map(|rates| median(rates));
    let cost = median_cost(costs).filter(|_| setup != Setup::EmptyProgram);
    Line {
        setup: setup.name(),
        gigabits_per_second,
        requests_per_second,
        connections_per_second,
        ingress_ns: cost.map(|cost| cost.ingress_ns - empty.ingress_ns),
        egress_ns: cost.map(|cost| cost.egress_ns - empty.egress_ns),
        connection_us: cost.map(|cost| (cost.connection_ns - cost.runs * empty.ingress_ns) / 1000.0),
    }
}

fn print(lines: &[Line], output: Output) -> Result<()> {
    if output == Output::Json {
        println!("{}", serde_json::to_string_pretty(lines)?);
        return Ok(());
    }
    println!(
        "{:<26}{:>8}{:>7}{:>12}{:>7}{:>15}{:>7}{:>12}{:>12}{:>15}",
        "", "Gbit/s", "", "requests/s", "", "connections/s", "", "ingress ns", "egress ns", "connection µs"
    );
    let first = lines.first().context("there are no results")?;
    for line in lines {
        let shown = |value: Option<f64>| value.map_or_else(String::new, |value| format!("{value:.1}"));
        println!(
            "{:<26}{:>8.1}{:>7.2}{:>12.0}{:>7.2}{:>15.0}{:>7.2}{:>12}{:>12}{:>15}",
            line.setup,
            line.gigabits_per_second,
            line.gigabits_per_second / first.gigabits_per_second,
            line.requests_per_second,
            line.requests_per_second / first.requests_per_second,
            line.connections_per_second,
            line.connections_per_second / first.connections_per_second,
            shown(line.ingress_ns),
            shown(line.egress_ns),
            shown(line.connection_us),
        );
    }
    println!(
        "medians of {ROUNDS} rounds in shuffled order, each with its ratio to no filter; program times are without the time of the empty program"
    );
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "a measurement")]
fn rate(load: Load, count: u64, elapsed: Duration) -> f64 {
    let count = if load == Load::Stream { count as f64 * 8.0 / 1e9 } else { count as f64 };
    count / elapsed.as_secs_f64()
}

/// Cost of the programs in one round.
#[derive(Clone, Copy, Default)]
struct Cost {
    /// Nanoseconds of one run of the ingress program.
    ingress_ns: f64,
    /// Nanoseconds of one run of the egress program.
    egress_ns: f64,
    /// Nanoseconds of all program runs for one connection.
    connection_ns: f64,
    /// Number of program runs for one connection.
    runs: f64,
}

/// Measures the cost of the programs with `BPF_ENABLE_STATS`. These statistics slow the traffic down, so rates are not
/// measured at the same time. Returns `None` for setups without programs.
fn cost(cluster: &Cluster, installed: &Installed, duration: Duration) -> Result<Option<Cost>> {
    let read = || -> Result<Option<[Runs; 2]>> {
        match installed {
            Installed::NoPrograms => Ok(None),
            Installed::EmptyProgram(programs) => Ok(Some([programs.empty_runs()?; 2])),
            Installed::Agent(agent) => {
                let [ingress, egress] = PROGRAMS.map(|program| Runs::pinned(agent.pin_path(), program));
                Ok(Some([ingress?, egress?]))
            }
        }
    };
    let _enabled = Runs::enable()?;
    let Some(before) = read()? else { return Ok(None) };
    Load::Requests.run(cluster.host(CLIENT), cluster.host(SERVER), duration)?;
    let between = read()?.context("the programs are no longer loaded")?;
    let (connections, _) = Load::Connections.run(cluster.host(CLIENT), cluster.host(SERVER), duration)?;
    let after = read()?.context("the programs are no longer loaded")?;
    ensure!(connections > 0, "no connection was established");
    let [ingress, egress] = [0, 1].map(|hook| between[hook].since(before[hook]).mean());
    // The empty program is the same at both hooks. Its count includes the runs at both, so it is added only once.
    let hooks = if matches!(installed, Installed::EmptyProgram(_)) { &[0][..] } else { &[0, 1] };
    let ran = hooks.iter().map(|hook| after[*hook].since(between[*hook]));
    let (count, duration) =
        ran.fold((0, Duration::ZERO), |(count, duration), ran| (count + ran.count, duration + ran.time));
    Ok(Some(Cost {
        ingress_ns: ingress,
        egress_ns: egress,
        connection_ns: duration.as_secs_f64() * 1e9 / as_f64(connections),
        runs: as_f64(count) / as_f64(connections),
    }))
}

#[expect(clippy::cast_precision_loss, reason = "a measurement")]
fn as_f64(count: u64) -> f64 {
    count as f64
}

fn median_cost(costs: &[Cost]) -> Option<Cost> {
    let median_of = |figure: fn(&Cost) -> f64| median(&mut costs.iter().map(figure).collect::<Vec<_>>());
    (!costs.is_empty()).then(|| Cost {
        ingress_ns: median_of(|cost| cost.ingress_ns),
        egress_ns: median_of(|cost| cost.egress_ns),
        connection_ns: median_of(|cost| cost.connection_ns),
        runs: median_of(|cost| cost.runs),
    })
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn install(cluster: &Cluster, setup: Setup) -> Result<Installed> {
    let node = cluster.host(&node_name(1)).netns();
    let (client, server) = (cluster.host(CLIENT).v4(), cluster.host(SERVER).v4());
    match setup {
        Setup::Nothing => {}
        Setup::EmptyProgram => {
            let mut programs = Programs::load()?;
            for pod in [CLIENT, SERVER] {
                let veth = cluster.host(pod).veth();
                node.run(|| {
                    programs.attach_empty(veth, true)?;
                    programs.attach_empty_to_egress(veth)
                })?;
            }
            return Ok(Installed::EmptyProgram(Box::new(programs)));
        }
        Setup::FewPolicies | Setup::ManyPolicies => {
            let mut policies = vec![
                policy(
                    SERVER,
                    "{podSelector: {matchLabels: {app: server}}, policyTypes: [Ingress, Egress], ingress: [{from: [{podSelector: {matchLabels: {app: client}}}], ports: [{port: 5201}]}]}",
                ),
                policy(
                    CLIENT,
                    "{podSelector: {matchLabels: {app: client}}, policyTypes: [Ingress, Egress], egress: [{to: [{podSelector: {matchLabels: {app: server}}}], ports: [{port: 5201}]}]}",
                ),
            ];
            if setup == Setup::ManyPolicies {
                policies.extend((0..OTHER_RULES).map(|number| {
                    policy(
                        &format!("bench/other-{number}"),
                        &format!(
                            "{{podSelector: {{matchLabels: {{app: server}}}}, ingress: [{{from: [{{ipBlock: {{cidr: {}/32}}}}], ports: [{{port: {}}}]}}]}}",
                            unused_address(number),
                            6000 + number % 10
                        ),
                    )
                }));
            }
            cluster.apply("bench", &policies.join("---\n"))?;
            return Ok(Installed::Agent(Box::new(Agent::start(cluster)?)));
        }
        Setup::Nftables => {
            let others: String = (0..OTHER_RULES).fold(String::new(), |mut text, number| {
                let _ = write!(text, ", {} . {server} . {} : accept", unused_address(number), 6000 + number % 10);
                text
            });
            node.nft(&format!(
                "table ip netpol-bench {{
                   map allowed {{
                     type ipv4_addr . ipv4_addr . inet_service : verdict
                     elements = {{ {client} . {server} . 5201 : accept{others} }}
                   }}
                   chain forward {{
                     type filter hook forward priority filter; policy drop;
                     ct state established,related accept
                     ip saddr . ip daddr . tcp dport vmap @allowed
                   }}
                 }}"
            ))?;
        }
        Setup::Iptables => {
            let mut rules = "*filter\n:NETPOL-BENCH - [0:0]\n-A NETPOL-BENCH -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT\n".to_owned();
            for number in 0..OTHER_RULES {
                let _ = writeln!(
                    rules,
                    "-A NETPOL-BENCH -s {}/32 -d {server}/32 -p tcp --dport {} -j ACCEPT",
                    unused_address(number),
                    6000 + number % 10
                );
            }
            let _ = writeln!(rules, "-A NETPOL-BENCH -s {client}/32 -d {server}/32 -p tcp --dport 5201 -j ACCEPT");
            rules += "-A NETPOL-BENCH -j DROP\n-A FORWARD -j NETPOL-BENCH\nCOMMIT\n";
            node.iptables("iptables-nft-restore", &rules)?;
        }
    }
    Ok(Installed::NoPrograms)
}

fn remove(cluster: &Cluster, setup: Setup, installed: &mut Installed) -> Result<()> {
    let node = cluster.host(&node_name(1)).netns();
    match setup {
        Setup::Nothing | Setup::EmptyProgram => {}
        Setup::FewPolicies | Setup::ManyPolicies => {
            cluster.delete("bench")?;
            if let Installed::Agent(agent) = installed {
                let (removed, output) = agent.uninstall()?;
                ensure!(removed, "the agent could not be uninstalled:\n{output}");
            }
        }
        Setup::Nftables => node.nft("delete table ip netpol-bench")?,
        Setup::Iptables => node.iptables(
            "iptables-nft-restore",
            "*filter\n-D FORWARD -j NETPOL-BENCH\n-F NETPOL-BENCH\n-X NETPOL-BENCH\nCOMMIT\n",
        )?,
    }
    *installed = Installed::NoPrograms;
    Ok(())
}

/// Returns one of many addresses that no pod has.
fn unused_address(number: usize) -> String {
    format!("198.18.{}.{}", number / 250, number % 250)
}

/// A random number generator. Its numbers differ between runs of the benchmark.
struct Random(u64);

impl Random {
    fn new() -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self(u64::from(now.subsec_nanos()) | 1)
    }

    /// Shuffles items with Knuth's MMIX generator: <https://en.wikipedia.org/wiki/Linear_congruential_generator>.
    fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let index = usize::try_from(self.0 >> 33).unwrap_or(0) % (last + 1);
            items.swap(last, index);
        }
    }
}
