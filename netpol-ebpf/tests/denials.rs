//! Tests of deny events: which budget (rate limit of a pod) an event is charged to, and that every denied packet is
//! counted. [`Memory`] runs the packet programs on maps in memory, with a clock that the test sets.
//!
//! Each flow causes at most one event a second. For this limit, a denied flow has a slot in the map `DENIALS`, in the
//! set of four slots that the hash of the flow selects. A flow can lose its slot to another flow of the same set.

use std::collections::HashSet;

use netpol_common::Direction::{Egress, Ingress};
use netpol_common::{
    DirectionPolicy, EVENT_BURST, EVENT_RATE, Endpoint, EndpointVersion, EventKind, FlowEvent, IfIndex, PortSetId,
    Reason, RuleSetId, event_budget, event_flags, protocol,
};
use netpol_ebpf::memory::Memory;

const OTHER_INTERFACE: u32 = 9;
const OUTSIDE: [u8; 4] = [192, 0, 2, 9];
/// Ethernet destinations: the address of a host, and a multicast address.
const HOST: [u8; 6] = [2; 6];
const MULTICAST: [u8; 6] = [0x01, 0x00, 0x5e, 0, 0, 0xfb];

/// Returns maps with 200 pods. Their endpoint IDs are 1 to 200, equal to the indices of their interfaces. All of their
/// traffic is denied.
fn memory_with_pods() -> Memory {
    let mut memory = Memory::default();
    // The rule set has no entries, so it allows nothing.
    let deny_all = DirectionPolicy { rule_set: RuleSetId(3), any: PortSetId::NONE };
    for id in 1..=200 {
        let endpoint = Endpoint {
            ifindex: IfIndex(id),
            version: EndpointVersion(1),
            ingress: deny_all,
            egress: deny_all,
            id,
            address_v4: address(id),
            address_v6: address_v6(id),
            ..Endpoint::default()
        };
        memory.endpoints.insert(id, endpoint);
    }
    memory
}

fn address(id: u32) -> [u8; 4] {
    [10, 0, 0, u8::try_from(id).expect("up to 200 pods")]
}

fn address_v6(id: u32) -> [u8; 16] {
    (0xfd_u128 << 120 | u128::from(id)).to_be_bytes()
}

fn udp(destination: [u8; 6], from: [u8; 4], to: [u8; 4], ports: [u16; 2]) -> Vec<u8> {
    let mut frame = [&destination[..], &[2; 6], &[8, 0, 0x45, 0, 0, 28, 0, 0, 0, 0, 64, protocol::UDP, 0, 0]].concat();
    frame.extend([&from[..], &to].concat());
    frame.extend([ports[0].to_be_bytes(), ports[1].to_be_bytes(), 8_u16.to_be_bytes(), [0; 2]].concat());
    frame
}

fn udp_v6(from: u128, to: u128) -> Vec<u8> {
    let mut frame = [&HOST[..], &[2; 6], &[0x86, 0xdd, 0x60, 0, 0, 0, 0, 8, protocol::UDP, 64]].concat();
    frame.extend([from.to_be_bytes(), to.to_be_bytes()].concat());
    frame.extend([0, 1, 0, 1, 0, 8, 0, 0]);
    frame
}

/// Sends a packet from a pod. The packet is denied. Each value of `flow` is another flow.
fn send(memory: &Memory, id: u32, flow: u32) {
    let [_, high, low, port] = flow.to_be_bytes();
    let to = [192, 168, high, low];
    let reason = memory.run(Egress, &udp(HOST, address(id), to, [1000, port.into()]), id, 0);
    assert_eq!(reason, Reason::NoRule);
}

/// Sends a packet to a pod. The packet is denied. Its source is the pod with the ID `source_endpoint`, or outside the
/// node if `source_endpoint` is 0. Each value of `flow` is another flow.
fn receive(memory: &Memory, id: u32, source_endpoint: u32, flow: u32) {
    let [a, b, c, d] = flow.to_be_bytes();
    let from = if source_endpoint == 0 { [172, 16 + (b & 15), c, d] } else { address(source_endpoint) };
    memory.tc_index.set(source_endpoint);
    let ports = [u16::from_be_bytes([c, d]), u16::from_be_bytes([a, b])];
    assert_eq!(memory.run(Ingress, &udp(HOST, from, address(id), ports), id, OTHER_INTERFACE), Reason::NoRule);
    memory.tc_index.set(0);
}

/// Returns the number of events that were charged to a budget.
fn count_of(events: &[FlowEvent], budget: u32) -> usize {
    events.iter().filter(|event| event.budget() == budget).count()
}

/// Checks that each packet caused an event or is counted as suppressed: in a later event, a slot or a budget.
fn check_all_counted(memory: &mut Memory, packets: u64) {
    let events = memory.events.borrow().clone();
    let with_events: u64 = events.iter().map(|event| 1 + u64::from(event.suppressed)).sum();
    let (budgets, slots) = memory.suppressed();
    assert_eq!(with_events + slots + budgets.iter().sum::<u64>(), packets);
}

#[test]
fn a_flood_of_one_pod_does_not_suppress_events_of_another_pod() {
    let mut memory = memory_with_pods();
    let (mut packets, mut flow) = (0, 0);
    // Five seconds, in steps of a jiffy (4 ms). In each second, 100,000 packets of pod 1 and 50 packets of pod 2 are
    // denied. Each packet is a new flow, so only the budgets limit the events.
    for jiffy in 0..1250 {
        for _ in 0..400 {
            flow += 1;
            send(&memory, 1, flow);
        }
        packets += 400;
        if jiffy % 5 == 0 {
            send(&memory, 2, flow);
            packets += 1;
        }
        memory.now.set(memory.now.get() + 1);
    }
    let events = memory.events.borrow().clone();
    assert_eq!(count_of(&events, event_budget(2, Egress, EventKind::Denied)), 250);
    let flood = count_of(&events, event_budget(1, Egress, EventKind::Denied)) as u64;
    assert!((EVENT_BURST..=EVENT_BURST + 5 * EVENT_RATE).contains(&flood), "{flood}");
    check_all_counted(&mut memory, packets);
    assert!(memory.suppressed().0[event_budget(1, Egress, EventKind::Denied) as usize] > 490_000);
    assert_eq!(memory.suppressed().0[event_budget(2, Egress, EventKind::Denied) as usize], 0);
}

#[test]
fn a_flood_is_charged_to_the_sending_pod_and_outside_traffic_to_the_receiving_pod() {
    let mut memory = memory_with_pods();
    for flow in 0..50_000 {
        receive(&memory, 2, 1, flow);
        if flow % 1000 == 0 {
            receive(&memory, 2, 3, flow);
            receive(&memory, 2, 0, flow);
        }
    }
    let events = memory.events.borrow().clone();
    assert_eq!(count_of(&events, event_budget(1, Egress, EventKind::Denied)) as u64, EVENT_BURST);
    assert_eq!(
        (
            count_of(&events, event_budget(3, Egress, EventKind::Denied)),
            count_of(&events, event_budget(2, Ingress, EventKind::Denied))
        ),
        (50, 50)
    );
    assert!(events.iter().filter(|event| event.source_endpoint == 1).all(|event| event.endpoint == 2));
    check_all_counted(&mut memory, 50_100);
}

#[test]
fn twenty_floods_do_not_suppress_events_of_other_pods() {
    let mut memory = memory_with_pods();
    let mut packets = 0;
    for round in 0..1000 {
        for id in 1..=20 {
            send(&memory, id, round * 20 + id);
        }
        // Each of the other pods sends the same flow in all rounds.
        for id in 21..=200 {
            send(&memory, id, 7);
        }
        packets += 200;
    }
    let events = memory.events.borrow().clone();
    for id in 1..=20 {
        assert_eq!(count_of(&events, event_budget(id, Egress, EventKind::Denied)) as u64, EVENT_BURST);
    }
    let events_of_others: Vec<usize> =
        (21..=200).map(|id| count_of(&events, event_budget(id, Egress, EventKind::Denied))).collect();
    assert!(events_of_others.iter().all(|events| *events >= 1), "{events_of_others:?}");
    // The floods take at most 20 × `EVENT_BURST` = 4,000 of 16,384 slots, so few of the other flows lose their slot and
    // are reported once more.
    assert!(events_of_others.iter().sum::<usize>() < 190, "{events_of_others:?}");
    check_all_counted(&mut memory, packets);
}

#[test]
fn flows_in_the_same_set_are_limited_separately() {
    // Pairs of flows. If the two flows of a pair shared one slot, each packet would take the slot from the other flow
    // and cause an event.
    let mut event_counts = HashSet::new();
    for other in 1..100 {
        let memory = memory_with_pods();
        for _ in 0..20 {
            send(&memory, 1, 0);
            send(&memory, 1, other);
        }
        event_counts.insert(memory.events.borrow().len());
    }
    assert_eq!(event_counts, HashSet::from([2]));
    // 4,000 flows: 20 flows of each pod, with ten packets each.
    let memory = memory_with_pods();
    for _ in 0..10 {
        for id in 1..=200 {
            (0..20).for_each(|flow| send(&memory, id, flow));
        }
    }
    let events = memory.events.borrow().len();
    // If 4,000 flows are distributed at random over 4,096 sets of four slots, about 15 sets have more than four flows.
    assert!((4000..4700).contains(&events), "4,000 flows caused {events} events");
}

#[test]
fn a_flow_is_reported_again_after_a_second_with_the_number_of_suppressed_packets() {
    let mut memory = memory_with_pods();
    for second in 0..10 {
        for _ in 0..100 {
            send(&memory, 1, 0);
        }
        let events = memory.events.borrow().len();
        assert_eq!(events, second + 1);
        memory.wait(1);
    }
    assert!(memory.events.borrow()[1..].iter().all(|event| event.suppressed == 99));
    check_all_counted(&mut memory, 1000);
}

#[test]
fn crafted_packets_cannot_take_the_slot_of_another_flow() {
    // The attack is on a hash such as `mix(low) ^ high`. `low` and `high` are the two halves of an address, and `mix`
    // multiplies by an odd number and then computes `x ^ (x >> 32)`. `crafted` differs from `destination` in bit 63 of
    // `low`. The multiplication leaves this change in bit 63, and the shift copies it to bit 31. `crafted` also differs
    // in bits 63 and 31 of `high`, so the changes cancel each other out. Both flows would have the same hash, even if
    // each half were XORed with a secret key.
    let (source, destination) = (u128::from_be_bytes(address_v6(1)), 0x2001_0db8_u128 << 96);
    let mut memory = memory_with_pods();
    for key in 0..200_u32 {
        memory.event_key = std::array::from_fn(|word| {
            let word = u32::try_from(word).expect("a small number");
            (key * 16 + word + 1).wrapping_mul(0x9e37_79b9)
        });
        memory.events.borrow_mut().clear();
        let crafted = destination ^ 1 << 63 ^ (1 << 63 | 1 << 31) << 64;
        for destination in [destination, crafted] {
            assert_eq!(memory.run(Egress, &udp_v6(source, destination), 1, 0), Reason::NoRule);
        }
        assert_eq!(memory.events.borrow().len(), 2, "key {key}");
        // Restores the budget of the pod, so that the budget never limits the events.
        memory.wait(5);
    }
}

#[test]
fn the_copies_of_a_multicast_packet_at_all_receiving_pods_are_one_flow() {
    let mut memory = memory_with_pods();
    for _ in 0..3 {
        for id in 2..=200 {
            memory.tc_index.set(1);
            let frame = udp(MULTICAST, address(1), [224, 0, 0, 251], [5353, 5353]);
            assert_eq!(memory.run(Ingress, &frame, id, OTHER_INTERFACE), Reason::NoRule);
        }
    }
    memory.tc_index.set(0);
    assert_eq!(memory.run(Egress, &udp(MULTICAST, address(1), [224, 0, 0, 251], [5353, 5353]), 1, 0), Reason::NoRule);
    let events = memory.events.borrow().clone();
    assert_eq!(events.len(), 2, "one event for the receivers, one for the sender");
    assert!(events.iter().all(|event| event.flags == event_flags::GROUP));
    check_all_counted(&mut memory, 3 * 199 + 1);
}

#[test]
fn events_for_frames_without_an_ip_header_or_endpoint_are_limited() {
    let mut memory = memory_with_pods();
    // A frame of LLDP has no IP header, and interface 999 has no endpoint.
    let lldp = [&HOST[..], &[2; 6], &[0x88, 0xcc, 0, 0]].concat();
    for _ in 0..100 {
        assert_eq!(memory.run(Egress, &lldp, 1, 0), Reason::NotIp);
        assert_eq!(
            memory.run(Ingress, &udp(HOST, OUTSIDE, address(1), [1, 2]), 999, OTHER_INTERFACE),
            Reason::NoEndpoint
        );
    }
    let events = memory.events.borrow().clone();
    let reported: Vec<_> = events.iter().map(|event| (event.reason, event.family, event.endpoint)).collect();
    assert_eq!(reported, [(Reason::NotIp as u8, 0, 1), (Reason::NoEndpoint as u8, 0, 0)]);
    check_all_counted(&mut memory, 200);
}
