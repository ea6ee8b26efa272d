//! Cost of a packet to a Service: at the pod's veth, and post-DNAT (after the translation of the Service's address).

use std::net::IpAddr;

use anyhow::{Result, ensure};
use netpol_common::{
    AddressEntry, AllowEntry, AllowKey, ClassId, Direction, DirectionPolicy, Endpoint, EndpointVersion, FrontendEntry,
    FrontendKey, IfIndex, PortSetId, RECHECK, RuleId, RuleSetId, address_flags, endpoint_flags, frontend_scope,
    protocol,
};
use netpol_tests::packet::Ip;
use netpol_tests::program::{INTERFACE, Programs, RunResult};

use super::packets::{Line, REPEAT, ROUNDS, TARGET_ESTABLISHED, TARGET_NEW, difference, nanoseconds, wire};

const RULE_SET: RuleSetId = RuleSetId(7);
/// The class of the backend's address.
const BACKENDS: ClassId = ClassId(1);
/// The class of a frontend with only allowed backends, and that of a frontend with some allowed backends.
const ALL_ALLOWED: ClassId = ClassId(2);
const SOME_ALLOWED: ClassId = ClassId(3);
/// The pod's endpoint ID.
const POD: u32 = 1;

/// The pod, a Service, and a backend of the Service, for each address family.
const ENDS: [[&str; 3]; 2] = [["10.0.0.1", "10.96.0.10", "10.0.0.2"], ["fd00::1", "fd00:96::10", "fd00::2"]];

/// Measures both address families.
pub(super) fn measure(lines: &mut Vec<Line>) -> Result<()> {
    for [pod, service, backend] in ENDS {
        let mut programs = Programs::load()?;
        let [pod, service, backend]: [IpAddr; 3] = [pod.parse()?, service.parse()?, backend.parse()?];
        fill(&mut programs, pod, service, backend)?;
        let family = if pod.is_ipv4() { 4 } else { 6 };
        let mut add_line = |case, target_ns, (ns, spread, empty_ns): (f64, f64, f64)| {
            lines.push(Line { family, peers: 1, case, ns, spread, empty_ns, target_ns });
        };
        let egress = |programs: &mut Programs, frame: &[u8], repeat| programs.run(Direction::Egress, frame, 0, repeat);
        let recheck =
            |programs: &mut Programs, frame: &[u8], repeat| programs.run_post_dnat(frame, POD | RECHECK, repeat);
        let not_from_pod = |programs: &mut Programs, frame: &[u8], repeat| programs.run_post_dnat(frame, 0, repeat);
        let ack = |to: IpAddr, port| wire(&Ip::new(pod, to).tcp(40_000, port, 0x10, b"12345678"));
        let syn = |to: IpAddr, port| wire(&Ip::new(pod, to).tcp(40_000, port, 0x02, b""));
        for frame in [syn(backend, 80), syn(service, 1), syn(service, 2)] {
            ensure!(egress(&mut programs, &frame, 1)?.passed, "the flow to measure was denied");
        }
        add_line("established, to a pod", TARGET_ESTABLISHED, compare(&mut programs, &ack(backend, 80), egress)?);
        add_line("established, Service", TARGET_ESTABLISHED, compare(&mut programs, &ack(service, 1), egress)?);
        add_line("… some backends", TARGET_ESTABLISHED, compare(&mut programs, &ack(service, 2), egress)?);
        add_line("… post-DNAT", TARGET_ESTABLISHED, compare(&mut programs, &ack(backend, 80), recheck)?);
        add_line("new, SYN to a Service", TARGET_NEW, compare(&mut programs, &syn(service, 1), egress)?);
        add_line(
            "post-DNAT, not from a pod",
            TARGET_ESTABLISHED,
            compare(&mut programs, &ack(backend, 80), not_from_pod)?,
        );
    }
    Ok(())
}

/// Fills the maps: a pod that is isolated for egress. It may reach the backend, all backends of the Service at port 1,
/// and some backends of the Service at port 2.
fn fill(programs: &mut Programs, pod: IpAddr, service: IpAddr, backend: IpAddr) -> Result<()> {
    let mut endpoint = Endpoint {
        ifindex: IfIndex(INTERFACE),
        version: EndpointVersion(1),
        ingress: DirectionPolicy::OPEN,
        egress: DirectionPolicy { rule_set: RULE_SET, any: PortSetId::NONE },
        flags: endpoint_flags::ANTI_SPOOFING,
        id: POD,
        ..Endpoint::default()
    };
    let backend_entry = AddressEntry { class: BACKENDS, flags: 0, endpoint: 0 };
    let service_entry = AddressEntry { flags: address_flags::SERVICE, ..AddressEntry::default() };
    let ports = [(1_u16, ALL_ALLOWED), (2, SOME_ALLOWED)];
    match (pod, service, backend) {
        (IpAddr::V4(pod), IpAddr::V4(service), IpAddr::V4(backend)) => {
            endpoint.address_v4 = pod.octets();
            programs.set_address(backend.octets(), backend_entry)?;
            programs.set_address(service.octets(), service_entry)?;
            for (port, class) in ports {
                programs.set_frontend(key(service.octets(), port), FrontendEntry { class })?;
            }
        }
        (IpAddr::V6(pod), IpAddr::V6(service), IpAddr::V6(backend)) => {
            endpoint.address_v6 = pod.octets();
            programs.set_address(backend.octets(), backend_entry)?;
            programs.set_address(service.octets(), service_entry)?;
            for (port, class) in ports {
                programs.set_frontend(key(service.octets(), port), FrontendEntry { class })?;
            }
        }
        _ => {}
    }
    for (class, port_set) in
        [(BACKENDS, PortSetId::ALL), (ALL_ALLOWED, PortSetId::ALL), (SOME_ALLOWED, PortSetId::SOME)]
    {
        programs.set_allow(AllowKey { rule_set: RULE_SET, class }, AllowEntry { port_set, rule: RuleId::NONE })?;
    }
    programs.set_source_endpoint(POD, INTERFACE)?;
    programs.set_endpoint(&endpoint)
}

const fn key<A>(address: A, port: u16) -> FrontendKey<A> {
    FrontendKey { address, port: port.to_be_bytes(), protocol: protocol::TCP, scope: frontend_scope::ADDRESS }
}

/// Measures a frame. Returns the result of [`difference`], in nanoseconds: the median minus the median of the empty
/// program; the spread; the median of the empty program.
fn compare(
    programs: &mut Programs,
    frame: &[u8],
    run: impl Fn(&mut Programs, &[u8], u32) -> Result<RunResult>,
) -> Result<(f64, f64, f64)> {
    let (mut empty, mut full) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        empty.push(nanoseconds(programs.run_empty(frame, REPEAT)?));
        let ran = run(programs, frame, REPEAT)?;
        ensure!(ran.passed, "the frame to measure should pass");
        full.push(nanoseconds(ran.time));
    }
    Ok(difference(full, empty))
}
