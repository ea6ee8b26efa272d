//! Tests how the packets and bytes of flows are counted. [`Memory`] runs the packet programs on maps in memory, with a
//! clock that the test sets.

mod common;

use common::{ACK, CLIENT, DENIES, OTHER_INTERFACE, POD, SYN, SYN_ACK, VETH, change_endpoint, memory_with_pod};
use netpol_common::Direction::{Egress, Ingress};
use netpol_common::{
    Direction, DirectionPolicy, FlowEntry, FlowKey, IfIndex, PortSetId, Reason, Traffic, flow_state, protocol,
};
use netpol_ebpf::memory::Memory;

/// The length of an IPv4 and a TCP header.
const TCP_HEADERS: u64 = 40;
/// The length of an IPv4 and a UDP header.
const UDP_HEADERS: u64 = 28;

const RST: u8 = 0x04;

/// Returns maps with a pod that no policy isolates.
fn new_memory(count_traffic: bool) -> Memory {
    let memory = memory_with_pod();
    memory.count_traffic.set(count_traffic);
    memory
}

/// Returns an Ethernet frame with an IPv4 packet. `vlan`: a VLAN tag, or nothing.
fn frame(vlan: &[u8], from: [u8; 4], to: [u8; 4], protocol: u8, transport: &[u8]) -> Vec<u8> {
    let total = u16::try_from(20 + transport.len()).expect("a short packet");
    let mut frame = [&[2; 12][..], vlan, &[8, 0, 0x45, 0], &total.to_be_bytes(), &[0, 1]].concat();
    frame.extend([&[0, 0, 64, protocol, 0, 0][..], &from, &to, transport].concat());
    frame
}

/// Returns a TCP segment. `ports`: source and destination.
fn tcp(flags: u8, ports: [u16; 2], payload: usize) -> Vec<u8> {
    let mut segment = ports.map(u16::to_be_bytes).concat();
    segment.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, flags, 1, 0, 0, 0, 0, 0]);
    segment.resize(20 + payload, 0);
    segment
}

/// Returns a UDP datagram. `ports`: source and destination.
fn datagram(ports: [u16; 2], payload: usize) -> Vec<u8> {
    let mut datagram = [ports[0].to_be_bytes(), ports[1].to_be_bytes(), [0, 16], [0; 2]].concat();
    datagram.resize(8 + payload, 0);
    datagram
}

/// Evaluates, at the pod's interface, a TCP segment from the client's port 1000 to the pod's port 80.
fn request(memory: &Memory, flags: u8, payload: usize) -> Reason {
    memory.run(
        Ingress,
        &frame(&[], CLIENT, POD, protocol::TCP, &tcp(flags, [1000, 80], payload)),
        VETH,
        OTHER_INTERFACE,
    )
}

/// Evaluates, at the pod's interface, a TCP segment from the pod's port 80 to the client's port 1000.
fn reply(memory: &Memory, flags: u8, payload: usize) -> Reason {
    memory.run(Egress, &frame(&[], POD, CLIENT, protocol::TCP, &tcp(flags, [80, 1000], payload)), VETH, 0)
}

/// Returns the entry of a flow between the pod and the client.
fn flow(memory: &Memory, protocol: u8, pod_port: u16, remote_port: u16) -> FlowEntry {
    let key = FlowKey {
        ifindex: IfIndex(VETH),
        pod_address: POD,
        remote_address: CLIENT,
        pod_port: pod_port.to_be_bytes(),
        remote_port: remote_port.to_be_bytes(),
        protocol,
        zero: [0; 3],
    };
    memory.v4.flow(&key).expect("the flow was not recorded")
}

/// Returns the entry of the flow to which [`request`] and [`reply`] belong.
fn connection(memory: &Memory) -> FlowEntry {
    flow(memory, protocol::TCP, 80, 1000)
}

/// Returns the packets and bytes that the initiator has sent, and those of the replies.
fn counts(entry: &FlowEntry) -> [(u64, u64); 2] {
    [entry.sent, entry.replies].map(|Traffic { packets, bytes }| (packets, bytes))
}

#[test]
fn packets_and_bytes_are_counted_for_each_direction() {
    let memory = new_memory(true);
    request(&memory, SYN, 0);
    assert_eq!(counts(&connection(&memory)), [(1, TCP_HEADERS), (0, 0)], "the first packet");
    request(&memory, SYN, 0);
    reply(&memory, SYN_ACK, 0);
    request(&memory, ACK, 100);
    reply(&memory, ACK, 1000);
    reply(&memory, ACK, 1);
    assert_eq!(counts(&connection(&memory)), [(3, 3 * TCP_HEADERS + 100), (3, 3 * TCP_HEADERS + 1001)]);

    // The slow path: a frame with a VLAN tag. The tag is not counted, because lengths start at the IP header.
    let tagged = frame(&[0x81, 0, 0, 5], CLIENT, POD, protocol::TCP, &tcp(ACK, [1000, 80], 7));
    assert_eq!(memory.run(Ingress, &tagged, VETH, OTHER_INTERFACE), Reason::Flow);
    assert_eq!(counts(&connection(&memory))[0], (4, 4 * TCP_HEADERS + 107));

    // The pod is the initiator.
    let run = |direction: Direction, from, to, ports| {
        memory.run(direction, &frame(&[], from, to, protocol::UDP, &datagram(ports, 12)), VETH, OTHER_INTERFACE)
    };
    run(Egress, POD, CLIENT, [5000, 53]);
    run(Ingress, CLIENT, POD, [53, 5000]);
    run(Ingress, CLIENT, POD, [53, 5000]);
    assert_eq!(counts(&flow(&memory, protocol::UDP, 5000, 53)), [(1, UDP_HEADERS + 12), (2, 2 * (UDP_HEADERS + 12))]);
}

#[test]
fn each_segment_of_a_packet_with_segmentation_offload_counts() {
    let memory = new_memory(true);
    request(&memory, SYN, 0);
    // The next packet counts as 3 packets. Its bytes are counted once, with one header.
    memory.segments.set(3);
    request(&memory, ACK, 3000);
    assert_eq!(counts(&connection(&memory))[0], (4, 2 * TCP_HEADERS + 3000));
}

#[test]
fn a_denied_packet_changes_its_flow_only_by_marking_it_as_revoked() {
    for observe in [false, true] {
        let mut memory = new_memory(true);
        request(&memory, SYN, 0);
        let before = connection(&memory);
        change_endpoint(&mut memory, |endpoint| endpoint.ingress = DENIES);
        // With `--observe`, nothing is enforced, so the flow is not marked as revoked.
        memory.observe.set(observe);
        // Neither REPLIED nor RESET is stored, so the timeout stays that of a flow without replies.
        for flags in [SYN_ACK, RST] {
            assert_eq!(reply(&memory, flags, 0), Reason::Revoked);
        }
        let state = if observe { before.state } else { before.state | flow_state::REVOKED };
        assert_eq!(connection(&memory), FlowEntry { state, ..before }, "observe: {observe}");
    }
}

#[test]
fn nothing_is_counted_unless_counting_is_enabled() {
    let memory = new_memory(false);
    request(&memory, SYN, 0);
    let first = connection(&memory);
    request(&memory, ACK, 100);
    request(&memory, SYN, 0);
    assert_eq!(connection(&memory), first, "an unchanged entry");
    assert_eq!(counts(&first), [(0, 0), (0, 0)]);
}

#[test]
fn a_change_of_policy_keeps_the_counts_and_denied_packets_are_not_counted() {
    let mut memory = new_memory(true);
    request(&memory, SYN, 0);
    reply(&memory, SYN_ACK, 0);
    let started = connection(&memory).started;
    memory.wait(5);
    // First, the rules allow everything. Then they allow nothing.
    for ingress in [DirectionPolicy { any: PortSetId::ALL, ..DENIES }, DENIES] {
        change_endpoint(&mut memory, |endpoint| endpoint.ingress = ingress);
        let expected = if ingress == DENIES { Reason::Revoked } else { Reason::Flow };
        assert_eq!((request(&memory, ACK, 10), reply(&memory, ACK, 20)), (expected, expected));
    }
    let revoked = connection(&memory);
    assert_eq!(counts(&revoked), [(2, 2 * TCP_HEADERS + 10), (2, 2 * TCP_HEADERS + 20)]);
    assert_eq!((revoked.started, revoked.state & flow_state::REVOKED), (started, flow_state::REVOKED));

    // The flow is allowed again.
    change_endpoint(&mut memory, |endpoint| endpoint.ingress = DirectionPolicy::OPEN);
    assert_eq!(request(&memory, ACK, 0), Reason::Flow);
    let allowed = connection(&memory);
    assert_eq!((counts(&allowed)[0], allowed.state & flow_state::REVOKED), ((3, 3 * TCP_HEADERS + 10), 0));
}

#[test]
fn a_new_connection_with_the_same_ports_starts_at_zero() {
    let memory = new_memory(true);
    request(&memory, SYN, 0);
    reply(&memory, SYN_ACK, 0);
    let first = connection(&memory);
    memory.wait(5);
    request(&memory, SYN, 0);
    let second = connection(&memory);
    assert_eq!(counts(&second), [(1, TCP_HEADERS), (0, 0)]);
    assert_ne!(second.started, first.started);
}

#[test]
fn a_packet_is_not_counted_again_post_dnat() {
    let mut memory = new_memory(true);
    // A policy isolates the pod for egress, and allows everything.
    memory.endpoints.get_mut(&VETH).expect("the pod's endpoint").egress =
        DirectionPolicy { any: PortSetId::ALL, ..DENIES };
    let packet = frame(&[], POD, CLIENT, protocol::UDP, &datagram([5000, 53], 12));
    for count in 1..=2 {
        assert!(memory.run(Egress, &packet, VETH, 0).allows());
        memory.run_post_dnat(&packet, VETH);
        assert_eq!(counts(&flow(&memory, protocol::UDP, 5000, 53))[0], (count, count * (UDP_HEADERS + 12)));
    }
}
