//! Tests the eBPF programs in cases that are hard to reach in the kernel. [`Memory`] runs the code of the programs on
//! maps in memory, with a clock that the test sets. Other tests are in `tests/tests/packets`.

use netpol_common::Direction::{Egress, Ingress};
use netpol_common::{
    AddressEntry, AllowEntry, AllowKey, ClassId, DirectionPolicy, Endpoint, EndpointVersion, FlowKey, IfIndex,
    PortSetId, Reason, RuleId, RuleSetId, protocol,
};
use netpol_ebpf::memory::{HZ, Memory};
use netpol_ebpf::timeout;

/// The pod's interface.
const VETH: u32 = 7;
/// The interface on which the node receives packets to the pod.
const OTHER_INTERFACE: u32 = 9;
const POD: [u8; 4] = [10, 0, 0, 1];
const CLIENT: [u8; 4] = [10, 0, 0, 2];
const RULE_SET: RuleSetId = RuleSetId(3);
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;
const FIN_ACK: u8 = 0x11;
const RST: u8 = 0x04;
const RST_ACK: u8 = 0x14;

/// Returns maps in memory with one pod, which is isolated for ingress, but not for egress. A rule allows everything
/// from `CLIENT` to the pod.
fn memory_with_pod() -> Memory {
    let mut memory = Memory::default();
    let ingress = DirectionPolicy { rule_set: RULE_SET, any: PortSetId::NONE };
    let endpoint = Endpoint {
        ifindex: IfIndex(VETH),
        version: EndpointVersion(1),
        ingress,
        egress: DirectionPolicy::OPEN,
        id: 1,
        address_v4: POD,
        ..Endpoint::default()
    };
    memory.endpoints.insert(VETH, endpoint);
    memory.v4.addresses.insert(CLIENT, AddressEntry { class: ClassId(1), flags: 0, endpoint: 0 });
    let everything = AllowEntry { port_set: PortSetId::ALL, rule: RuleId(1) };
    memory.allow.insert(AllowKey { rule_set: RULE_SET, class: ClassId(1) }, everything);
    memory
}

/// Removes the rule that allows everything from `CLIENT`, so that flows from `CLIENT` are revoked.
fn revoke(memory: &mut Memory) {
    memory.allow.clear();
    memory.endpoints.get_mut(&VETH).expect("the pod's endpoint").version.0 += 1;
}

/// Returns an Ethernet frame with an IPv4 packet.
fn frame(from: [u8; 4], to: [u8; 4], protocol: u8, transport: &[u8]) -> Vec<u8> {
    let total = u16::try_from(20 + transport.len()).expect("a short packet");
    let mut frame = [&[2; 12][..], &[8, 0, 0x45, 0], &total.to_be_bytes(), &[0; 4], &[64, protocol, 0, 0]].concat();
    frame.extend([&from[..], &to, transport].concat());
    frame
}

/// Returns a TCP header. `ports`: the source port and the destination port.
fn tcp(flags: u8, ports: [u16; 2]) -> Vec<u8> {
    let mut header = [ports[0].to_be_bytes(), ports[1].to_be_bytes()].concat();
    header.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, flags, 1, 0, 0, 0, 0, 0]);
    header
}

/// Evaluates a packet from `CLIENT` to the pod.
fn to_pod(memory: &Memory, flags: u8) -> Reason {
    memory.run(Ingress, &frame(CLIENT, POD, protocol::TCP, &tcp(flags, [1000, 80])), VETH, OTHER_INTERFACE)
}

/// Evaluates a packet from the pod to `CLIENT`, of the same connection as [`to_pod`].
fn from_pod(memory: &Memory, flags: u8) -> Reason {
    memory.run(Egress, &frame(POD, CLIENT, protocol::TCP, &tcp(flags, [80, 1000])), VETH, 0)
}

#[test]
fn a_reply_in_a_revoked_flow_does_not_start_a_new_flow() {
    let mut memory = memory_with_pod();
    assert_eq!(to_pod(&memory, SYN), Reason::Rule);
    assert_eq!(from_pod(&memory, SYN | ACK), Reason::Flow);
    revoke(&mut memory);
    // The pod may initiate any flow, but it did not initiate this one.
    for _ in 0..3 {
        assert_eq!(from_pod(&memory, ACK), Reason::Revoked);
        assert_eq!(to_pod(&memory, ACK), Reason::Revoked);
        memory.wait(timeout::TCP_ESTABLISHED - 1);
    }
    // After a FIN, the flow is still revoked, although the FIN could be the end of the flow.
    assert_eq!(from_pod(&memory, FIN_ACK), Reason::Revoked);
    memory.wait(timeout::TCP_ESTABLISHED - 1);
    assert_eq!(from_pod(&memory, ACK), Reason::Revoked);
    assert_eq!(from_pod(&memory, SYN), Reason::NotIsolated, "a connection that the pod initiates");
    assert_eq!(to_pod(&memory, SYN | ACK), Reason::Flow);
}

#[test]
fn flows_time_out_according_to_their_state_even_if_jiffies_wrap() {
    // The flags of the packets, and the timeout of the flow after them.
    for (packets, timeout) in [
        (&[SYN][..], timeout::TCP_UNREPLIED),
        (&[SYN, ACK, ACK], timeout::TCP_ESTABLISHED),
        // In each of the following rows, the last packet may be forged, or its receiver may ignore it. So this packet
        // does not shorten the timeout.
        (&[SYN, ACK, FIN_ACK], timeout::TCP_ESTABLISHED),
        (&[SYN, FIN_ACK, FIN_ACK], timeout::TCP_ESTABLISHED),
        (&[SYN, RST_ACK], timeout::TCP_ESTABLISHED),
        (&[SYN, ACK, RST], timeout::TCP_ESTABLISHED),
        (&[SYN, ACK, SYN], timeout::TCP_ESTABLISHED),
        (&[SYN, ACK, ACK, SYN], timeout::TCP_ESTABLISHED),
    ] {
        // After the timeout, the flow is not known any more. So the pod's packet starts a new flow, which is allowed
        // because the pod is not isolated for egress.
        for (seconds, expected) in [(timeout - 1, Reason::Flow), (timeout + 1, Reason::NotIsolated)] {
            let memory = memory_with_pod();
            // The 32-bit clock wraps after one second.
            memory.now.set(u32::MAX - HZ);
            // The client and the pod send in turn.
            for (number, &flags) in packets.iter().enumerate() {
                let reason = if number % 2 == 0 { to_pod(&memory, flags) } else { from_pod(&memory, flags) };
                assert!(reason.allows(), "{packets:x?}: {reason:?}");
            }
            memory.wait(seconds);
            assert_eq!(from_pod(&memory, ACK), expected, "{packets:x?} after {seconds} s");
        }
    }
}

#[test]
fn a_change_applies_to_known_flows_only_after_the_version_is_written() {
    let mut memory = memory_with_pod();
    assert_eq!(to_pod(&memory, SYN), Reason::Rule);
    // The rule is removed, but the endpoint's version is not written yet: the known flow is not affected.
    memory.allow.clear();
    assert_eq!(to_pod(&memory, ACK), Reason::Flow);
    // `revoke` also writes the version.
    revoke(&mut memory);
    assert_eq!(to_pod(&memory, ACK), Reason::Revoked);
}

#[test]
fn an_icmp_error_does_not_change_a_flow() {
    let mut memory = memory_with_pod();
    assert_eq!(to_pod(&memory, SYN), Reason::Rule);
    let key = FlowKey {
        ifindex: IfIndex(VETH),
        pod_address: POD,
        remote_address: CLIENT,
        pod_port: 80_u16.to_be_bytes(),
        remote_port: 1000_u16.to_be_bytes(),
        protocol: protocol::TCP,
        zero: [0; 3],
    };
    let quoted = frame(POD, CLIENT, protocol::TCP, &tcp(ACK, [80, 1000]));
    // "Fragmentation needed", with an MTU of 1280. It quotes a packet of the flow.
    let error = [&[3, 4, 0, 0, 0, 0, 5, 0][..], &quoted[14..]].concat();
    let error = frame([192, 0, 2, 1], POD, protocol::ICMP, &error);
    let send_error = |memory: &Memory| memory.run(Ingress, &error, VETH, OTHER_INTERFACE);
    let recorded = memory.v4.flow(&key).expect("the flow of the request");
    for _ in 0..2 {
        memory.wait(1);
        assert_eq!(send_error(&memory), Reason::IcmpError);
        assert_eq!(memory.v4.flow(&key), Some(recorded));
        // The flow is still allowed, but has to be evaluated again.
        memory.endpoints.get_mut(&VETH).expect("the pod's endpoint").version.0 += 1;
    }
    revoke(&mut memory);
    assert_eq!(send_error(&memory), Reason::Revoked);
    assert_eq!(from_pod(&memory, ACK), Reason::Revoked);
}
