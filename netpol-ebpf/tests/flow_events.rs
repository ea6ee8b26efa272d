//! Tests the events of allowed flows, the events of policies in shadow mode (only evaluated and reported), and the
//! events of an agent with `--observe` (it reports denied packets, but lets them pass). [`Memory`] runs the packet
//! programs on maps in memory, with a clock that the test sets.

mod common;

use common::{ACK, CLIENT, DENIES, OTHER_INTERFACE, POD, RULES, SYN, SYN_ACK, VETH, change_endpoint, memory_with_pod};
use netpol_common::Direction::{Egress, Ingress};
use netpol_common::{
    AddressEntry, AllowEntry, AllowKey, ClassId, Direction, EVENT_BURST, Endpoint, EventKind, FlowEvent, FrontendEntry,
    FrontendKey, IfIndex, PortSetId, RECHECK, Reason, RuleId, Settings, address_flags, event_budget, event_flags,
    frontend_scope, protocol,
};
use netpol_ebpf::memory::Memory;

const BACKEND: [u8; 4] = [10, 0, 0, 3];
const SERVICE: [u8; 4] = [10, 96, 0, 1];
/// The flag of a fragment that is not the last one.
const MORE_FRAGMENTS: u16 = 0x2000;

/// Returns maps with a pod that no policy isolates. Allowed flows are reported.
fn reporting_memory() -> Memory {
    let memory = memory_with_pod();
    memory.settings.set(Settings { record_allowed: 1 });
    memory
}

/// Returns an Ethernet frame with an IPv4 packet. `fragment` is 0, or contains the flag [`MORE_FRAGMENTS`] or
/// the fragment's offset in units of 8 bytes.
fn frame(from: [u8; 4], to: [u8; 4], protocol: u8, fragment: u16, transport: &[u8]) -> Vec<u8> {
    let total_length = u16::try_from(20 + transport.len()).expect("a short packet");
    let mut frame = [&[2; 12][..], &[8, 0, 0x45, 0], &total_length.to_be_bytes(), &[0, 1]].concat();
    frame.extend([&fragment.to_be_bytes()[..], &[64, protocol, 0, 0], &from, &to, transport].concat());
    frame
}

fn tcp(flags: u8, ports: [u16; 2]) -> Vec<u8> {
    let mut header = ports.map(u16::to_be_bytes).concat();
    header.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, flags, 1, 0, 0, 0, 0, 0]);
    header
}

fn udp(ports: [u16; 2]) -> Vec<u8> {
    [ports[0].to_be_bytes(), ports[1].to_be_bytes(), [0, 16], [0; 2], [0; 2], [0; 2], [0; 2], [0; 2]].concat()
}

/// Runs a TCP packet from `CLIENT`, port 1000, to the pod's port 80.
fn request(memory: &Memory, flags: u8) -> Reason {
    connect(memory, flags, 1000, 80)
}

/// Runs a TCP packet from `CLIENT` to the pod, with these ports. The packet is not from a pod of this node.
fn connect(memory: &Memory, flags: u8, from: u16, to: u16) -> Reason {
    // The packet has no source endpoint ID.
    memory.tc_index.set(0);
    memory.run(Ingress, &frame(CLIENT, POD, protocol::TCP, 0, &tcp(flags, [from, to])), VETH, OTHER_INTERFACE)
}

/// Runs a reply to [`request`].
fn reply(memory: &Memory, flags: u8) -> Reason {
    memory.run(Egress, &frame(POD, CLIENT, protocol::TCP, 0, &tcp(flags, [80, 1000])), VETH, 0)
}

/// Runs a datagram from the pod. Returns the reason, and what the program stores in the packet: the source endpoint ID,
/// which is 1, and the bit [`RECHECK`] if the packet has to be evaluated again post-DNAT.
fn send(memory: &Memory, to: [u8; 4], port: u16) -> (Reason, u32) {
    let reason = memory.run(Egress, &frame(POD, to, protocol::UDP, 0, &udp([1000, port])), VETH, 0);
    (reason, memory.tc_index.get())
}

/// Returns the events since the last call.
fn events(memory: &Memory) -> Vec<FlowEvent> {
    std::mem::take(&mut *memory.events.borrow_mut())
}

/// Returns kind, direction, reason and destination port of each event since the last call.
fn summary(memory: &Memory) -> Vec<(EventKind, Direction, Reason, u16)> {
    let summary = |event: FlowEvent| {
        let direction = if event.direction == 0 { Ingress } else { Egress };
        let reason = Reason::from_code(event.reason).expect("the code of a reason");
        (event.kind(), direction, reason, u16::from_be_bytes(event.destination_port))
    };
    events(memory).into_iter().map(summary).collect()
}

/// Returns the number of the pod's flows that the policies in shadow mode would deny. The pod's endpoint ID is 1.
fn shadow_denied(memory: &Memory, direction: Direction) -> u64 {
    memory.shadow_denied.borrow().get(&(1, direction)).copied().unwrap_or_default()
}

#[test]
fn a_new_flow_is_reported_once_if_allowed_flows_are_reported() {
    for record_allowed in [0, 1] {
        let memory = reporting_memory();
        memory.settings.set(Settings { record_allowed });
        assert_eq!(request(&memory, SYN), Reason::NotIsolated);
        // The same SYN again, a reply, and more packets.
        assert_eq!(request(&memory, SYN), Reason::NotIsolated);
        assert_eq!((reply(&memory, SYN_ACK), request(&memory, ACK)), (Reason::Flow, Reason::Flow));
        let expected = [(EventKind::Allowed, Ingress, Reason::NotIsolated, 80)];
        assert_eq!(summary(&memory), expected[..record_allowed as usize]);
        // A new connection with the same ports.
        memory.wait(1);
        assert_eq!(request(&memory, SYN), Reason::NotIsolated);
        assert_eq!(summary(&memory), expected[..record_allowed as usize]);
    }
}

#[test]
fn a_flow_event_has_the_addresses_the_ports_and_the_rule_set() {
    let mut memory = reporting_memory();
    let everything = AllowEntry { port_set: PortSetId::ALL, rule: RuleId(1) };
    memory.allow.insert(AllowKey { rule_set: RULES, class: ClassId(1) }, everything);
    memory.v4.addresses.insert(CLIENT, AddressEntry { class: ClassId(1), ..AddressEntry::default() });
    // `DENIES` denies everything, except what the entry above allows.
    change_endpoint(&mut memory, |endpoint| endpoint.ingress = DENIES);
    assert_eq!(request(&memory, SYN), Reason::Rule);
    let [event] = events(&memory)[..] else { panic!("one event") };
    assert_eq!((event.reason, event.rule_set, event.flags), (Reason::Rule as u8, RULES, 0));
    assert_eq!((&event.source[..4], &event.destination[..4]), (&CLIENT[..], &POD[..]));
    assert_eq!((event.source_port, event.destination_port), (1000_u16.to_be_bytes(), 80_u16.to_be_bytes()));
    assert_eq!((event.endpoint, event.source_endpoint, event.length), (1, 0, 40));
    assert_eq!(event.budget(), event_budget(1, Ingress, EventKind::Allowed));
}

#[test]
fn connections_of_one_client_to_one_port_have_one_event_a_second() {
    let mut memory = reporting_memory();
    for second in 0..3 {
        for port in 0..100 {
            assert!(connect(&memory, SYN, 2000 + second * 100 + port, 80).allows());
        }
        assert!(connect(&memory, SYN, 1000, 81 + second).allows(), "another port of the pod");
        memory.wait(1);
    }
    // Two events in each second: the first connection to port 80, and the connection to another port. The event at port
    // 80 also has the number of connections to port 80 that got no event in the second before.
    let suppressed: Vec<_> = events(&memory).iter().map(|event| event.suppressed).collect();
    assert_eq!(suppressed, [0, 0, 99, 0, 99, 0]);
    assert_eq!(memory.suppressed().1, 99, "counted for the next event");
}

#[test]
fn pings_from_one_client_have_one_event_a_second() {
    let memory = reporting_memory();
    // Each run of `ping` has another identifier, and so another flow.
    for (identifier, seconds) in [(1, 0), (2, 0), (3, 0), (4, 1)] {
        memory.wait(seconds);
        let echo = frame(CLIENT, POD, protocol::ICMP, 0, &[8, 0, 0, 0, 0, identifier, 0, 1]);
        assert_eq!(memory.run(Ingress, &echo, VETH, OTHER_INTERFACE), Reason::NotIsolated);
    }
    let suppressed: Vec<_> = events(&memory).iter().map(|event| event.suppressed).collect();
    assert_eq!(suppressed, [0, 2]);
}

#[test]
fn an_allowed_flow_between_pods_of_this_node_is_charged_to_the_event_budget_of_its_initiator() {
    let mut memory = reporting_memory();
    let client = Endpoint { ifindex: IfIndex(OTHER_INTERFACE), id: 2, address_v4: CLIENT, ..memory.endpoints[&VETH] };
    memory.endpoints.insert(OTHER_INTERFACE, client);
    memory.tc_index.set(2);
    let syn = frame(CLIENT, POD, protocol::TCP, 0, &tcp(SYN, [1000, 80]));
    assert_eq!(memory.run(Ingress, &syn, VETH, OTHER_INTERFACE), Reason::NotIsolated);
    let [event] = events(&memory)[..] else { panic!("one event") };
    assert_eq!((event.endpoint, event.source_endpoint), (1, 2));
    assert_eq!(event.budget(), event_budget(2, Egress, EventKind::Allowed));
}

#[test]
fn allowed_flows_do_not_suppress_events_of_denied_packets() {
    let mut memory = reporting_memory();
    change_endpoint(&mut memory, |endpoint| endpoint.egress = DENIES);
    for port in 0..20_000 {
        assert_eq!(connect(&memory, SYN, 1000, port), Reason::NotIsolated);
    }
    assert_eq!(events(&memory).len() as u64, EVENT_BURST);
    assert_eq!(memory.suppressed().0[event_budget(1, Ingress, EventKind::Allowed) as usize], 20_000 - EVENT_BURST);
    for port in 0..100 {
        assert_eq!(send(&memory, CLIENT, port).0, Reason::NoRule);
    }
    assert_eq!(events(&memory).len(), 100, "denied packets have their own budget");
    // Only denied packets use the second half of the ring buffer.
    memory.wait(10);
    memory.ring_half_full.set(true);
    assert_eq!(connect(&memory, SYN, 1000, 20_000), Reason::NotIsolated);
    assert_eq!(send(&memory, CLIENT, 200).0, Reason::NoRule);
    assert_eq!(summary(&memory), [(EventKind::Denied, Egress, Reason::NoRule, 200)]);
    assert_eq!(memory.suppressed().0[event_budget(1, Ingress, EventKind::Allowed) as usize], 20_001 - EVENT_BURST);
}

#[test]
fn shadow_mode_reports_what_it_would_deny_and_changes_nothing() {
    let mut memory = reporting_memory();
    assert_eq!((request(&memory, SYN), reply(&memory, SYN_ACK)), (Reason::NotIsolated, Reason::Flow));
    events(&memory);
    change_endpoint(&mut memory, |endpoint| endpoint.shadow_ingress = DENIES);
    // The open flow is evaluated once, in the direction of its first packet, although its next packet is a reply.
    for _ in 0..3 {
        assert_eq!((reply(&memory, ACK), request(&memory, ACK)), (Reason::Flow, Reason::Flow));
    }
    let [event] = events(&memory)[..] else { panic!("one event") };
    assert_eq!((event.flags, event.reason), (event_flags::SHADOW, Reason::NoRule as u8));
    assert_eq!((event.direction, event.rule_set), (Ingress as u8, RULES));
    assert_eq!((&event.source[..4], &event.destination[..4]), (&CLIENT[..], &POD[..]));
    assert_eq!((event.source_port, event.destination_port), (1000_u16.to_be_bytes(), 80_u16.to_be_bytes()));
    assert_eq!(shadow_denied(&memory, Ingress), 1);
    // A new flow has one event, with the verdict of shadow mode.
    assert_eq!(connect(&memory, SYN, 1001, 81), Reason::NotIsolated);
    assert_eq!(connect(&memory, ACK, 1001, 81), Reason::Flow);
    assert_eq!(summary(&memory), [(EventKind::Shadow, Ingress, Reason::NoRule, 81)]);
    assert_eq!(shadow_denied(&memory, Ingress), 2);
    // The policies in shadow mode isolate the pod for ingress only. So egress flows, and ingress flows that these
    // policies allow, have no event of shadow mode. From here on, events of allowed flows are disabled, so these flows
    // have no event at all.
    memory.settings.set(Settings::default());
    assert_eq!(send(&memory, CLIENT, 53).0, Reason::NotIsolated);
    memory.v4.addresses.insert(CLIENT, AddressEntry { class: ClassId(1), ..AddressEntry::default() });
    let everything = AllowEntry { port_set: PortSetId::ALL, rule: RuleId(1) };
    memory.allow.insert(AllowKey { rule_set: RULES, class: ClassId(1) }, everything);
    assert_eq!(connect(&memory, SYN, 1002, 82), Reason::NotIsolated);
    assert_eq!((summary(&memory), shadow_denied(&memory, Ingress)), (Vec::new(), 2));
}

#[test]
fn shadow_mode_evaluates_flows_to_services_before_and_after_translation() {
    let mut memory = reporting_memory();
    memory.settings.set(Settings::default());
    memory.v4.addresses.insert(SERVICE, AddressEntry { flags: address_flags::SERVICE, ..AddressEntry::default() });
    memory.v4.addresses.insert(BACKEND, AddressEntry { class: ClassId(2), ..AddressEntry::default() });
    // The rule set allows all backends of port 1, some backends of port 2, and no backends of port 3.
    for (port, class, port_set) in [(1, 11, PortSetId::ALL), (2, 12, PortSetId::SOME), (3, 13, PortSetId::NONE)] {
        let port = u16::to_be_bytes(port);
        let key = FrontendKey { address: SERVICE, port, protocol: protocol::UDP, scope: frontend_scope::ADDRESS };
        memory.v4.frontends.insert(key, FrontendEntry { class: ClassId(class) });
        let allow = AllowEntry { port_set, rule: RuleId::NONE };
        memory.allow.insert(AllowKey { rule_set: RULES, class: ClassId(class) }, allow);
    }
    let everything = AllowEntry { port_set: PortSetId::ALL, rule: RuleId(1) };
    memory.allow.insert(AllowKey { rule_set: RULES, class: ClassId(2) }, everything);
    assert_eq!(send(&memory, SERVICE, 3), (Reason::NotIsolated, 1), "without shadow mode");
    change_endpoint(&mut memory, |endpoint| endpoint.shadow_egress = DENIES);
    // The pod's endpoint ID, with the bit for the recheck post-DNAT.
    let marked = 1 | RECHECK;
    for (port, expected) in [(1, marked), (2, marked), (3, 1)] {
        assert_eq!(send(&memory, SERVICE, port).1, expected, "port {port}");
        assert_eq!(send(&memory, SERVICE, port), (Reason::Flow, 1), "only the first packet is marked");
    }
    assert_eq!(summary(&memory), [(EventKind::Shadow, Egress, Reason::NoAllowedBackend, 3)]);
    // Post-DNAT: to an allowed backend, to a denied destination, and to the allowed backend with a masqueraded source.
    let post_dnat = |from, to| {
        memory.tc_index.set(marked);
        let reason = memory.run_post_dnat(&frame(from, to, protocol::UDP, 0, &udp([1000, 53])), VETH);
        assert_eq!(reason, Reason::NotIsolated);
        summary(&memory)
    };
    assert_eq!(post_dnat(POD, BACKEND), []);
    assert_eq!(post_dnat(POD, CLIENT), [(EventKind::Shadow, Egress, Reason::BackendDenied, 53)]);
    assert_eq!(post_dnat([192, 0, 2, 1], BACKEND), []);
    assert_eq!(shadow_denied(&memory, Egress), 2);
}

#[test]
fn shadow_mode_evaluates_a_datagram_by_its_first_fragment() {
    let mut memory = reporting_memory();
    memory.settings.set(Settings::default());
    change_endpoint(&mut memory, |endpoint| endpoint.shadow_ingress = DENIES);
    memory.tc_index.set(0);
    let first = frame(CLIENT, POD, protocol::UDP, MORE_FRAGMENTS, &udp([1000, 53]));
    assert_eq!(memory.run(Ingress, &first, VETH, OTHER_INTERFACE), Reason::NotIsolated);
    let later = frame(CLIENT, POD, protocol::UDP, 2, &[0; 8]);
    assert_eq!(memory.run(Ingress, &later, VETH, OTHER_INTERFACE), Reason::Flow);
    // A fragment with another identification: the first fragment of its datagram has not arrived.
    let mut orphan = later;
    orphan[19] = 9;
    assert_eq!(memory.run(Ingress, &orphan, VETH, OTHER_INTERFACE), Reason::NotIsolated);
    assert_eq!(summary(&memory), [(EventKind::Shadow, Ingress, Reason::NoRule, 53)]);
    assert_eq!(shadow_denied(&memory, Ingress), 1);
}

#[test]
fn with_observe_a_denied_flow_is_reported_once_and_is_denied_when_policies_are_enforced() {
    let mut memory = reporting_memory();
    memory.observe.set(true);
    // Policies isolate the pod in both directions. Replies have the reason `flow`, because the denied flow is recorded.
    change_endpoint(&mut memory, |endpoint| (endpoint.ingress, endpoint.egress) = (DENIES, DENIES));
    assert_eq!(request(&memory, SYN), Reason::NoRule);
    for _ in 0..2 {
        assert_eq!((reply(&memory, SYN_ACK), request(&memory, ACK)), (Reason::Flow, Reason::Flow));
    }
    let [event] = events(&memory)[..] else { panic!("one event") };
    assert_eq!((event.flags, event.reason), (event_flags::OBSERVED, Reason::NoRule as u8));
    // After a change of policies, replies and the initiator's next packet have the reason `revoked`, but pass. The
    // initiator's packet records the flow again.
    // This call simulates the change: it increments the endpoint's version.
    change_endpoint(&mut memory, |_| {});
    assert_eq!((reply(&memory, ACK), request(&memory, ACK)), (Reason::Revoked, Reason::Revoked));
    assert_eq!((reply(&memory, ACK), request(&memory, ACK)), (Reason::Flow, Reason::Flow));
    // An agent without `--observe` replaces the programs, and enforces the same policies.
    events(&memory);
    memory.wait(1);
    memory.observe.set(false);
    assert_eq!((request(&memory, ACK), reply(&memory, ACK)), (Reason::Revoked, Reason::Revoked));
    assert!(events(&memory).iter().all(|event| event.flags == 0 && event.reason == Reason::Revoked as u8));
    // An agent with `--observe` replaces the programs again. With `--observe`, the version that is stored in a flow has
    // an additional bit (`OBSERVED_VERSION`), so without `--observe`, the packets above were evaluated again. They were
    // denied, and a denied packet does not change the stored version. So this version is current again with
    // `--observe`, and the flow is not evaluated again.
    memory.observe.set(true);
    assert_eq!((request(&memory, ACK), reply(&memory, ACK)), (Reason::Flow, Reason::Flow), "already reported");
}
