//! Growth of compile time with the number of policies, rules, blocks and ports: `cargo bench -p netpol-policy --bench
//! growth`.
//!
//! Each kind of policies in [`SHAPES`] is compiled in three ways: in one reset (all objects at once, as when the agent
//! starts), in one batch of events, and in single events. If a way takes longer than [`TIME_LIMIT`], it is not measured
//! at larger sizes. If the batch or the single events take too long, neither of these two ways is measured any more.
//!
//! The columns of the output:
//! * `reset ms`, `batch ms`: the time of the reset and of the batch.
//! * `singly ms`, `slowest ms`, `writes`: the time of all single events together, the time of the slowest one, and the
//!   number of changes of map entries that all of them cause.
//! * `change ms`: after the reset, the time to add a port range to the last policy.

use std::sync::Arc;
use std::time::{Duration, Instant};

use netpol_policy::cluster_state::Event;
use netpol_policy::compile::{Engine, FirstIds, NodeScope};
use netpol_policy::model::{
    IpBlock, Labels, NamedPort, Object, Peer, Peers, Pod, PodKey, Policy, PolicyKey, PortMatch, PortRange, Ports,
    Protocol, Requirement, Rule, Selector,
};

/// The numbers of policies, or of blocks in one policy, that are measured.
const SIZES: [usize; 6] = [250, 500, 1_000, 2_000, 4_000, 8_000];
/// If a way of compiling takes longer than this, this way is not measured at larger sizes.
const TIME_LIMIT: Duration = Duration::from_secs(5);

/// The name of a kind of policies, and a function that returns a given number of such policies.
type Shape = (&'static str, fn(usize) -> Vec<Policy>);

const SHAPES: [Shape; 9] = [
    ("one block and one port each", |count| policies(count, |i| rule(block(subnet(i), &[]), port(i)))),
    ("one port each, for all peers", |count| {
        policies(count, |i| Rule { peers: Peers::Any, ports: Ports::Of(vec![port(i)]) })
    }),
    ("one port each, for a peer selector that matches no pod (another selector in each policy)", |count| {
        policies(count, |i| rule(pods_of_app(&format!("app-{i}")), port(i)))
    }),
    ("one port each, for the same peer pod (the same selector in each policy)", |count| {
        policies(count, |i| rule(pods_of_app("front"), port(i)))
    }),
    ("one port each, for the same peer pod (another selector in each policy)", |count| {
        policies(count, |i| rule(pods_with_label(i), port(i)))
    }),
    ("one nested block each", |count| policies(count, |i| rule(block(nested_cidr(i), &[]), port(i)))),
    ("everything except one block each", |count| policies(count, |i| rule(block("0.0.0.0/0", &[&subnet(i)]), port(0)))),
    ("one named port each", |count| policies(count, |i| rule(pods_of_app("front"), named_port(i)))),
    ("all blocks in one rule, with half as many port ranges", |count| {
        let peers = (0..count).map(|i| block(subnet(i), &[])).collect();
        let ports = (0..count / 2).map(port_range).collect();
        policies(1, |_| Rule { peers: Peers::Of(peers), ports: Ports::Of(ports) })
    }),
];

fn main() {
    let chosen: Vec<_> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    for (name, shape) in SHAPES {
        if !chosen.is_empty() && !chosen.iter().any(|part| name.contains(part.as_str())) {
            continue;
        }
        println!("{name}");
        println!(
            "{:>8} {:>10} {:>10} {:>12} {:>12} {:>10} {:>10}",
            "size", "reset ms", "batch ms", "singly ms", "slowest ms", "writes", "change ms"
        );
        let (mut measures_reset, mut measures_events) = (true, true);
        for size in SIZES {
            let policies = shape(size);
            let reset = measures_reset.then(|| measure_reset(&policies));
            let (batch, singly) = if measures_events {
                (Some(measure_batch(&policies)), Some(measure_single_events(&policies)))
            } else {
                (None, None)
            };
            let text =
                |time: Option<Duration>| time.map_or("-".to_owned(), |time| format!("{:.2}", time.as_secs_f64() * 1e3));
            println!(
                "{size:>8} {:>10} {:>10} {:>12} {:>12} {:>10} {:>10}",
                text(reset.map(|(time, _)| time)),
                text(batch),
                text(singly.map(|singly| singly.total)),
                text(singly.map(|singly| singly.slowest)),
                singly.map_or("-".to_owned(), |singly| singly.writes.to_string()),
                text(reset.map(|(_, change)| change)),
            );
            measures_reset &= reset.is_some_and(|(time, change)| time.max(change) < TIME_LIMIT);
            measures_events &= batch.zip(singly).is_some_and(|(batch, singly)| batch.max(singly.total) < TIME_LIMIT);
        }
    }
}

/// Measures a reset with all policies, and then the addition of a port range to the last policy.
fn measure_reset(policies: &[Policy]) -> (Duration, Duration) {
    let mut engine = Engine::new(NodeScope::Node("node".into()), FirstIds::default());
    let objects = pods().into_iter().chain(policies.iter().cloned().map(Object::Policy)).collect();
    let started = Instant::now();
    engine.apply(Event::Reset(objects));
    let reset = started.elapsed();
    let mut last = policies.last().cloned().expect("there is no policy");
    for rule in last.ingress.iter_mut().flatten() {
        if let Ports::Of(ports) = &mut rule.ports {
            ports.push(port_range(30_000));
        }
    }
    let started = Instant::now();
    engine.apply(Event::Apply(Object::Policy(last)));
    (reset, started.elapsed())
}

fn engine_with_pods() -> Engine {
    let mut engine = Engine::new(NodeScope::Node("node".into()), FirstIds::default());
    engine.apply(Event::Reset(pods()));
    engine
}

/// Measures the addition of all policies in one batch, with an engine that already has the pods.
fn measure_batch(policies: &[Policy]) -> Duration {
    let mut engine = engine_with_pods();
    let events = policies.iter().cloned().map(|policy| Event::Apply(Object::Policy(policy))).collect::<Vec<_>>();
    let started = Instant::now();
    engine.apply_all(events);
    started.elapsed()
}

/// The times of all single events together and of the slowest one, and the number of changes of map entries.
#[derive(Clone, Copy)]
struct SingleEvents {
    total: Duration,
    slowest: Duration,
    writes: usize,
}

/// Measures the addition of all policies, and then the deletion of all policies, as single events.
fn measure_single_events(policies: &[Policy]) -> SingleEvents {
    let mut engine = engine_with_pods();
    let mut singly = SingleEvents { total: Duration::ZERO, slowest: Duration::ZERO, writes: 0 };
    let apply = policies.iter().cloned().map(|policy| Event::Apply(Object::Policy(policy)));
    let delete = policies.iter().map(|policy| Event::Delete(Object::Policy(policy.clone()).key()));
    for event in apply.chain(delete) {
        let started = Instant::now();
        singly.writes += engine.apply(event).len();
        let time = started.elapsed();
        singly.total += time;
        singly.slowest = singly.slowest.max(time);
    }
    singly
}

/// Returns two pods. All policies select pod `server`, which is on the local node. Peers of some policies match pod
/// `front`, which is on another node.
fn pods() -> Vec<Object> {
    let pod = |name: &str, node: &str, address: [u8; 4], labels: Labels| {
        Object::Pod(Pod {
            key: PodKey::new("shop", name),
            node: Some(node.into()),
            host_network: false,
            finished: false,
            deleting: false,
            created: 0,
            labels,
            addresses: vec![address.into()],
            ports: (0..SIZES[5] / 2)
                .map(|i| NamedPort { name: port_name(i), protocol: Protocol::Tcp, port: port_number(i) })
                .collect(),
            uid: None,
            workload: None,
            host_ports: None,
        })
    };
    let labels = (0..SIZES[5]).map(|i| (Arc::from(format!("l-{i}")), Arc::from("")));
    let front = labels.chain([("app".into(), "front".into())]).collect();
    vec![
        pod("server", "node", [192, 168, 0, 1], Labels::from([("app".into(), "server".into())])),
        pod("front", "other", [192, 168, 0, 2], front),
    ]
}

/// Returns policies that select pod `server`. Policy `i` has the ingress rule `rule(i)`.
fn policies(count: usize, rule: impl FnOnce(usize) -> Rule + Clone) -> Vec<Policy> {
    let policy = |i: usize| Policy {
        key: PolicyKey::new("shop", format!("policy-{i}")),
        pods: Selector { requirements: vec![Requirement::In("app".into(), vec!["server".into()])], invalid: false },
        ingress: Some(vec![rule.clone()(i)]),
        egress: None,
        diagnostics: Vec::new(),
        mode: None,
    };
    (0..count).map(policy).collect()
}

fn rule(peer: Peer, port: PortMatch) -> Rule {
    Rule { peers: Peers::Of(vec![peer]), ports: Ports::Of(vec![port]) }
}

fn port_number(i: usize) -> u16 {
    u16::try_from(1 + i % 60_000).expect("the port is out of range")
}

fn port(i: usize) -> PortMatch {
    PortMatch { protocol: Protocol::Tcp, port: PortRange::Range(port_number(i), port_number(i)) }
}

/// Returns port range `i`. Each range has three ports, and the ranges are disjoint.
fn port_range(i: usize) -> PortMatch {
    let first = port_number(i * 5);
    PortMatch { protocol: Protocol::Tcp, port: PortRange::Range(first, first + 2) }
}

fn port_name(i: usize) -> Arc<str> {
    format!("port-{i}").into()
}

fn named_port(i: usize) -> PortMatch {
    PortMatch { protocol: Protocol::Tcp, port: PortRange::Named(port_name(i)) }
}

fn pods_of_app(name: &str) -> Peer {
    let pods = Selector { requirements: vec![Requirement::In("app".into(), vec![name.into()])], invalid: false };
    Peer::Pods { namespaces: None, pods }
}

/// Returns a peer that matches pods with label `i`. Only pod `front` has these labels.
fn pods_with_label(i: usize) -> Peer {
    let pods = Selector { requirements: vec![Requirement::Exists(format!("l-{i}").into())], invalid: false };
    Peer::Pods { namespaces: None, pods }
}

/// Returns subnet `i`: 10.0.0.0/24, 10.0.1.0/24 and so on.
fn subnet(i: usize) -> String {
    format!("10.{}.{}.0/24", i / 256, i % 256)
}

/// Returns CIDR `i`. The CIDRs form chains of twelve, and each CIDR of a chain contains the next one.
fn nested_cidr(i: usize) -> String {
    let (chain, depth) = (i / 12, i % 12);
    let length = 12 + depth;
    let first =
        u32::from(std::net::Ipv4Addr::new(10, 0, 0, 0)) + (u32::try_from(chain).expect("too many chains") << 20);
    format!("{}/{length}", std::net::Ipv4Addr::from(first))
}

fn block(cidr: impl AsRef<str>, except: &[&str]) -> Peer {
    let except = except.iter().map(|net| net.parse().expect("invalid except")).collect();
    Peer::Block(IpBlock { cidr: cidr.as_ref().parse().expect("invalid block"), except })
}
