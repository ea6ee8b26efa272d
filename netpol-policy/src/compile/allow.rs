//! Which protocols and ports a rule set (the compiled policies of pods in one direction) allows to a class (equivalence
//! class of addresses).

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use netpol_common::{PORT_PREFIX_EXACT, PORT_PREFIX_PROTOCOL, RuleId};

use crate::model::{PortRange, Protocol};

/// The protocols and ports that a rule set allows to a class, each with the first rule that allows it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum AllowedPorts {
    /// Every protocol and port, with the first rule that allows them.
    All(RuleId),
    /// Only these ports. If the list is empty, nothing is allowed.
    Of(Ports),
}

/// Port prefixes, each with the first rule that allows it.
pub(super) type Ports = BTreeMap<PortPrefix, RuleId>;

/// A protocol, and the port numbers with a common binary prefix. BPF maps store port ranges in this form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct PortPrefix {
    /// IP protocol number.
    pub(super) protocol: u8,
    /// First port.
    pub(super) port: u16,
    /// Prefix length, in bits, of a [`netpol_common::PortKey`]. It includes the 48 bits before the port (port set and
    /// protocol), so it is 48 for all ports and 64 for one port.
    pub(super) length: u32,
}

impl PortPrefix {
    /// Returns all prefixes that contain a port, one for each length.
    pub(super) fn covering(protocol: u8, port: u16) -> impl Iterator<Item = Self> {
        (0..=u16::BITS).map(move |cleared_bits| {
            let port = port.checked_shr(cleared_bits).unwrap_or(0).checked_shl(cleared_bits).unwrap_or(0);
            Self { protocol, port, length: PORT_PREFIX_EXACT - cleared_bits }
        })
    }

    /// Returns the ports of this prefix, as the range from (protocol, first port) to (protocol, last port).
    pub(super) fn range(self) -> RangeInclusive<(u8, u16)> {
        let free_bits = PORT_PREFIX_EXACT - self.length;
        let last = u32::from(self.port) | ((1 << free_bits) - 1);
        (self.protocol, self.port)..=(self.protocol, u16::try_from(last).unwrap_or(u16::MAX))
    }
}

impl AllowedPorts {
    /// Returns the prefixes of the ports; none for [`AllowedPorts::All`].
    pub(super) fn prefixes(&self) -> impl Iterator<Item = PortPrefix> {
        let ports = match self {
            Self::All(_) => None,
            Self::Of(ports) => Some(ports),
        };
        ports.into_iter().flat_map(BTreeMap::keys).copied()
    }
}

/// Returns the number of prefixes for these ports. It is the same for every protocol. A port name counts as one prefix,
/// because it resolves to one port for each class.
pub(super) fn prefix_count(ports: &PortRange) -> u64 {
    match ports {
        PortRange::Range(first, last) => prefixes(Protocol::Tcp, Some((*first, *last))).len() as u64,
        PortRange::All | PortRange::Named(_) => 1,
    }
}

/// Returns the smallest set of prefixes for a range. `None` means all ports of the protocol.
pub(super) fn prefixes(protocol: Protocol, range: Option<(u16, u16)>) -> Vec<PortPrefix> {
    let protocol = protocol.number();
    let Some((first, last)) = range else {
        return vec![PortPrefix { protocol, port: 0, length: PORT_PREFIX_PROTOCOL }];
    };
    let mut prefixes = Vec::new();
    let (mut next, last) = (u32::from(first), u32::from(last));
    while next <= last {
        let aligned_bits = if next == 0 { u16::BITS } else { next.trailing_zeros() };
        let fitting_bits = (last - next + 1).ilog2();
        let bits = aligned_bits.min(fitting_bits);
        #[expect(clippy::cast_possible_truncation, reason = "not above the last port")]
        prefixes.push(PortPrefix { protocol, port: next as u16, length: PORT_PREFIX_EXACT - bits });
        next += 1 << bits;
    }
    prefixes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_in_one_prefix_of_each_length() {
        for port in [0, 1, 80, 81, 30_100, u16::MAX] {
            let covering: Vec<_> = PortPrefix::covering(6, port).collect();
            assert_eq!(covering.len(), 17);
            assert!(covering.iter().all(|prefix| prefix.range().contains(&(6, port))), "{port}: {covering:?}");
            for range in [(port, port), (port / 2, port), (0, u16::MAX)] {
                let prefixes = prefixes(Protocol::Tcp, Some(range));
                assert!(prefixes.iter().any(|prefix| covering.contains(prefix)), "{port} in {range:?}");
            }
        }
    }

    #[test]
    fn ranges_become_the_fewest_prefixes() {
        /// A range, and its prefixes as first port and length. If the list is empty, the test checks only how many
        /// ports the prefixes cover.
        type Case = ((u16, u16), &'static [(u16, u32)]);
        let cases: &[Case] = &[
            ((80, 80), &[(80, 64)]),
            ((80, 81), &[(80, 63)]),
            ((81, 82), &[(81, 64), (82, 64)]),
            ((30000, 30100), &[(30000, 60), (30016, 58), (30080, 60), (30096, 62), (30100, 64)]),
            ((1, 65535), &[]),
            ((0, 65535), &[(0, 48)]),
            ((65535, 65535), &[(65535, 64)]),
        ];
        for ((first, last), expected) in cases {
            let found = prefixes(Protocol::Tcp, Some((*first, *last)));
            if !expected.is_empty() {
                let found: Vec<_> = found.iter().map(|prefix| (prefix.port, prefix.length)).collect();
                assert_eq!(found, *expected, "{first}-{last}");
            }
            let covered: u32 = found.iter().map(|prefix| 1 << (64 - prefix.length)).sum();
            assert_eq!(covered, u32::from(*last) - u32::from(*first) + 1, "{first}-{last}");
        }
    }
}
