//! The ports of a rule that `netpol record` writes. Adjacent ports become a range.

use std::collections::BTreeSet;

use crate::model::Protocol;

/// The number of a protocol, and a destination port of flows; `None` for protocols without ports.
pub(super) type PortKey = (u8, Option<u16>);

/// A port or a range of ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RecordedPort {
    /// The protocol.
    pub protocol: Protocol,
    /// The first port.
    pub port: u16,
    /// The last port of a range; `None` for a single port.
    pub end: Option<u16>,
}

/// Returns the `ports` of a rule. If one of the protocols has no ports, returns `None`: only a rule without `ports`
/// allows such a protocol (docs/semantics.md, item 17).
pub(super) fn ranges(ports: &BTreeSet<PortKey>) -> Option<Vec<RecordedPort>> {
    let mut ranges: Vec<RecordedPort> = Vec::new();
    for &(protocol, port) in ports {
        let (protocol, port) = (Protocol::from_number(protocol)?, port?);
        match ranges.last_mut() {
            Some(last) if last.protocol == protocol && last.end.unwrap_or(last.port).checked_add(1) == Some(port) => {
                last.end = Some(port);
            }
            _ => ranges.push(RecordedPort { protocol, port, end: None }),
        }
    }
    Some(ranges)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range_texts(ports: &[PortKey]) -> Option<Vec<String>> {
        let text = |range: &RecordedPort| {
            let end = range.end.map(|end| format!("-{end}")).unwrap_or_default();
            format!("{}{end}/{}", range.port, range.protocol.name())
        };
        ranges(&ports.iter().copied().collect()).map(|ranges| ranges.iter().map(text).collect())
    }

    #[test]
    fn only_adjacent_ports_of_a_protocol_become_a_range() {
        let tcp = |port| (6, Some(port));
        let expected = |items: &[&str]| Some(items.iter().map(|item| (*item).to_owned()).collect::<Vec<_>>());
        assert_eq!(range_texts(&[tcp(81), tcp(80), tcp(83)]), expected(&["80-81/TCP", "83/TCP"]));
        assert_eq!(range_texts(&[tcp(53), (17, Some(54))]), expected(&["53/TCP", "54/UDP"]));
        assert_eq!(range_texts(&[tcp(65_534), tcp(65_535)]), expected(&["65534-65535/TCP"]));
        assert_eq!(range_texts(&[tcp(80), (1, None)]), None);
    }
}
