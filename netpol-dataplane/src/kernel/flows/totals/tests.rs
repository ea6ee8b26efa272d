//! Tests of [`Tracker`].

use std::net::Ipv4Addr;

use netpol_common::{Direction, FlowKey, flow_state, protocol};

use super::*;

/// Jiffies per second.
const HZ: u32 = 250;
/// The interfaces of two pods.
const POD: IfIndex = IfIndex(7);
const OTHER: IfIndex = IfIndex(8);

/// A tracker with a clock that the test sets.
struct TestTracker {
    tracker: Tracker,
    reader: FlowTotalsReader,
    clocks: Clocks,
    /// The existing endpoints: their interfaces by endpoint ID.
    endpoints: BTreeMap<u32, IfIndex>,
}

impl TestTracker {
    fn new(mode: FlowTotalsMode) -> Self {
        let (tracker, reader) = Tracker::start(mode, HZ).expect("no totals are recorded");
        let clocks = Clocks::read(HZ);
        let mut test = Self { tracker, reader, clocks, endpoints: BTreeMap::from([(1, POD), (2, OTHER)]) };
        // The first reading is special: see `flows_from_before_the_agent_are_not_recorded_again`.
        assert!(test.read(2, &[]).is_empty());
        test
    }

    /// Reads these flows, this number of seconds after the last reading, and returns the records.
    fn read(&mut self, seconds: u32, flows: &[(FlowKey<[u8; 4]>, FlowEntry)]) -> Vec<FlowTotals> {
        let elapsed = Duration::from_secs(seconds.into());
        self.clocks.jiffies = self.clocks.jiffies.wrapping_add(seconds * HZ);
        (self.clocks.now, self.clocks.time) = (self.clocks.now + elapsed, self.clocks.time + elapsed);
        self.tracker.begin(self.clocks);
        for (key, entry) in flows {
            // The endpoint ID (1) is only copied to the record, and no test checks it.
            self.tracker.flow(1, key, entry);
        }
        self.tracker.finish(&self.endpoints);
        let mut records = Vec::new();
        while let Ok(sent) = self.reader.totals.try_recv() {
            records.extend(sent);
        }
        records
    }

    /// Returns an entry of a flow that started now, with this number of packets from the initiator, and twice as many
    /// replies.
    fn started(&self, packets: u64) -> FlowEntry {
        let traffic = |packets| Traffic { packets, bytes: packets * 100 };
        FlowEntry {
            started: self.clocks.jiffies,
            last_used: self.clocks.jiffies,
            state: flow_state::REPLIED,
            sent: traffic(packets),
            replies: traffic(packets * 2),
            ..FlowEntry::default()
        }
    }
}

fn key(interface: IfIndex, protocol: u8, port: u16) -> FlowKey<[u8; 4]> {
    FlowKey {
        ifindex: interface,
        pod_address: [10, 0, 0, 1],
        remote_address: [10, 0, 0, 2],
        pod_port: [0, 80],
        remote_port: port.to_be_bytes(),
        protocol,
        zero: [0; 3],
    }
}

fn tcp(port: u16) -> FlowKey<[u8; 4]> {
    key(POD, protocol::TCP, port)
}

/// Returns the source port of the first packet, the ending, and the packets in both directions. If the remote side
/// initiated the flow, as in most tests, the source port is the remote port.
fn summary(records: &[FlowTotals]) -> Vec<(u16, Option<FlowEndReason>, u64, u64)> {
    let port = |totals: &FlowTotals| u16::from_be_bytes(totals.first_packet.source_port);
    let mut summary: Vec<_> = records
        .iter()
        .map(|totals| (port(totals), totals.ending, totals.total.sent.packets, totals.total.replies.packets))
        .collect();
    summary.sort_by_key(|(port, ..)| *port);
    summary
}

#[test]
fn each_flow_has_one_record_when_it_ends() {
    let mut test = TestTracker::new(FlowTotalsMode::End);
    let closed = FlowEntry { state: flow_state::REPLIED | flow_state::RESET, ..test.started(1) };
    let revoked = FlowEntry { state: flow_state::REVOKED, ..test.started(2) };
    let (open, udp) = (test.started(3), test.started(4));
    let last_ack = FlowEntry { sent: Traffic { packets: 2, bytes: 200 }, ..closed };
    let (rest, udp_key) = ([(tcp(2), revoked), (tcp(3), open)], key(POD, protocol::UDP, 4));
    let all = |closed| [&[(tcp(1), closed), (udp_key, udp)][..], &rest].concat();

    assert_eq!(summary(&test.read(1, &all(closed))), [(2, Some(FlowEndReason::Revoked), 2, 4)]);
    // After a RST, or after a FIN from each side, further packets may arrive. So the record follows when the next
    // reading finds no further packet.
    assert_eq!(summary(&test.read(2, &all(last_ack))), []);
    assert_eq!(summary(&test.read(2, &all(last_ack))), [(1, Some(FlowEndReason::Closed), 2, 2)]);
    assert_eq!(summary(&test.read(2, &all(last_ack))), []);
    let ended = summary(&test.read(200, &all(last_ack)));
    assert_eq!(ended, [(4, Some(FlowEndReason::Timeout), 4, 8)]);
    // The open flow is no longer in the table, although it has not timed out: it was evicted.
    assert_eq!(summary(&test.read(2, &[(udp_key, udp)])), [(3, Some(FlowEndReason::Evicted), 3, 6)]);
    assert_eq!(summary(&test.read(2, &[])), []);
    assert!(test.tracker.flows.is_empty() && test.tracker.by_interface.is_empty());
}

#[test]
fn the_flows_of_a_deleted_pod_have_ended() {
    let mut test = TestTracker::new(FlowTotalsMode::End);
    let entry = test.started(1);
    test.read(2, &[(tcp(1), entry), (key(OTHER, protocol::TCP, 2), entry)]);
    test.endpoints.remove(&1);
    let ended = test.read(2, &[(key(OTHER, protocol::TCP, 2), entry)]);
    assert_eq!(summary(&ended), [(1, Some(FlowEndReason::PodDeleted), 1, 2)]);
}

#[test]
fn a_flow_that_continues_after_its_end_has_another_record() {
    let mut test = TestTracker::new(FlowTotalsMode::End);
    let reset = FlowEntry { state: flow_state::REPLIED | flow_state::RESET, ..test.started(1) };
    test.read(2, &[(tcp(1), reset)]);
    assert_eq!(test.read(2, &[(tcp(1), reset)]).len(), 1);
    let more = FlowEntry { sent: Traffic { packets: 5, bytes: 500 }, last_used: test.clocks.jiffies, ..reset };
    assert_eq!(test.read(2, &[(tcp(1), more)]).len(), 0);
    assert_eq!(summary(&test.read(2, &[(tcp(1), more)])), [(1, Some(FlowEndReason::Closed), 5, 2)]);
}

#[test]
fn a_new_flow_with_the_same_key_ends_the_earlier_one() {
    let mut test = TestTracker::new(FlowTotalsMode::End);
    let first = test.started(10);
    test.read(2, &[(tcp(1), first)]);
    let second = test.started(1);
    let ended = test.read(2, &[(tcp(1), second)]);
    assert_eq!(summary(&ended), [(1, Some(FlowEndReason::Closed), 10, 20)]);
    let ended = test.read(2, &[]);
    assert_eq!(summary(&ended), [(1, Some(FlowEndReason::Evicted), 1, 2)]);
    assert!(
        ended[0].started > test.clocks.time - Duration::from_secs(5),
        "the record must have the start of the second flow"
    );
}

#[test]
fn minute_records_have_the_packets_since_the_previous_record() {
    let mut test = TestTracker::new(FlowTotalsMode::Minute);
    let entry = test.started(10);
    let intervals = |records: &[FlowTotals]| -> Vec<u64> {
        records.iter().map(|totals| totals.interval.as_ref().expect("no interval").1.sent.packets).collect()
    };
    let mut seen = Vec::new();
    for second in 1..=150_u64 {
        // Packets until second 70.
        let sent = Traffic { packets: 10 + second.min(70), bytes: 1 };
        let records = test.read(1, &[(tcp(1), FlowEntry { sent, last_used: test.clocks.jiffies, ..entry })]);
        seen.extend(intervals(&records).into_iter().map(|packets| (second, packets)));
        assert!(records.iter().all(|totals| totals.ending.is_none()));
    }
    // There is no record for the minute without packets.
    assert_eq!(seen, [(60, 70), (120, 10)]);
    let ended = test.read(1, &[]);
    assert_eq!((intervals(&ended), ended[0].total.sent.packets), (vec![0], 80));
}

#[test]
fn flows_from_before_the_agent_are_not_recorded_again() {
    for mode in [FlowTotalsMode::End, FlowTotalsMode::Minute] {
        let (tracker, reader) = Tracker::start(mode, HZ).expect("no totals are recorded");
        let clocks = Clocks::read(HZ);
        let mut test = TestTracker { tracker, reader, clocks, endpoints: BTreeMap::from([(1, POD)]) };
        // An earlier agent may have written the record of the closed flow.
        let closed = FlowEntry { state: flow_state::RESET, ..test.started(1) };
        let open = FlowEntry { started: clocks.jiffies.wrapping_sub(500 * HZ), ..test.started(100) };
        for _ in 0..3 {
            assert!(test.read(8, &[(tcp(1), closed), (tcp(2), open)]).is_empty());
        }
        // A flow that was open at the first reading has a record when it ends, with all packets.
        let ended = test.read(2, &[(tcp(1), closed)]);
        assert_eq!(summary(&ended), [(2, Some(FlowEndReason::Evicted), 100, 200)]);
        let elapsed = ended[0].started.elapsed().expect("the flow starts in the future");
        assert!(elapsed >= Duration::from_secs(470), "{elapsed:?}");
        assert_eq!(
            ended[0].interval.as_ref().map(|(_, part)| part.sent.packets),
            match mode {
                FlowTotalsMode::Minute => Some(0),
                FlowTotalsMode::End | FlowTotalsMode::Off => None,
            }
        );
    }
}

#[test]
fn flows_without_packets_have_no_record() {
    let mut test = TestTracker::new(FlowTotalsMode::End);
    let entry = FlowEntry { initiator: Direction::Egress as u8, ..FlowEntry::default() };
    test.read(2, &[(tcp(1), entry)]);
    assert!(test.read(2, &[]).is_empty());
}

#[test]
fn a_record_has_the_addresses_and_ports_of_the_first_packet() {
    let mut test = TestTracker::new(FlowTotalsMode::End);
    let egress = FlowEntry { initiator: Direction::Egress as u8, ..test.started(1) };
    let echo = key(POD, protocol::ICMP, 1);
    test.read(2, &[(tcp(9), egress), (echo, test.started(1))]);
    let mut ended = test.read(2, &[]);
    ended.sort_by_key(|totals| totals.first_packet.protocol);
    let address = |bytes: [u8; 16]| Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3]).to_string();
    let addresses_and_ports = |event: &FlowEvent| {
        let ports = [event.source_port, event.destination_port].map(u16::from_be_bytes);
        (address(event.source), address(event.destination), ports)
    };
    assert_eq!(
        addresses_and_ports(&ended[0].first_packet),
        ("10.0.0.2".into(), "10.0.0.1".into(), [0, 0]),
        "ICMP has no ports"
    );
    assert_eq!(addresses_and_ports(&ended[1].first_packet), ("10.0.0.1".into(), "10.0.0.2".into(), [80, 9]));
}

#[test]
fn the_number_of_records_in_a_second_is_limited_fairly_and_none_is_lost() {
    let mut test = TestTracker::new(FlowTotalsMode::End);
    let entry = test.started(1);
    let mut flows: Vec<_> = (1..=5000).map(|port| (tcp(port), entry)).collect();
    flows.extend((1..=100).map(|port| (key(OTHER, protocol::TCP, port), entry)));
    test.read(2, &flows);
    let of_other =
        |records: &[FlowTotals]| records.iter().filter(|totals| totals.first_packet.ifindex == OTHER).count();
    // In 2 seconds, up to 2 × `MAX_RECORDS` records are sent.
    let first = test.read(2, &[]);
    assert_eq!((first.len(), of_other(&first)), (2000, 100));
    let later: usize = (0..2).map(|_| test.read(2, &[]).len()).sum();
    assert_eq!((later, test.tracker.flows.len()), (3100, 0));
}

#[test]
fn the_number_of_kept_flows_is_limited_and_a_pod_takes_at_most_half() {
    let mut test = TestTracker::new(FlowTotalsMode::End);
    let entry = test.started(1);
    let mut flows = Vec::new();
    for remote in 0..2 {
        for port in 0..=u16::MAX {
            flows.push((FlowKey { remote_address: [10, 0, 1, remote], ..tcp(port) }, entry));
        }
    }
    for _ in 0..2 {
        test.read(2, &flows);
        assert_eq!(test.tracker.flows.len(), MAX_KEPT / 2);
        let not_kept = test.reader.not_kept().load(Ordering::Relaxed);
        assert_eq!(not_kept, 2 * 65_536 - MAX_KEPT as u64 / 2, "each flow counts once");
    }
    flows.push((key(OTHER, protocol::TCP, 1), entry));
    test.read(2, &flows);
    assert_eq!(test.tracker.by_interface.get(&OTHER), Some(&1));
}

#[test]
fn flows_that_are_replaced_again_and_again_do_not_fill_the_memory() {
    let mut test = TestTracker::new(FlowTotalsMode::End);
    // The receiver takes no records.
    let ports = 0..40_000_u16;
    for _ in 0..2 * CHANNEL + 2 {
        test.clocks.jiffies = test.clocks.jiffies.wrapping_add(2 * HZ);
        test.tracker.begin(test.clocks);
        let entry = test.started(1);
        for port in ports.clone() {
            test.tracker.flow(1, &tcp(port), &entry);
        }
        test.tracker.finish(&test.endpoints);
        let kept = test.tracker.flows.len() + test.tracker.replaced.len();
        assert!(kept <= MAX_KEPT / 2, "{kept}");
        assert_eq!(test.tracker.by_interface[&POD], kept);
    }
    assert!(test.reader.not_kept().load(Ordering::Relaxed) > 0);
}
