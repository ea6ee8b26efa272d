//! Sets of addresses, as ranges.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// The first and the last address of a range as numbers, both included.
type Span = (u128, u128);

/// A set of addresses of both families.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AddressSet {
    /// Of IPv4, then of IPv6: disjoint ranges that are not adjacent, in ascending order.
    families: [Vec<Span>; 2],
}

impl AddressSet {
    /// Returns the set of the addresses of these blocks.
    pub fn of(nets: impl IntoIterator<Item = IpNet>) -> Self {
        Self::of_spans(nets.into_iter().map(|net| (net.addr().is_ipv4(), span(&net))))
    }

    /// Returns the set of single addresses.
    pub fn of_addresses(addresses: impl IntoIterator<Item = IpAddr>) -> Self {
        Self::of(addresses.into_iter().map(IpNet::from))
    }

    /// Returns the addresses from the first to the last one, both included and of the same family.
    pub fn between(first: IpAddr, last: IpAddr) -> Self {
        Self::of_spans([(first.is_ipv4(), (number(first), number(last)))])
    }

    pub(super) fn of_spans(spans: impl IntoIterator<Item = (bool, Span)>) -> Self {
        let mut set = Self::default();
        for (is_ipv4, span) in spans {
            set.families[usize::from(!is_ipv4)].push(span);
        }
        set.families.iter_mut().for_each(merge);
        set
    }

    /// Returns whether the set has no address.
    pub fn is_empty(&self) -> bool {
        self.families.iter().all(Vec::is_empty)
    }

    /// Returns whether the set has an address.
    pub fn contains(&self, address: IpAddr) -> bool {
        let spans = &self.families[usize::from(!address.is_ipv4())];
        let number = number(address);
        let index = spans.partition_point(|(_, last)| *last < number);
        spans.get(index).is_some_and(|(first, _)| *first <= number)
    }

    /// Returns the lowest address, of IPv4 if there is one.
    pub fn first(&self) -> Option<IpAddr> {
        self.ranges().next().map(|(first, _)| first)
    }

    /// Returns the first and the last address of each range.
    pub fn ranges(&self) -> impl Iterator<Item = (IpAddr, IpAddr)> {
        let [v4, v6] = &self.families;
        let families = v4.iter().map(|span| (span, true)).chain(v6.iter().map(|span| (span, false)));
        families.map(|((first, last), is_ipv4)| (address(*first, is_ipv4), address(*last, is_ipv4)))
    }

    /// Returns the addresses of any of the two sets.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        let of = |family: usize| self.families[family].iter().chain(&other.families[family]).copied();
        let spans = [0, 1].into_iter().flat_map(|family| of(family).map(move |span| (family == 0, span)));
        Self::of_spans(spans)
    }

    /// Returns the addresses of both sets.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        Self { families: [0, 1].map(|family| common(&self.families[family], &other.families[family])) }
    }

    /// Returns the addresses of this set that are not in the other one.
    #[must_use]
    pub fn difference(&self, other: &Self) -> Self {
        let outside = |family: usize| complement(&other.families[family], family == 0);
        Self { families: [0, 1].map(|family| common(&self.families[family], &outside(family))) }
    }
}

/// Writes blocks where a range is one, such as `10.0.0.0/8, 192.0.2.1, 198.51.100.3-198.51.100.9`.
impl fmt::Display for AddressSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (first, last)) in self.ranges().enumerate() {
            if index > 0 {
                f.write_str(", ")?;
            }
            match block(first, last) {
                _ if first == last => first.fmt(f)?,
                Some(block) => block.fmt(f)?,
                None => write!(f, "{first}-{last}")?,
            }
        }
        Ok(())
    }
}

/// Returns the block with exactly these addresses.
fn block(first: IpAddr, last: IpAddr) -> Option<IpNet> {
    let bits: u32 = if first.is_ipv4() { 32 } else { 128 };
    let differing = number(first) ^ number(last);
    // Ones at the end only.
    if differing & differing.wrapping_add(1) != 0 || number(first) & differing != 0 {
        return None;
    }
    let prefix = bits.checked_sub(u128::BITS - differing.leading_zeros())?;
    IpNet::new(first, u8::try_from(prefix).ok()?).ok()
}

/// Sorts ranges, and merges those that overlap or are adjacent.
fn merge(spans: &mut Vec<Span>) {
    spans.sort_unstable();
    spans.dedup_by(|(first, last), (_, end)| {
        let is_connected = *first <= end.saturating_add(1);
        if is_connected {
            *end = (*last).max(*end);
        }
        is_connected
    });
}

/// Returns the numbers in both of two sorted lists.
fn common(one: &[Span], other: &[Span]) -> Vec<Span> {
    let (mut one, mut other) = (one.iter().peekable(), other.iter().peekable());
    let mut common = Vec::new();
    while let (Some(&&(first, last)), Some(&&(start, end))) = (one.peek(), other.peek()) {
        if first.max(start) <= last.min(end) {
            common.push((first.max(start), last.min(end)));
        }
        if last <= end {
            one.next();
        } else {
            other.next();
        }
    }
    common
}

/// Returns the numbers of a family that are not in a sorted list.
fn complement(spans: &[Span], is_ipv4: bool) -> Vec<Span> {
    let max = if is_ipv4 { u128::from(u32::MAX) } else { u128::MAX };
    let mut outside = Vec::new();
    let mut next = Some(0_u128);
    for (first, last) in spans {
        if let Some(start) = next.filter(|start| start < first) {
            outside.push((start, first - 1));
        }
        next = last.checked_add(1).filter(|next| *next <= max);
    }
    outside.extend(next.map(|start| (start, max)));
    outside
}

pub(super) fn span(net: &IpNet) -> Span {
    (number(net.network()), number(net.broadcast()))
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(address.to_bits()),
        IpAddr::V6(address) => address.to_bits(),
    }
}

fn address(number: u128, is_ipv4: bool) -> IpAddr {
    match u32::try_from(number) {
        Ok(number) if is_ipv4 => Ipv4Addr::from_bits(number).into(),
        _ => Ipv6Addr::from_bits(number).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(texts: &[&str]) -> AddressSet {
        AddressSet::of(texts.iter().map(|text| text.parse::<IpNet>().expect("a block")))
    }

    #[test]
    fn sets_are_combined_and_written_as_blocks_and_ranges() {
        let all = set(&["0.0.0.0/0", "::/0"]);
        let private = set(&["10.0.0.0/9", "10.128.0.0/9", "fc00::/7"]);
        assert_eq!(private.to_string(), "10.0.0.0/8, fc00::/7");
        let others = all.difference(&private);
        assert_eq!(
            others.to_string(),
            "0.0.0.0-9.255.255.255, 11.0.0.0-255.255.255.255, ::-fbff:ffff:ffff:ffff:ffff:ffff:ffff:ffff, fe00::/7"
        );
        assert_eq!((others.union(&private), all.difference(&others)), (all.clone(), private.clone()));
        assert_eq!(private.intersection(&set(&["10.1.2.3/32", "192.0.2.0/24"])).to_string(), "10.1.2.3");
        let [inside, outside] = ["10.255.255.255", "11.0.0.0"].map(|text| text.parse().expect("an address"));
        assert!(private.contains(inside) && !private.contains(outside));
        assert_eq!((all.to_string(), all.first()), ("0.0.0.0/0, ::/0".into(), "0.0.0.0".parse().ok()));
        assert!(private.difference(&all).is_empty() && AddressSet::default().first().is_none());
        assert_eq!(set(&["10.0.0.1/32", "10.0.0.2/32"]).to_string(), "10.0.0.1-10.0.0.2");
    }
}
