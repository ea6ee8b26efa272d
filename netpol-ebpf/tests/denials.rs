//! Reports of denied packets on hash maps, where time can be set: who pays for them, and that nothing is lost uncounted.

use std::collections::HashSet;

use netpol_common::Direction::{Egress, Ingress};
use netpol_common::{
    DenyEvent, DirectionPolicy, EVENT_BURST, EVENT_RATE, Endpoint, Generation, IfIndex, PortSetId, Reason, RuleSetId,
    event_budget, event_flags, protocol,
};
use netpol_ebpf::memory::Memory;

const ELSEWHERE: u32 = 9;
const OUTSIDE: [u8; 4] = [192, 0, 2, 9];
/// Ethernet destinations.
const HOST: [u8; 6] = [2; 6];
const MULTICAST: [u8; 6] = [0x01, 0x00, 0x5e, 0, 0, 0xfb];

/// Pods with the IDs and interfaces 1 to 200, which may not send or receive anything.
fn pods() -> Memory {
    let mut memory = Memory::default();
    let nothing = DirectionPolicy { rule_set: RuleSetId(3), any: PortSetId::NONE };
    for id in 1..=200 {
        let endpoint = Endpoint {
            ifindex: IfIndex(id),
            generation: Generation(1),
            ingress: nothing,
            egress: nothing,
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

/// A pod sends one more flow.
fn sends(memory: &Memory, id: u32, flow: u32) {
    let [_, high, low, port] = flow.to_be_bytes();
    let to = [192, 168, high, low];
    let denied = memory.run(Egress, &udp(HOST, address(id), to, [1000, port.into()]), id, 0);
    assert_eq!(denied, Reason::NoRule);
}

/// A pod receives one more flow from another pod of the node, or from elsewhere (0).
fn receives(memory: &Memory, id: u32, sender: u32, flow: u32) {
    let [a, b, c, d] = flow.to_be_bytes();
    let from = if sender == 0 { [172, 16 + (b & 15), c, d] } else { address(sender) };
    memory.sender.set(sender);
    let ports = [u16::from_be_bytes([c, d]), u16::from_be_bytes([a, b])];
    assert_eq!(memory.run(Ingress, &udp(HOST, from, address(id), ports), id, ELSEWHERE), Reason::NoRule);
    memory.sender.set(0);
}

fn of(events: &[DenyEvent], budget: u32) -> usize {
    events.iter().filter(|event| event.budget() == budget).count()
}

/// Nothing may be neither reported, nor counted for the next report, nor counted at its budget.
fn all_are_accounted_for(memory: &mut Memory, packets: u64) {
    let events = memory.events.borrow().clone();
    let with_events: u64 = events.iter().map(|event| 1 + u64::from(event.suppressed)).sum();
    let (budgets, places) = memory.suppressed();
    assert_eq!(with_events + places + budgets.iter().sum::<u64>(), packets);
}

#[test]
fn a_flood_of_one_pod_leaves_the_reports_of_another_alone() {
    let mut memory = pods();
    let (mut packets, mut flow) = (0, 0);
    // Five seconds of 100,000 denials each, in steps of a jiffy (4 ms); the victim has 50 a second.
    for jiffy in 0..1250 {
        for _ in 0..400 {
            flow += 1;
            sends(&memory, 1, flow);
        }
        packets += 400;
        if jiffy % 5 == 0 {
            sends(&memory, 2, flow);
            packets += 1;
        }
        memory.now.set(memory.now.get() + 1);
    }
    let events = memory.events.borrow().clone();
    assert_eq!(of(&events, event_budget(2, Egress)), 250);
    let flood = of(&events, event_budget(1, Egress)) as u64;
    assert!((EVENT_BURST..=EVENT_BURST + 5 * EVENT_RATE).contains(&flood), "{flood}");
    all_are_accounted_for(&mut memory, packets);
    assert!(memory.suppressed().0[event_budget(1, Egress) as usize] > 490_000);
    assert_eq!(memory.suppressed().0[event_budget(2, Egress) as usize], 0);
}

#[test]
fn who_floods_another_pod_pays_for_it_and_what_comes_from_outside_is_charged_to_the_receiver() {
    let mut memory = pods();
    for flow in 0..50_000 {
        receives(&memory, 2, 1, flow);
        if flow % 1000 == 0 {
            receives(&memory, 2, 3, flow);
            receives(&memory, 2, 0, flow);
        }
    }
    let events = memory.events.borrow().clone();
    assert_eq!(of(&events, event_budget(1, Egress)) as u64, EVENT_BURST);
    assert_eq!((of(&events, event_budget(3, Egress)), of(&events, event_budget(2, Ingress))), (50, 50));
    assert!(events.iter().filter(|event| event.source_endpoint == 1).all(|event| event.endpoint == 2));
    all_are_accounted_for(&mut memory, 50_100);
}

#[test]
fn twenty_floods_leave_all_other_pods_their_reports_and_their_limit() {
    let mut memory = pods();
    let mut packets = 0;
    for round in 0..1000 {
        for id in 1..=20 {
            sends(&memory, id, round * 20 + id);
        }
        // The same flow each time.
        for id in 21..=200 {
            sends(&memory, id, 7);
        }
        packets += 200;
    }
    let events = memory.events.borrow().clone();
    for id in 1..=20 {
        assert_eq!(of(&events, event_budget(id, Egress)) as u64, EVENT_BURST);
    }
    let quiet: Vec<usize> = (21..=200).map(|id| of(&events, event_budget(id, Egress))).collect();
    assert!(quiet.iter().all(|events| *events >= 1), "{quiet:?}");
    // 4,000 flows of floods in 16,384 places: hardly any other flow loses its own, and is reported once more.
    assert!(quiet.iter().sum::<usize>() < 190, "{quiet:?}");
    all_are_accounted_for(&mut memory, packets);
}

#[test]
fn flows_that_share_a_set_keep_the_limit() {
    // 2,000 packets of two flows each: with one place for both, each packet would be a new flow's first.
    let mut sets = HashSet::new();
    for other in 1..100 {
        let memory = pods();
        for _ in 0..20 {
            sends(&memory, 1, 0);
            sends(&memory, 1, other);
        }
        sets.insert(memory.events.borrow().len());
    }
    assert_eq!(sets, HashSet::from([2]));
    // Eight times as many flows as there are budgets for, each of which sends ten times.
    let memory = pods();
    for _ in 0..10 {
        for id in 1..=200 {
            (0..20).for_each(|flow| sends(&memory, id, flow));
        }
    }
    let events = memory.events.borrow().len();
    // In 4,096 sets at random, some 15 have more than four.
    assert!((4000..4700).contains(&events), "4,000 flows made {events} events");
}

#[test]
fn a_flow_is_reported_again_after_a_second_with_all_that_came_meanwhile() {
    let mut memory = pods();
    for second in 0..10 {
        for _ in 0..100 {
            sends(&memory, 1, 0);
        }
        let events = memory.events.borrow().len();
        assert_eq!(events, second + 1);
        memory.wait(1);
    }
    assert!(memory.events.borrow()[1..].iter().all(|event| event.suppressed == 99));
    all_are_accounted_for(&mut memory, 1000);
}

#[test]
fn packets_cannot_be_crafted_to_take_another_flows_place() {
    // Bits that a multiplication by an odd number carries nowhere: with a hash that only mixes a key in, these two flows are one,
    // whatever the key is.
    let (source, destination) = (u128::from_be_bytes(address_v6(1)), 0x2001_0db8_u128 << 96);
    let mut memory = pods();
    for key in 0..200_u32 {
        memory.denial_key = std::array::from_fn(|word| {
            let word = u32::try_from(word).expect("a small number");
            (key * 16 + word + 1).wrapping_mul(0x9e37_79b9)
        });
        memory.events.borrow_mut().clear();
        let crafted = destination ^ 1 << 63 ^ (1 << 63 | 1 << 31) << 64;
        for destination in [destination, crafted] {
            assert_eq!(memory.run(Egress, &udp_v6(source, destination), 1, 0), Reason::NoRule);
        }
        assert_eq!(memory.events.borrow().len(), 2, "key {key}");
        memory.wait(5);
    }
}

#[test]
fn a_multicast_packet_is_one_flow_at_all_pods_that_receive_it() {
    let mut memory = pods();
    for _ in 0..3 {
        for id in 2..=200 {
            memory.sender.set(1);
            let frame = udp(MULTICAST, address(1), [224, 0, 0, 251], [5353, 5353]);
            assert_eq!(memory.run(Ingress, &frame, id, ELSEWHERE), Reason::NoRule);
        }
    }
    memory.sender.set(0);
    assert_eq!(memory.run(Egress, &udp(MULTICAST, address(1), [224, 0, 0, 251], [5353, 5353]), 1, 0), Reason::NoRule);
    let events = memory.events.borrow().clone();
    assert_eq!(events.len(), 2, "one at the receivers, one at the sender");
    assert!(events.iter().all(|event| event.flags == event_flags::GROUP));
    all_are_accounted_for(&mut memory, 3 * 199 + 1);
}

#[test]
fn what_has_no_ip_header_and_no_endpoint_is_reported_within_a_budget_too() {
    let mut memory = pods();
    let stp = [&HOST[..], &[2; 6], &[0x88, 0xcc, 0, 0]].concat();
    for _ in 0..100 {
        assert_eq!(memory.run(Egress, &stp, 1, 0), Reason::NotIp);
        assert_eq!(memory.run(Ingress, &udp(HOST, OUTSIDE, address(1), [1, 2]), 999, ELSEWHERE), Reason::NoEndpoint);
    }
    let events = memory.events.borrow().clone();
    let said: Vec<_> = events.iter().map(|event| (event.reason, event.family, event.endpoint)).collect();
    assert_eq!(said, [(Reason::NotIp as u8, 0, 1), (Reason::NoEndpoint as u8, 0, 0)]);
    all_are_accounted_for(&mut memory, 200);
}
