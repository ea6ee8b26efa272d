//! Tests three things: events of allowed flows, policies in shadow mode, and agents that only observe. The programs in
//! the kernel and the same code in memory must have the same results.

use netpol_common::Direction::{Egress, Ingress};
use netpol_common::{
    Direction, DirectionPolicy, EventKind, FlowEvent, PortSetId, RECHECK, Reason, Settings, event_flags, protocol,
};
use netpol_tests::program::Programs;

use super::kernel_and_memory::{ACK, FAMILIES, FORWARDED, KernelAndMemory, RULES, SYN, SYN_ACK, ip, wire};

const POD: u32 = 1;
/// A direction with the rule set of the pod. No port is allowed for every address.
const RULES_ONLY: DirectionPolicy = DirectionPolicy { rule_set: RULES, any: PortSetId::NONE };
/// Cluster IPs of both families.
const SERVICES: [&str; 2] = ["10.96.0.10", "fd00:96::10"];

/// Returns a pod that no policy isolates, with its rule set in shadow mode in both directions.
fn in_shadow_mode() -> KernelAndMemory {
    let mut programs = KernelAndMemory::isolated(&[]);
    programs.change(|endpoint| (endpoint.shadow_ingress, endpoint.shadow_egress) = (RULES_ONLY, RULES_ONLY));
    programs
}

fn record_allowed(programs: &mut KernelAndMemory, record_allowed: u32) {
    programs.kernel.set_settings(Settings { record_allowed }).unwrap();
    programs.memory.settings.set(Settings { record_allowed });
}

/// Returns the events of the kernel. The events of the code in memory must be the same, except for the time.
fn events(programs: &mut KernelAndMemory) -> Vec<FlowEvent> {
    let kernel = programs.kernel.events().unwrap();
    let memory = std::mem::take(&mut *programs.memory.events.borrow_mut());
    let untimed = |events: &[FlowEvent]| -> Vec<FlowEvent> {
        events.iter().map(|event| FlowEvent { time_ns: 0, ..*event }).collect()
    };
    assert_eq!(untimed(&kernel), untimed(&memory));
    for direction in Direction::BOTH {
        let in_memory = programs.memory.shadow_denied.borrow().get(&(POD, direction)).copied().unwrap_or_default();
        assert_eq!(programs.kernel.shadow_denied_count(POD, direction).unwrap(), in_memory, "{direction:?}");
    }
    kernel
}

/// Returns kind, reason and destination port of each event.
fn summary(programs: &mut KernelAndMemory) -> Vec<(EventKind, Reason, u16)> {
    let summary = |event: FlowEvent| {
        let reason = Reason::from_code(event.reason).expect("the code of a reason");
        (event.kind(), reason, u16::from_be_bytes(event.destination_port))
    };
    events(programs).into_iter().map(summary).collect()
}

#[test]
fn new_allowed_flows_cause_events_if_this_is_enabled() {
    let mut programs = KernelAndMemory::isolated(&[Ingress]);
    for (a, port) in FAMILIES.into_iter().zip([1000, 2000]) {
        for (enabled, port) in [(0, port), (1, port + 1)] {
            record_allowed(&mut programs, enabled);
            let to = ip(a.client, a.pod);
            programs.expect(Ingress, &to.tcp(port, 80, SYN, b""), Reason::Rule, "a new flow");
            programs.expect(Ingress, &to.tcp(port, 80, SYN, b""), Reason::Rule, "the same SYN again");
            programs.expect(Egress, &ip(a.pod, a.client).tcp(80, port, SYN_ACK, b""), Reason::Flow, "a reply");
            programs.expect(
                Egress,
                &ip(a.pod, a.outsider).udp(port, 53, b""),
                Reason::NotIsolated,
                "the other direction",
            );
            let [high, low] = port.to_be_bytes();
            let echo = ip(a.trusted, a.pod).icmp(a.echo().0, 0, [high, low, 0, 1], b"");
            programs.expect(Ingress, &echo, Reason::Rule, "an echo request");
            let expected = [
                (EventKind::Allowed, Reason::Rule, 80),
                (EventKind::Allowed, Reason::NotIsolated, 53),
                (EventKind::Allowed, Reason::Rule, port),
            ];
            assert_eq!(summary(&mut programs), if enabled == 1 { &expected[..] } else { &[] });
        }
    }
}

#[test]
fn shadow_mode_reports_open_and_new_flows_that_it_would_deny() {
    for a in FAMILIES {
        let mut programs = KernelAndMemory::isolated(&[]);
        let (to, from) = (ip(a.client, a.pod), ip(a.pod, a.client));
        programs.expect(Ingress, &to.tcp(1000, 22, SYN, b""), Reason::NotIsolated, "an open flow");
        programs.expect(Egress, &from.tcp(22, 1000, SYN_ACK, b""), Reason::Flow, "its reply");
        programs.change(|endpoint| (endpoint.shadow_ingress, endpoint.shadow_egress) = (RULES_ONLY, RULES_ONLY));
        for _ in 0..2 {
            programs.expect(Egress, &from.tcp(22, 1000, ACK, b""), Reason::Flow, "it stays open");
            programs.expect(Ingress, &to.tcp(1000, 22, ACK, b""), Reason::Flow, "in both directions");
        }
        let [event] = events(&mut programs)[..] else { panic!("one event") };
        assert_eq!((event.reason, event.flags), (Reason::NoRule as u8, event_flags::SHADOW));
        assert_eq!((event.direction, event.rule_set), (Ingress as u8, RULES));
        assert_eq!(
            event.destination_port,
            22_u16.to_be_bytes(),
            "the event of a reply has the destination port of the flow's first packet"
        );
        for (packet, direction, denied) in [
            (to.tcp(1001, 80, SYN, b""), Ingress, None),
            (to.tcp(1001, 81, SYN, b""), Ingress, Some(81)),
            (to.udp(1001, 53, b""), Ingress, None),
            (ip(a.outsider, a.pod).udp(1001, 53, b""), Ingress, Some(53)),
            (from.udp(1002, 54, b""), Egress, Some(54)),
            (from.udp(1002, 53, b""), Egress, None),
            (ip(a.trusted, a.pod).tcp(1001, 82, SYN, b""), Ingress, None),
        ] {
            programs.expect(direction, &packet, Reason::NotIsolated, "a new flow");
            let expected: Vec<_> = denied.into_iter().map(|port| (EventKind::Shadow, Reason::NoRule, port)).collect();
            assert_eq!(summary(&mut programs), expected, "{direction:?}");
        }
        // The local node may always reach its pods.
        assert_eq!(programs.run_from(0, Ingress, &wire(&ip(a.node, a.pod).tcp(1, 83, SYN, b""))), Reason::NotIsolated);
        assert_eq!(events(&mut programs), []);
    }
}

#[test]
fn shadow_mode_evaluates_packets_that_take_the_slow_path() {
    for a in FAMILIES {
        let mut programs = in_shadow_mode();
        // The first fragment of a datagram, and a later one, which has no ports.
        let fragment = |offset, more| ip(a.client, a.pod).fragment(77, offset, more);
        programs.expect(Ingress, &fragment(0, true).udp(1000, 54, &[7; 64]), Reason::NotIsolated, "a first fragment");
        let later = fragment(72, false).carrying(protocol::UDP, &[7; 8]);
        programs.expect(Ingress, &later, Reason::Flow, "a later fragment");
        assert_eq!(summary(&mut programs), [(EventKind::Shadow, Reason::NoRule, 54)]);
        let echo = ip(a.outsider, a.pod).icmp(a.echo().0, 0, [1, 2, 0, 1], b"");
        programs.expect(Ingress, &echo, Reason::NotIsolated, "an echo request");
        assert_eq!(summary(&mut programs), [(EventKind::Shadow, Reason::NoRule, 0x0102)]);
        programs.increment_version();
        programs.expect(Ingress, &echo, Reason::Flow, "the same flow, evaluated again");
        programs.expect(Ingress, &echo, Reason::Flow, "a known flow");
        // The datagram, the echo request, and the echo request that was evaluated again.
        assert_eq!(programs.kernel.shadow_denied_count(POD, Ingress).unwrap(), 3);
    }
}

#[test]
fn shadow_mode_evaluates_an_open_flow_at_its_next_packet_with_ports() {
    for a in FAMILIES {
        let mut programs = in_shadow_mode();
        let fragment = |datagram, offset, more| ip(a.client, a.pod).fragment(datagram, offset, more);
        let first = |datagram| fragment(datagram, 0, true).udp(1000, 54, &[7; 64]);
        programs.expect(Ingress, &first(77), Reason::NotIsolated, "a new flow");
        programs.increment_version();
        let later = fragment(77, 72, false).carrying(protocol::UDP, &[7; 8]);
        programs.expect(Ingress, &later, Reason::Flow, "a later fragment");
        let quoted = ip(a.pod, a.client).udp(54, 1000, b"");
        let error = ip(a.outsider, a.pod).icmp(a.too_big(), 4, [0, 0, 5, 0], &quoted);
        programs.expect(Ingress, &error, Reason::IcmpError, "an ICMP error");
        let denied = |programs: &mut KernelAndMemory| programs.kernel.shadow_denied_count(POD, Ingress).unwrap();
        assert_eq!(denied(&mut programs), 1, "neither is evaluated by the policies in shadow mode");
        for datagram in [78, 79] {
            programs.expect(Ingress, &first(datagram), Reason::Flow, "the next datagrams");
            assert_eq!(denied(&mut programs), 2, "the flow is evaluated once");
        }
        assert_eq!(summary(&mut programs), [(EventKind::Shadow, Reason::NoRule, 54)]);
    }
}

#[test]
fn shadow_mode_evaluates_flows_to_services_by_their_backends() {
    for (a, service) in FAMILIES.into_iter().zip(SERVICES) {
        let mut programs = in_shadow_mode();
        for (port, class, port_set) in [(1, 11, PortSetId::ALL), (2, 12, PortSetId::SOME), (3, 13, PortSetId::NONE)] {
            programs.add_frontend(service, protocol::TCP, port, class);
            programs.allow(class, port_set);
        }
        let to = ip(a.pod, service);
        for (port, recheck) in [(1, RECHECK), (2, RECHECK), (3, 0)] {
            let first = programs.send(&to.tcp(1000, port, SYN, b""));
            assert_eq!(first, (Reason::NotIsolated, POD | recheck), "port {port}");
            let next = programs.send(&to.tcp(1000, port, ACK, b""));
            assert_eq!(next, (Reason::Flow, POD), "port {port}: packets of a known flow have no recheck mark");
        }
        assert_eq!(summary(&mut programs), [(EventKind::Shadow, Reason::NoAllowedBackend, 3)]);
        // Post-DNAT, policies in shadow mode do not change the verdict either.
        for (from, to, port, expected) in [
            (a.pod, a.client, 80, None),
            (a.pod, a.client, 81, Some(Reason::BackendDenied)),
            (a.node, a.client, 80, None),
            (a.node, a.outsider, 80, Some(Reason::BackendDenied)),
            (a.pod, service, 2, Some(Reason::NotAllBackendsAllowed)),
        ] {
            let packet = ip(from, to).tcp(1000, port, SYN, b"");
            assert_eq!(programs.send_post_dnat(&packet, POD), Reason::NotIsolated, "{from} to {to}");
            let expected: Vec<_> = expected.map(|reason| (EventKind::Shadow, reason, port)).into_iter().collect();
            assert_eq!(summary(&mut programs), expected, "{from} to {to}");
        }
    }
}

#[test]
fn an_observing_agent_drops_nothing_and_reports_what_it_would_drop() {
    let mut programs = KernelAndMemory::isolated(&[Ingress, Egress]);
    let mut kernel = Programs::load_observing().unwrap();
    std::mem::swap(&mut kernel, &mut programs.kernel);
    programs.kernel.set_source_endpoint(POD, netpol_tests::program::INTERFACE).unwrap();
    programs.kernel.set_endpoint(&programs.endpoint).unwrap();
    programs.memory.observe.set(true);
    // The new kernel maps have no addresses.
    programs.memory.v4.addresses.clear();
    programs.memory.v6.addresses.clear();
    for a in FAMILIES {
        let (to, from) = (ip(a.client, a.pod), ip(a.pod, a.client));
        // A packet without the end of its TCP header.
        let mut cut = to.tcp(1000, 22, SYN, b"");
        cut.truncate(cut.len() - 8);
        for (direction, packet, expected) in [
            (Ingress, to.tcp(1000, 22, SYN, b""), Reason::NoRule),
            (Egress, from.tcp(22, 1000, SYN_ACK, b""), Reason::Flow),
            (Ingress, to.tcp(1000, 22, ACK, b""), Reason::Flow),
            (Egress, ip(a.outsider, a.client).udp(1, 1, b""), Reason::SpoofedSource),
            (Ingress, cut, Reason::Malformed),
        ] {
            let frame = wire(&packet);
            assert_eq!(programs.memory.run(direction, &frame, 1, FORWARDED), expected);
            let before = programs.kernel.packet_count(POD, direction, expected).unwrap();
            assert!(programs.kernel.run(direction, &frame, FORWARDED, 1).unwrap().passed, "{expected:?}");
            assert_eq!(programs.kernel.packet_count(POD, direction, expected).unwrap() - before, 1, "{expected:?}");
            programs.memory.tc_index.set(0);
        }
        // Post-DNAT, packets are not dropped either.
        assert!(programs.kernel.run_post_dnat(&wire(&from.udp(1, 9, b"")), POD | RECHECK, 1).unwrap().passed);
        programs.memory.tc_index.set(POD | RECHECK);
        assert_eq!(programs.memory.run_post_dnat(&wire(&from.udp(1, 9, b"")), 1), Reason::BackendDenied);
        programs.memory.tc_index.set(0);
        // The three packets that an enforcing agent would drop at the veth, and the post-DNAT packet.
        let found = events(&mut programs);
        assert_eq!(found.len(), 4, "{found:?}");
        assert!(found.iter().all(|event| event.flags == event_flags::OBSERVED), "{found:?}");
    }
}
