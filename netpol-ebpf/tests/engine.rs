//! The engine on hash maps, where time can be set: what is hard to reach in the kernel. The rest is in `tests/packets.rs`.

use netpol_common::Direction::{Egress, Ingress};
use netpol_common::{
    AddressEntry, AllowEntry, AllowKey, ClassId, DirectionPolicy, Endpoint, Generation, IfIndex, PortSetId, Reason,
    RuleId, RuleSetId, protocol,
};
use netpol_ebpf::memory::{HZ, Memory};
use netpol_ebpf::timeout;

const VETH: u32 = 7;
const ELSEWHERE: u32 = 9;
const POD: [u8; 4] = [10, 0, 0, 1];
const FRIEND: [u8; 4] = [10, 0, 0, 2];
const RULES: RuleSetId = RuleSetId(3);
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;
const FIN: u8 = 0x11;
const RST: u8 = 0x04;

/// A pod that is isolated for ingress, whose friend may send it everything.
fn pod() -> Memory {
    let mut memory = Memory::default();
    let ingress = DirectionPolicy { rule_set: RULES, any: PortSetId::NONE };
    let endpoint = Endpoint {
        ifindex: IfIndex(VETH),
        generation: Generation(1),
        ingress,
        egress: DirectionPolicy::OPEN,
        id: 1,
        address_v4: POD,
        ..Endpoint::default()
    };
    memory.endpoints.insert(VETH, endpoint);
    memory.v4.addresses.insert(FRIEND, AddressEntry { class: ClassId(1), flags: 0, endpoint: 0 });
    let everything = AllowEntry { port_set: PortSetId::ALL, rule: RuleId(1) };
    memory.allow.insert(AllowKey { rule_set: RULES, class: ClassId(1) }, everything);
    memory
}

/// Nobody is a friend any more.
fn revoke(memory: &mut Memory) {
    memory.allow.clear();
    memory.endpoints.get_mut(&VETH).expect("the pod's endpoint").generation.0 += 1;
}

fn frame(from: [u8; 4], to: [u8; 4], protocol: u8, transport: &[u8]) -> Vec<u8> {
    let total = u16::try_from(20 + transport.len()).expect("a short packet");
    let mut frame = [&[2; 12][..], &[8, 0, 0x45, 0], &total.to_be_bytes(), &[0; 4], &[64, protocol, 0, 0]].concat();
    frame.extend([&from[..], &to, transport].concat());
    frame
}

fn tcp(flags: u8, ports: [u16; 2]) -> Vec<u8> {
    let mut header = [ports[0].to_be_bytes(), ports[1].to_be_bytes()].concat();
    header.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, flags, 1, 0, 0, 0, 0, 0]);
    header
}

fn asks(memory: &Memory, flags: u8) -> Reason {
    memory.run(Ingress, &frame(FRIEND, POD, protocol::TCP, &tcp(flags, [1000, 80])), VETH, ELSEWHERE)
}

fn answers(memory: &Memory, flags: u8) -> Reason {
    memory.run(Egress, &frame(POD, FRIEND, protocol::TCP, &tcp(flags, [80, 1000])), VETH, 0)
}

#[test]
fn a_revoked_flow_is_not_the_free_sides_new_one() {
    let mut memory = pod();
    assert_eq!(asks(&memory, SYN), Reason::Rule);
    assert_eq!(answers(&memory, SYN | ACK), Reason::Flow);
    revoke(&mut memory);
    // The pod may open what it likes; this it did not open.
    for _ in 0..3 {
        assert_eq!(answers(&memory, ACK), Reason::Revoked);
        assert_eq!(asks(&memory, ACK), Reason::Revoked);
        memory.wait(timeout::TCP_OPEN - 1);
    }
    // Nor does pretending that it ended help.
    assert_eq!(answers(&memory, FIN), Reason::Revoked);
    memory.wait(timeout::TCP_OPEN - 1);
    assert_eq!(answers(&memory, ACK), Reason::Revoked);
    assert_eq!(answers(&memory, SYN), Reason::NotIsolated, "a connection of its own");
    assert_eq!(asks(&memory, SYN | ACK), Reason::Flow);
}

#[test]
fn flows_live_as_long_as_their_state_says_also_where_jiffies_wrap() {
    for (packets, seconds) in [
        (&[SYN][..], timeout::TCP_UNANSWERED),
        (&[SYN, ACK, ACK], timeout::TCP_OPEN),
        // Each of these may be forged, or be ignored by the endpoints.
        (&[SYN, ACK, FIN], timeout::TCP_OPEN),
        (&[SYN, FIN, FIN], timeout::TCP_OPEN),
        (&[SYN, 0x14], timeout::TCP_OPEN),
        (&[SYN, ACK, RST], timeout::TCP_OPEN),
        (&[SYN, ACK, SYN], timeout::TCP_OPEN),
        (&[SYN, ACK, ACK, SYN], timeout::TCP_OPEN),
    ] {
        for (later, expected) in [(seconds - 1, Reason::Flow), (seconds + 1, Reason::NotIsolated)] {
            let memory = pod();
            memory.now.set(u32::MAX - HZ);
            for (number, &flags) in packets.iter().enumerate() {
                let reason = if number % 2 == 0 { asks(&memory, flags) } else { answers(&memory, flags) };
                assert!(reason.allows(), "{packets:x?}: {reason:?}");
            }
            memory.wait(later);
            assert_eq!(answers(&memory, ACK), expected, "{packets:x?} after {later} s");
        }
    }
}

#[test]
fn a_change_while_a_packet_is_judged_is_seen_by_the_next() {
    let mut memory = pod();
    assert_eq!(asks(&memory, SYN), Reason::Rule);
    // What the agent writes before the generation does not matter to what is known.
    memory.allow.clear();
    assert_eq!(asks(&memory, ACK), Reason::Flow);
    revoke(&mut memory);
    assert_eq!(asks(&memory, ACK), Reason::Revoked);
}

#[test]
fn an_icmp_error_revives_nothing() {
    let mut memory = pod();
    assert_eq!(asks(&memory, SYN), Reason::Rule);
    let quoted = frame(POD, FRIEND, protocol::TCP, &tcp(ACK, [80, 1000]));
    let error = [&[3, 4, 0, 0, 0, 0, 5, 0][..], &quoted[14..]].concat();
    let error = frame([192, 0, 2, 1], POD, protocol::ICMP, &error);
    let tells = |memory: &Memory| memory.run(Ingress, &error, VETH, ELSEWHERE);
    assert_eq!(tells(&memory), Reason::IcmpError);
    revoke(&mut memory);
    assert_eq!(tells(&memory), Reason::Revoked);
    assert_eq!(answers(&memory, ACK), Reason::Revoked);
}
