//! Sets of ports, and the ports at which policies allow connections between a pod and an address.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use netpol_common::Direction;

use super::spans::{self, Span};
use crate::cluster_state::ClusterState;
use crate::model::{Pod, PortMatch, PortRange, Ports, Protocol};
use crate::reference::{self, Remote};

/// A set of ports of each protocol, and whether other IP protocols are included.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortSet {
    /// Disjoint ranges that are not adjacent, in ascending order. A protocol without ports in the set has no entry.
    ranges: BTreeMap<Protocol, Vec<Span<u16>>>,
    other_protocols: bool,
}

impl PortSet {
    /// Returns the set of all ports and protocols.
    pub fn all() -> Self {
        let ranges = Protocol::ALL.map(|protocol| (protocol, vec![(0, u16::MAX)]));
        Self { ranges: ranges.into_iter().collect(), other_protocols: true }
    }

    /// Returns the set of these ports.
    pub fn of(ports: impl IntoIterator<Item = (Protocol, u16)>) -> Self {
        Self::of_ranges(ports.into_iter().map(|(protocol, port)| (protocol, port, port)))
    }

    /// Returns the set of the ports in these ranges. Each range has its first and last port, both included. The ranges
    /// can be in any order.
    pub fn of_ranges(ranges: impl IntoIterator<Item = (Protocol, u16, u16)>) -> Self {
        let mut set = Self::default();
        for (protocol, first, last) in ranges {
            set.ranges.entry(protocol).or_default().push((first, last));
        }
        set.ranges.values_mut().for_each(spans::merge);
        set
    }

    /// Returns whether the set has no ports and no other protocols.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty() && !self.other_protocols
    }

    /// Returns whether the set contains this port.
    pub fn contains(&self, protocol: Protocol, port: u16) -> bool {
        spans::contains(self.of_protocol(protocol), port)
    }

    fn of_protocol(&self, protocol: Protocol) -> &[Span<u16>] {
        self.ranges.get(&protocol).map(Vec::as_slice).unwrap_or_default()
    }

    /// Returns the lowest port of the first protocol in the set; `None` if the set has no ports. Port 0 is returned
    /// only if its range has no other port.
    pub fn first(&self) -> Option<(Protocol, u16)> {
        let first = |(first, last): &Span<u16>| (*first).max(1).min(*last);
        self.ranges.iter().find_map(|(protocol, ranges)| ranges.first().map(|range| (*protocol, first(range))))
    }

    /// Returns whether the set includes the protocols without ports, such as ICMP.
    pub const fn has_other_protocols(&self) -> bool {
        self.other_protocols
    }

    /// Returns the ports that are in at least one of the two sets.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        let all = self.ranges.iter().chain(&other.ranges);
        let ranges = all.flat_map(|(protocol, ranges)| ranges.iter().map(|(first, last)| (*protocol, *first, *last)));
        Self { other_protocols: self.other_protocols || other.other_protocols, ..Self::of_ranges(ranges) }
    }

    /// Returns the ports that are in both sets.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        let ranges = self
            .ranges
            .iter()
            .map(|(protocol, ranges)| (*protocol, spans::common(ranges, other.of_protocol(*protocol))));
        Self {
            ranges: ranges.filter(|(_, ranges)| !ranges.is_empty()).collect(),
            other_protocols: self.other_protocols && other.other_protocols,
        }
    }

    /// Returns the ports in this set that are not in the other one.
    #[must_use]
    pub fn difference(&self, other: &Self) -> Self {
        let outside =
            Protocol::ALL.map(|protocol| (protocol, spans::complement(other.of_protocol(protocol), u16::MAX)));
        let ranges = outside.into_iter().filter(|(_, ranges)| !ranges.is_empty()).collect();
        self.intersection(&Self { ranges, other_protocols: !other.other_protocols })
    }
}

/// Returns the port ranges that one entry of a rule's `ports` matches. A port name is looked up in the destination pod.
pub(super) fn ranges_of(
    PortMatch { protocol, port }: &PortMatch,
    destination: Option<&Pod>,
) -> Vec<(Protocol, u16, u16)> {
    match port {
        PortRange::All => vec![(*protocol, 0, u16::MAX)],
        PortRange::Range(first, last) if first <= last => vec![(*protocol, *first, *last)],
        PortRange::Range(..) => Vec::new(),
        PortRange::Named(name) => {
            let named = destination.into_iter().flat_map(|pod| &pod.ports);
            let named = named.filter(|named| named.name == *name && named.protocol == *protocol);
            named.map(|named| (*protocol, named.port, named.port)).collect()
        }
    }
}

/// Writes `TCP 80, 8000-8999; UDP 53`, `all`, or `none`.
impl fmt::Display for PortSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("none");
        }
        if *self == Self::all() {
            return f.write_str("all");
        }
        let range = |(first, last): &Span<u16>| match (first, last) {
            (0, &u16::MAX) => "all".to_owned(),
            (first, last) if first == last => first.to_string(),
            (first, last) => format!("{first}-{last}"),
        };
        let protocol = |(protocol, ranges): (&Protocol, &Vec<Span<u16>>)| {
            format!("{} {}", protocol.name(), ranges.iter().map(range).collect::<Vec<_>>().join(", "))
        };
        let other = self.other_protocols.then(|| "other protocols".to_owned());
        f.write_str(&self.ranges.iter().map(protocol).chain(other).collect::<Vec<_>>().join("; "))
    }
}

/// Returns the ports at which the policies of a pod allow connections with an address, in one direction. `remote` must
/// not be an address of a Service or of the pod itself.
pub(super) fn allowed(state: &ClusterState, pod: &Pod, direction: Direction, remote: IpAddr) -> PortSet {
    let (mut ranges, mut is_isolated) = (Vec::new(), false);
    let remote = Remote::of(state, remote);
    let destination = if direction == Direction::Ingress { Some(pod) } else { remote.pod };
    for policy in reference::isolating(state, pod, direction) {
        is_isolated = true;
        for rule in reference::rules(policy, direction) {
            if reference::allows_peer(state, policy, &rule.peers, &remote) {
                match &rule.ports {
                    Ports::Any => return PortSet::all(),
                    Ports::Of(ports) => ranges.extend(ports.iter().flat_map(|port| ranges_of(port, destination))),
                }
            }
        }
    }
    if is_isolated { PortSet::of_ranges(ranges) } else { PortSet::all() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(ranges: &[(Protocol, u16, u16)]) -> PortSet {
        PortSet::of_ranges(ranges.iter().copied())
    }

    #[test]
    fn ranges_are_merged_and_subtracted() {
        use Protocol::{Tcp, Udp};
        let ports = set(&[(Tcp, 80, 80), (Tcp, 8000, 8998), (Tcp, 8999, 8999), (Udp, 53, 53)]);
        assert_eq!(ports.to_string(), "TCP 80, 8000-8999; UDP 53");
        assert_eq!(ports.difference(&set(&[(Tcp, 81, 8500), (Udp, 0, 65535)])).to_string(), "TCP 80, 8501-8999");
        assert_eq!(ports.intersection(&PortSet::all()), ports);
        assert_eq!((PortSet::all().to_string(), PortSet::default().to_string()), ("all".into(), "none".into()));
        let rest = PortSet::all().difference(&ports);
        assert_eq!((rest.union(&ports), ports.first()), (PortSet::all(), Some((Tcp, 80))));
        assert!(!rest.contains(Tcp, 80) && rest.contains(Tcp, 79) && rest.intersection(&ports).is_empty());
        assert_eq!(PortSet::all().difference(&rest), ports);
        assert_eq!(set(&[(Tcp, 0, 65535)]).to_string(), "TCP all");
    }

    #[test]
    fn sets_of_many_ports_are_computed_without_delay() {
        // With one merge for each inserted port, this would take minutes.
        let every = |step: u16| PortSet::of((1..u16::MAX).step_by(step.into()).map(|port| (Protocol::Tcp, port)));
        let [every_second, every_third] = [every(2), every(3)];
        assert_eq!(every_second.intersection(&every_third), every(6));
        assert_eq!(every_second.difference(&every_third).intersection(&every_third), PortSet::default());
    }
}
