//! Sets of ports, and the ports at which policies allow connections between two pods or addresses.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use netpol_common::Direction;

use crate::cluster_state::ClusterState;
use crate::model::{Pod, PortMatch, PortRange, Ports, Protocol};
use crate::reference::{self, Remote};

/// A set of ports of each protocol, and whether other IP protocols are included.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortSet {
    /// Disjoint ranges that are not adjacent, in ascending order; no empty list.
    ranges: BTreeMap<Protocol, Vec<(u16, u16)>>,
    other_protocols: bool,
}

impl PortSet {
    /// Returns the set of all ports and protocols.
    pub fn all() -> Self {
        let ranges = Protocol::ALL.map(|protocol| (protocol, vec![(0, u16::MAX)]));
        Self { ranges: ranges.into_iter().collect(), other_protocols: true }
    }

    /// Returns the set of single ports.
    pub fn of(ports: impl IntoIterator<Item = (Protocol, u16)>) -> Self {
        let mut set = Self::default();
        ports.into_iter().for_each(|(protocol, port)| set.insert(protocol, port, port));
        set
    }

    /// Returns whether the set has no ports and protocols.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty() && !self.other_protocols
    }

    /// Returns whether the set includes a port.
    pub fn contains(&self, protocol: Protocol, port: u16) -> bool {
        self.of_protocol(protocol).iter().any(|(first, last)| (*first..=*last).contains(&port))
    }

    fn of_protocol(&self, protocol: Protocol) -> &[(u16, u16)] {
        self.ranges.get(&protocol).map(Vec::as_slice).unwrap_or_default()
    }

    fn insert(&mut self, protocol: Protocol, first: u16, last: u16) {
        let ranges = self.ranges.entry(protocol).or_default();
        ranges.push((first, last));
        ranges.sort_unstable();
        let mut merged: Vec<(u16, u16)> = Vec::with_capacity(ranges.len());
        for &(first, last) in ranges.iter() {
            match merged.last_mut() {
                Some((_, end)) if first <= end.saturating_add(1) => *end = last.max(*end),
                _ => merged.push((first, last)),
            }
        }
        *ranges = merged;
    }

    /// Returns the ports in both sets.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        let mut set = Self { other_protocols: self.other_protocols && other.other_protocols, ..Self::default() };
        for (protocol, ranges) in &self.ranges {
            for (first, last) in ranges {
                for (start, end) in other.of_protocol(*protocol) {
                    if first.max(start) <= last.min(end) {
                        set.insert(*protocol, *first.max(start), *last.min(end));
                    }
                }
            }
        }
        set
    }

    /// Returns the ports in this set that are not in the other one.
    #[must_use]
    pub fn difference(&self, other: &Self) -> Self {
        let mut outside = Self { other_protocols: !other.other_protocols, ..Self::default() };
        for protocol in Protocol::ALL {
            let mut next = Some(0_u16);
            for (first, last) in other.of_protocol(protocol) {
                if let Some(start) = next.filter(|start| start < first) {
                    outside.insert(protocol, start, first - 1);
                }
                next = last.checked_add(1);
            }
            if let Some(start) = next {
                outside.insert(protocol, start, u16::MAX);
            }
        }
        self.intersection(&outside)
    }

    fn extend(&mut self, ports: &Ports, destination: Option<&Pod>) {
        let ports = match ports {
            Ports::Any => return *self = Self::all(),
            Ports::Of(ports) => ports,
        };
        for PortMatch { protocol, port } in ports {
            match port {
                PortRange::All => self.insert(*protocol, 0, u16::MAX),
                PortRange::Range(first, last) if first <= last => self.insert(*protocol, *first, *last),
                PortRange::Range(..) => {}
                PortRange::Named(name) => {
                    let named = destination.into_iter().flat_map(|pod| &pod.ports);
                    for named in named.filter(|named| named.name == *name && named.protocol == *protocol) {
                        self.insert(*protocol, named.port, named.port);
                    }
                }
            }
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
        let range = |(first, last): &(u16, u16)| match (first, last) {
            (0, &u16::MAX) => "all".to_owned(),
            (first, last) if first == last => first.to_string(),
            (first, last) => format!("{first}-{last}"),
        };
        let protocol = |(protocol, ranges): (&Protocol, &Vec<(u16, u16)>)| {
            format!("{} {}", protocol.name(), ranges.iter().map(range).collect::<Vec<_>>().join(", "))
        };
        let other = self.other_protocols.then(|| "other protocols".to_owned());
        f.write_str(&self.ranges.iter().map(protocol).chain(other).collect::<Vec<_>>().join("; "))
    }
}

/// Returns the ports at which the policies of a pod allow connections with an address, in one direction. The address is
/// not that of a Service, and not the pod's own.
pub(super) fn allowed(state: &ClusterState, pod: &Pod, direction: Direction, remote: IpAddr) -> PortSet {
    let (mut set, mut is_isolated) = (PortSet::default(), false);
    let remote = Remote::of(state, remote);
    let destination = if direction == Direction::Ingress { Some(pod) } else { remote.pod };
    for policy in reference::isolating(state, pod, direction) {
        is_isolated = true;
        for rule in reference::rules(policy, direction) {
            if reference::allows_peer(state, policy, &rule.peers, &remote) {
                set.extend(&rule.ports, destination);
            }
        }
    }
    if is_isolated { set } else { PortSet::all() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(ranges: &[(Protocol, u16, u16)]) -> PortSet {
        let mut set = PortSet::default();
        for (protocol, first, last) in ranges {
            set.insert(*protocol, *first, *last);
        }
        set
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
        assert!(!rest.contains(Tcp, 80) && rest.contains(Tcp, 79) && rest.intersection(&ports).is_empty());
        assert_eq!(PortSet::all().difference(&rest), ports);
        assert_eq!(set(&[(Tcp, 0, 65535)]).to_string(), "TCP all");
    }
}
