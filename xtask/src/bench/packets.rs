//! Measures how much time the eBPF programs need for a packet.
//!
//! In each round, `BPF_PROG_TEST_RUN` runs a program on one frame many times and returns the mean time. Each figure is
//! the median of several rounds, less the median of the empty program, which does nothing. Rounds of the two programs
//! alternate, so that the load on the machine is the same for both.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use netpol_common::{
    AddressEntry, AllowEntry, AllowKey, ClassId, Direction, DirectionPolicy, Endpoint, EndpointVersion, FlowKey,
    IfIndex, PORT_PREFIX_EXACT, PortEntry, PortKey, PortSetId, RuleId, RuleSetId, endpoint_flags, port_verdict,
    protocol,
};
use netpol_tests::cluster::Mac;
use netpol_tests::packet::{Ip, frame};
use netpol_tests::program::{INTERFACE, Programs};
use serde::Serialize;

use super::flow_events;
use super::report;
use super::services;
use crate::cli::BenchArgs;

/// Number of rounds of each program.
pub(super) const ROUNDS: usize = 15;
/// Number of runs of one frame per round.
pub(super) const REPEAT: u32 = 200_000;
/// Number of flows created per round, if each run needs a new flow.
const NEW_FLOWS: u16 = 2_000;

/// Targets in nanoseconds, for the median minus the median of the empty program. They are the same with one peer and
/// with ten thousand peers.
pub(super) const TARGET_ESTABLISHED: f64 = 45.0;
pub(super) const TARGET_NEW: f64 = 330.0;
const TARGET_DENIED: f64 = 100.0;
/// Target for the additional time of a packet of an established flow if packets and bytes are counted
/// (`--flow-totals`).
const TARGET_TOTALS: f64 = 3.0;

/// The rule set (compiled policies) of the pod.
const RULE_SET: RuleSetId = RuleSetId(7);
/// The class (equivalence class of addresses) of all peers.
pub(super) const PEERS: ClassId = ClassId(1);
/// The port set that the rule set allows to the peers.
pub(super) const PORTS: PortSetId = PortSetId(1);
const ALLOWED_PORT: u16 = 8080;
/// The interface through which the packets to the pod reached the node (`ingress_ifindex`).
const INCOMING_INTERFACE: u32 = 4000;

/// One line of the table.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Line {
    pub(super) family: u8,
    pub(super) peers: u32,
    pub(super) case: &'static str,
    /// Median minus the median of the empty program.
    pub(super) ns: f64,
    /// Half of the distance between the quartiles of the measured program.
    pub(super) spread: f64,
    /// Median of the empty program, in nanoseconds.
    pub(super) empty_ns: f64,
    pub(super) target_ns: f64,
}

/// Runs the benchmark.
pub(super) fn run(args: &BenchArgs) -> Result<ExitCode> {
    let mut lines = Vec::new();
    for family in [Family::V4, Family::V6] {
        for peers in [1, 10_000] {
            eprintln!("measuring IPv{}, peers of the policy: {peers} …", family.number());
            measure(family, peers, &mut lines)?;
        }
    }
    eprintln!("measuring Services …");
    services::measure(&mut lines)?;
    report::print(args.output, lines.as_slice(), |lines| {
        println!("{:<7}{:>7}  {:<25}{:>8}{:>8}{:>7}{:>8}", "family", "peers", "case", "ns", "±", "target", "empty");
        for line in lines {
            println!(
                "IPv{:<4}{:>7}  {:<25}{:>8.1}{:>8.1}{:>7.0}{:>8.1}{}",
                line.family,
                line.peers,
                line.case,
                line.ns,
                line.spread,
                line.target_ns,
                line.empty_ns,
                if line.ns > line.target_ns { "  above the target" } else { "" }
            );
        }
    })
}

#[derive(Clone, Copy)]
pub(super) enum Family {
    V4,
    V6,
}

impl Family {
    fn number(self) -> u8 {
        match self {
            Self::V4 => 4,
            Self::V6 => 6,
        }
    }

    /// Returns the address of a host.
    #[expect(clippy::cast_possible_truncation, reason = "split into parts")]
    fn address(self, host: Host) -> IpAddr {
        let number = match host {
            Host::Pod => 1,
            Host::Peer(number) => 0x1_0000 + number,
            Host::Unknown => 0x20_0000,
        };
        match self {
            Self::V4 => Ipv4Addr::from(0x0a00_0000 + number).into(),
            Self::V6 => Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, (number >> 16) as u16, number as u16).into(),
        }
    }
}

#[derive(Clone, Copy)]
pub(super) enum Host {
    /// The pod at which packets are evaluated.
    Pod,
    /// A host that the pod's policies allow to reach one port of the pod.
    Peer(u32),
    /// A host that matches no rule of the pod's policies.
    Unknown,
}

/// Adds the lines of an address family and a number of peers.
fn measure(family: Family, peers: u32, lines: &mut Vec<Line>) -> Result<()> {
    let (mut programs, mut counting) = (Programs::load()?, Programs::load_counting()?);
    let endpoint = fill(&mut programs, family, peers)?;
    fill(&mut counting, family, peers)?;
    let from = |host| Ip::new(family.address(host), family.address(Host::Pod));
    let peer = Host::Peer(peers / 2);
    let syn = wire(&from(peer).tcp(40_000, ALLOWED_PORT, 0x02, b""));
    let ack = wire(&from(peer).tcp(40_000, ALLOWED_PORT, 0x10, b"12345678"));
    let mut add_line = |case, target_ns, (ns, spread, empty_ns): (f64, f64, f64)| {
        lines.push(Line { family: family.number(), peers, case, ns, spread, empty_ns, target_ns });
    };

    for programs in [&mut programs, &mut counting] {
        let ran = programs.run(Direction::Ingress, &syn, INCOMING_INTERFACE, 1)?;
        ensure!(ran.passed, "the flow to measure was denied");
    }
    let [without_totals, with_totals] = established(&mut programs, &mut counting, &ack)?;
    add_line("established, TCP", TARGET_ESTABLISHED, without_totals);
    add_line("established, totals", TARGET_ESTABLISHED + TARGET_TOTALS, with_totals);
    drop(counting);
    // A SYN is always evaluated by the policies, even if its flow exists.
    add_line("new, TCP SYN", TARGET_NEW, compare(&mut programs, &syn, true)?);
    add_line("new, UDP", TARGET_NEW, compare_new(&mut programs, family, peer)?);
    if peers == 1 {
        for (case, cost) in flow_events::measure(&mut programs, family, peer, endpoint)? {
            add_line(case, TARGET_NEW + flow_events::TARGET_EXTRA, cost);
        }
    }
    for (case, packet) in [
        ("denied port, TCP SYN", from(peer).tcp(40_000, 22, 0x02, b"")),
        ("denied port, UDP", from(peer).udp(40_000, 22, b"12345678")),
        ("unknown peer, TCP SYN", from(Host::Unknown).tcp(40_000, 22, 0x02, b"")),
        ("unknown peer, UDP", from(Host::Unknown).udp(40_000, 22, b"12345678")),
    ] {
        add_line(case, TARGET_DENIED, compare(&mut programs, &wire(&packet), false)?);
    }
    Ok(())
}

/// Returns an Ethernet frame with this packet.
pub(super) fn wire(packet: &[u8]) -> Vec<u8> {
    frame(Mac([2; 6]), Mac([4; 6]), &[], packet)
}

/// Fills the maps: one pod that all peers may reach at one port. Each peer has an address of its own. Returns the pod's
/// endpoint.
fn fill(programs: &mut Programs, family: Family, peers: u32) -> Result<Endpoint> {
    let mut endpoint = Endpoint {
        ifindex: IfIndex(INTERFACE),
        version: EndpointVersion(1),
        ingress: DirectionPolicy { rule_set: RULE_SET, any: PortSetId::NONE },
        egress: DirectionPolicy::OPEN,
        flags: endpoint_flags::ANTI_SPOOFING,
        id: 1,
        ..Endpoint::default()
    };
    let peer_entry = AddressEntry { class: PEERS, flags: 0, endpoint: 0 };
    match family.address(Host::Pod) {
        IpAddr::V4(address) => endpoint.address_v4 = address.octets(),
        IpAddr::V6(address) => endpoint.address_v6 = address.octets(),
    }
    for number in 0..peers {
        match family.address(Host::Peer(number)) {
            IpAddr::V4(address) => programs.set_address(address.octets(), peer_entry)?,
            IpAddr::V6(address) => programs.set_address(address.octets(), peer_entry)?,
        }
    }
    programs
        .set_allow(AllowKey { rule_set: RULE_SET, class: PEERS }, AllowEntry { port_set: PORTS, rule: RuleId::NONE })?;
    for protocol in [protocol::TCP, protocol::UDP] {
        let key = PortKey { set: PORTS, protocol, zero: 0, port: ALLOWED_PORT.to_be_bytes() };
        programs.set_port(PORT_PREFIX_EXACT, key, PortEntry { verdict: port_verdict::ALLOW, rule: RuleId(1) })?;
    }
    programs.set_endpoint(&endpoint)?;
    Ok(endpoint)
}

/// Measures the ingress program with one frame. `passes`: whether the program must allow the frame. See [`difference`]
/// for the result.
fn compare(programs: &mut Programs, frame: &[u8], passes: bool) -> Result<(f64, f64, f64)> {
    let mut empty = Vec::new();
    let mut full = Vec::new();
    for _ in 0..ROUNDS {
        empty.push(nanoseconds(programs.run_empty(frame, REPEAT)?));
        let ran = programs.run(Direction::Ingress, frame, INCOMING_INTERFACE, REPEAT)?;
        ensure!(ran.passed == passes, "the frame to measure should {}", if passes { "pass" } else { "be denied" });
        full.push(nanoseconds(ran.time));
    }
    Ok(difference(full, empty))
}

/// Measures a packet of an established flow: with `programs`, which do not count packets and bytes of flows, and with
/// `counting`, which count them. Rounds of these programs and the empty program alternate.
fn established(programs: &mut Programs, counting: &mut Programs, frame: &[u8]) -> Result<[(f64, f64, f64); 2]> {
    let (mut empty, mut without_totals, mut with_totals) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        empty.push(nanoseconds(programs.run_empty(frame, REPEAT)?));
        for (programs, times) in [(&mut *programs, &mut without_totals), (&mut *counting, &mut with_totals)] {
            let ran = programs.run(Direction::Ingress, frame, INCOMING_INTERFACE, REPEAT)?;
            ensure!(ran.passed, "the frame to measure should pass");
            times.push(nanoseconds(ran.time));
        }
    }
    Ok([difference(without_totals, empty.clone()), difference(with_totals, empty)])
}

/// Measures packets of new flows: each run has one packet, which creates a flow. The overhead of a run is in the time
/// of the program and in that of the empty program, so it is not in the difference.
fn compare_new(programs: &mut Programs, family: Family, peer: Host) -> Result<(f64, f64, f64)> {
    let mut empty = Vec::new();
    let mut full = Vec::new();
    for _ in 0..ROUNDS {
        let times = new_flows(programs, family, peer)?;
        empty.push(times.0);
        full.push(times.1);
    }
    Ok(difference(full, empty))
}

/// Creates the flows of one round, and deletes them. Returns the mean times of the empty program and of the ingress
/// program, in nanoseconds.
pub(super) fn new_flows(programs: &mut Programs, family: Family, peer: Host) -> Result<(f64, f64)> {
    let (source, pod) = (family.address(peer), family.address(Host::Pod));
    let mut sums = [Duration::ZERO; 2];
    for port in 10_000..10_000 + NEW_FLOWS {
        let frame = wire(&Ip::new(source, pod).udp(port, ALLOWED_PORT, b"12345678"));
        sums[0] += programs.run_empty(&frame, 1)?;
        let ran = programs.run(Direction::Ingress, &frame, INCOMING_INTERFACE, 1)?;
        ensure!(ran.passed, "a new flow was denied");
        sums[1] += ran.time;
    }
    delete_flows(programs, source, pod).context("deleting the flows of a round")?;
    let [empty, full] = sums.map(|sum| nanoseconds(sum) / f64::from(NEW_FLOWS));
    Ok((empty, full))
}

fn delete_flows(programs: &mut Programs, source: IpAddr, pod: IpAddr) -> Result<()> {
    for port in 10_000..10_000 + NEW_FLOWS {
        let existed = match (source, pod) {
            (IpAddr::V4(remote), IpAddr::V4(pod)) => programs.delete_flow(key(pod.octets(), remote.octets(), port))?,
            (IpAddr::V6(remote), IpAddr::V6(pod)) => programs.delete_flow(key(pod.octets(), remote.octets(), port))?,
            _ => false,
        };
        ensure!(existed, "the flow from port {port} was not recorded");
    }
    Ok(())
}

fn key<A>(pod_address: A, remote_address: A, port: u16) -> FlowKey<A> {
    FlowKey {
        ifindex: IfIndex(INTERFACE),
        pod_address,
        remote_address,
        pod_port: ALLOWED_PORT.to_be_bytes(),
        remote_port: port.to_be_bytes(),
        protocol: protocol::UDP,
        zero: [0; 3],
    }
}

/// Returns the difference of the medians, half of the distance between the quartiles of `full`, and the median of
/// `empty`. `full` and `empty` are the times of the measured program and of the empty program, in nanoseconds.
pub(super) fn difference(mut full: Vec<f64>, mut empty: Vec<f64>) -> (f64, f64, f64) {
    full.sort_by(f64::total_cmp);
    empty.sort_by(f64::total_cmp);
    let spread = (full[full.len() * 3 / 4] - full[full.len() / 4]) / 2.0;
    (full[full.len() / 2] - empty[empty.len() / 2], spread, empty[empty.len() / 2])
}

pub(super) fn nanoseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e9
}
