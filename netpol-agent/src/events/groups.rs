//! Summarizes denied multicast and broadcast packets: one line per minute for each group of similar packets. Without
//! this, one cause would lead to hundreds of lines, one for each sender and receiving pod.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::time::{Duration, Instant, SystemTime};

use netpol_api::{FlowDirection, FlowEnd, FlowRecord, FlowVerdict, MulticastRecord};
use netpol_common::{FlowEvent, Reason, event_flags};

use super::describe::header;

/// Delay of the first summary of a group, so that it includes more than one sender.
const FIRST_DELAY: Duration = Duration::from_secs(1);
/// Interval of the summaries of a group.
const PERIOD: Duration = Duration::from_mins(1);
/// Maximum number of groups. Packets of further groups are counted together, without their destination.
const MAX_GROUPS: usize = 256;
/// Maximum number of senders listed in a summary.
const MAX_LISTED: usize = 10;
/// Maximum number of senders counted in a summary.
const MAX_COUNTED: usize = 1000;

/// The properties that all packets of a group have in common.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct GroupKey {
    verdict: FlowVerdict,
    direction: FlowDirection,
    reason: String,
    protocol: String,
    /// The destination address and port; `None` in groups beyond [`MAX_GROUPS`].
    to: Option<(IpAddr, Option<u16>)>,
}

#[derive(Debug)]
struct Group {
    /// The number of packets since the last summary.
    packets: u64,
    /// The pods or addresses that sent these packets.
    senders: BTreeSet<String>,
    /// When the next summary is due.
    due: Instant,
}

/// All groups.
#[derive(Debug, Default)]
pub(super) struct MulticastGroups(HashMap<GroupKey, Group>);

impl MulticastGroups {
    /// Returns whether an event is summarized instead of reported individually.
    pub(super) fn is_summarized(event: &FlowEvent) -> bool {
        // The flag `GROUP` means an Ethernet group address, not a `Group` of packets.
        let is_multicast = event.flags & event_flags::GROUP != 0 || has_multicast_destination(event);
        event.family != 0 && is_multicast && Reason::from_code(event.reason).is_some_and(is_summarized_reason)
    }

    /// Counts the packets of an event: its own packet, and those that had no event because of the rate limit.
    pub(super) fn count(&mut self, event: &FlowEvent, record: &FlowRecord, now: Instant) {
        let mut key = GroupKey {
            verdict: record.verdict,
            direction: record.direction,
            reason: record.reason.clone(),
            protocol: record.protocol.clone(),
            to: record.to.address.map(|address| (address, record.port)),
        };
        if self.0.len() >= MAX_GROUPS && !self.0.contains_key(&key) {
            key.to = None;
        }
        let new = || Group { packets: 0, senders: BTreeSet::new(), due: now + FIRST_DELAY };
        let group = self.0.entry(key).or_insert_with(new);
        group.packets += 1 + u64::from(event.suppressed);
        let sender = record.from.pod_name().or_else(|| record.from.address.map(|address| address.to_string()));
        if let Some(sender) = sender.filter(|_| group.senders.len() < MAX_COUNTED) {
            group.senders.insert(sender);
        }
    }

    /// Returns the summaries that are due now.
    pub(super) fn due(&mut self, now: Instant, time: SystemTime, node: &str) -> Vec<MulticastRecord> {
        // A group without packets for a whole period is removed.
        self.0.retain(|_, group| group.packets > 0 || group.due > now);
        let due = self.0.iter_mut().filter(|(_, group)| group.packets > 0 && group.due <= now);
        due.map(|(key, group)| {
            group.due = now + PERIOD;
            let senders = std::mem::take(&mut group.senders);
            MulticastRecord {
                header: header(time, node),
                verdict: key.verdict,
                direction: key.direction,
                reason: key.reason.clone(),
                to: FlowEnd {
                    address: key.to.map(|(address, _)| address),
                    port: key.to.and_then(|(_, port)| port),
                    ..FlowEnd::default()
                },
                protocol: key.protocol.clone(),
                port: key.to.and_then(|(_, port)| port),
                packets: std::mem::take(&mut group.packets),
                sender_count: senders.len(),
                senders: senders.into_iter().take(MAX_LISTED).collect(),
            }
        })
        .collect()
    }
}

/// Returns whether the destination IP address is a multicast or broadcast address. The Ethernet header does not always
/// show this: its destination may be unicast, and packets on tunnel devices have no Ethernet header.
fn has_multicast_destination(event: &FlowEvent) -> bool {
    match event.family {
        4 => event.destination[0] & 0xf0 == 0xe0 || event.destination[..4] == [255; 4],
        _ => event.destination[0] == 0xff,
    }
}

/// Returns whether packets denied with this reason are summarized. Spoofed and malformed packets are reported
/// individually, even if they are multicast.
const fn is_summarized_reason(reason: Reason) -> bool {
    match reason {
        Reason::NoRule
        | Reason::Revoked
        | Reason::NotIp
        | Reason::OrphanFragment
        | Reason::FlowTableFull
        | Reason::TablesIncomplete
        | Reason::NoAllowedBackend
        | Reason::BackendDenied
        | Reason::NotAllBackendsAllowed
        | Reason::SourceEndpointGone
        | Reason::UnknownPod
        | Reason::NoEndpoint
        | Reason::TunnelEndpoint => true,
        Reason::NotIsolated
        | Reason::Rule
        | Reason::Flow
        | Reason::LocalNode
        | Reason::Hairpin
        | Reason::NeighborDiscovery
        | Reason::IcmpError
        | Reason::Service
        | Reason::SpoofedSource
        | Reason::Malformed
        | Reason::TooManyHeaders
        | Reason::UnverifiedSource
        | Reason::SpoofedNeighbor
        | Reason::NeighborLimit
        | Reason::OtherHost => false,
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use netpol_common::{Direction, protocol};
    use netpol_policy::compile::{Engine, FirstIds, NodeScope};

    use super::super::describe::{Names, describe};
    use super::*;

    fn event(source: u8, destination: [u8; 4]) -> FlowEvent {
        let wide = |address: [u8; 4]| {
            let mut wide = [0; 16];
            wide[..4].copy_from_slice(&address);
            wide
        };
        FlowEvent {
            direction: Direction::Ingress as u8,
            reason: Reason::NoRule as u8,
            family: 4,
            protocol: protocol::UDP,
            source: wide([10, 1, 0, source]),
            destination: wide(destination),
            destination_port: 5353_u16.to_be_bytes(),
            ..FlowEvent::default()
        }
    }

    #[test]
    fn a_group_is_summarized_after_a_second_and_then_once_a_minute() {
        let engine = Engine::new(NodeScope::All, FirstIds::default());
        let mut groups = MulticastGroups::default();
        let start = Instant::now();
        for second in 0..180 {
            let now = start + Duration::from_secs(second);
            for sender in 0..50 {
                let event = event(sender, [224, 0, 0, 251]);
                assert!(MulticastGroups::is_summarized(&event));
                groups.count(
                    &event,
                    &describe(&event, None, Names { engine: &engine, node: "n1" }, UNIX_EPOCH).record,
                    now,
                );
            }
            let lines = groups.due(now, UNIX_EPOCH, "n1");
            let expected = usize::from([1, 61, 121].contains(&second));
            assert_eq!(lines.len(), expected, "second {second}");
            if let [line] = &lines[..] {
                assert_eq!((line.sender_count, line.senders.len(), line.port), (50, MAX_LISTED, Some(5353)));
                assert_eq!(line.packets, if second == 1 { 100 } else { 3000 });
            }
        }
    }

    #[test]
    fn spoofed_and_unicast_packets_are_reported_individually() {
        let broadcast = event(1, [255; 4]);
        assert!(MulticastGroups::is_summarized(&broadcast));
        assert!(MulticastGroups::is_summarized(&FlowEvent { flags: event_flags::GROUP, ..event(1, [10, 1, 0, 255]) }));
        // The flag `GROUP` means that the frame was sent to an Ethernet group address. Without it, 10.1.0.255 counts as
        // a unicast address, because the prefix length is not known.
        assert!(!MulticastGroups::is_summarized(&event(1, [10, 1, 0, 255])));
        assert!(!MulticastGroups::is_summarized(&FlowEvent { reason: Reason::SpoofedSource as u8, ..broadcast }));
    }

    #[test]
    fn the_number_of_groups_is_bounded() {
        let engine = Engine::new(NodeScope::All, FirstIds::default());
        let mut groups = MulticastGroups::default();
        let now = Instant::now();
        for number in 0..4 * MAX_GROUPS {
            let [low, high, ..] = number.to_le_bytes();
            let event = event(1, [239, 1, high, low]);
            groups.count(
                &event,
                &describe(&event, None, Names { engine: &engine, node: "n1" }, UNIX_EPOCH).record,
                now,
            );
        }
        let lines = groups.due(now + FIRST_DELAY, UNIX_EPOCH, "n1");
        assert_eq!(lines.len(), MAX_GROUPS + 1);
        assert_eq!(lines.iter().map(|line| line.packets).sum::<u64>(), 4 * MAX_GROUPS as u64);
        assert!(groups.due(now + FIRST_DELAY + PERIOD, UNIX_EPOCH, "n1").is_empty());
        assert!(groups.0.is_empty(), "groups without packets are removed");
    }
}
