//! Sets of addresses, stored as ranges.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::spans::{self, Span};

/// The last address of each family as a number.
const MAX: [u128; 2] = [u32::MAX as u128, u128::MAX];

/// A set of addresses of both families.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AddressSet {
    /// The ranges of IPv4, then those of IPv6. They are disjoint, not adjacent, and in ascending order.
    families: [Vec<Span<u128>>; 2],
}

impl AddressSet {
    /// Returns the set of the addresses of these blocks.
    pub fn of(nets: impl IntoIterator<Item = IpNet>) -> Self {
        Self::of_ranges(nets.into_iter().map(|net| (net.network(), net.broadcast())))
    }

    /// Returns the set of single addresses.
    pub fn of_addresses(addresses: impl IntoIterator<Item = IpAddr>) -> Self {
        Self::of(addresses.into_iter().map(IpNet::from))
    }

    /// Returns the set of the addresses in these ranges. Each range is a pair of its first and its last address. Both
    /// are in the range, and have the same family.
    pub fn of_ranges(ranges: impl IntoIterator<Item = (IpAddr, IpAddr)>) -> Self {
        let mut set = Self::default();
        for (first, last) in ranges {
            set.families[usize::from(first.is_ipv6())].push((number(first), number(last)));
        }
        set.families.iter_mut().for_each(spans::merge);
        set
    }

    /// Returns the set of the addresses in one range.
    pub fn between(first: IpAddr, last: IpAddr) -> Self {
        Self::of_ranges([(first, last)])
    }

    /// Returns whether the set has no address.
    pub fn is_empty(&self) -> bool {
        self.families.iter().all(Vec::is_empty)
    }

    /// Returns whether the set contains this address.
    pub fn contains(&self, address: IpAddr) -> bool {
        spans::contains(&self.families[usize::from(address.is_ipv6())], number(address))
    }

    /// Returns the lowest IPv4 address, or the lowest IPv6 address of a set without IPv4 addresses.
    pub fn first(&self) -> Option<IpAddr> {
        self.ranges().next().map(|(first, _)| first)
    }

    /// Returns the first and the last address of each range.
    pub fn ranges(&self) -> impl Iterator<Item = (IpAddr, IpAddr)> {
        let [v4, v6] = &self.families;
        ranges_of(v4, true).chain(ranges_of(v6, false))
    }

    /// Splits the ranges into parts, so that each block in `nets` contains either all addresses of a part or none of
    /// them. Returns the first and the last address of each part.
    pub fn split_at<'n>(&self, nets: impl IntoIterator<Item = &'n IpNet>) -> Vec<(IpAddr, IpAddr)> {
        // The addresses at which a part starts: the first address of a block, and the address after a block.
        let mut starts: [Vec<u128>; 2] = Default::default();
        for net in nets {
            let edges = [Some(number(net.network())), number(net.broadcast()).checked_add(1)];
            starts[usize::from(net.addr().is_ipv6())].extend(edges.into_iter().flatten());
        }
        let [v4, v6] = [0, 1].map(|family| spans::split(&self.families[family], &mut starts[family]));
        ranges_of(&v4, true).chain(ranges_of(&v6, false)).collect()
    }

    /// Returns the addresses that are in at least one of the two sets.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        Self::of_ranges(self.ranges().chain(other.ranges()))
    }

    /// Returns the addresses that are in both sets.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        Self { families: [0, 1].map(|family| spans::common(&self.families[family], &other.families[family])) }
    }

    /// Returns the addresses of this set that are not in the other one.
    #[must_use]
    pub fn difference(&self, other: &Self) -> Self {
        let outside = |family: usize| spans::complement(&other.families[family], MAX[family]);
        Self { families: [0, 1].map(|family| spans::common(&self.families[family], &outside(family))) }
    }
}

/// Writes each range as a single address, as a block, or as its first and last address, such as
/// `192.0.2.1, 10.0.0.0/8, 198.51.100.3-198.51.100.9`.
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

/// Returns the block that has exactly the addresses of a range; `None` if there is no such block.
fn block(first: IpAddr, last: IpAddr) -> Option<IpNet> {
    let bits: u32 = if first.is_ipv4() { 32 } else { 128 };
    let differing = number(first) ^ number(last);
    // In a block, the first and the last address differ only in their last bits: all zeros in the first address, all
    // ones in the last one.
    if differing & differing.wrapping_add(1) != 0 || number(first) & differing != 0 {
        return None;
    }
    let prefix = bits.checked_sub(u128::BITS - differing.leading_zeros())?;
    IpNet::new(first, u8::try_from(prefix).ok()?).ok()
}

fn ranges_of(spans: &[Span<u128>], is_ipv4: bool) -> impl Iterator<Item = (IpAddr, IpAddr)> {
    spans.iter().map(move |(first, last)| (address(*first, is_ipv4), address(*last, is_ipv4)))
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

    #[test]
    fn sets_are_split_at_the_edges_of_blocks() {
        let nets = ["0.0.0.0/1", "10.0.0.0/8", "10.0.0.8/29", "10.0.0.8/32", "255.255.255.255/32", "fd00::/8"];
        let nets = nets.map(|text| text.parse::<IpNet>().expect("a block"));
        let parts = |texts: &[&str]| -> Vec<String> {
            let parts = set(texts).split_at(&nets);
            parts.into_iter().map(|(first, last)| format!("{first}-{last}")).collect()
        };
        let blocks = ["10.0.0.0/28", "128.0.0.0/1", "fc00::/7"];
        assert_eq!(
            parts(&blocks),
            [
                "10.0.0.0-10.0.0.7",
                "10.0.0.8-10.0.0.8",
                "10.0.0.9-10.0.0.15",
                "128.0.0.0-255.255.255.254",
                "255.255.255.255-255.255.255.255",
                "fc00::-fcff:ffff:ffff:ffff:ffff:ffff:ffff:ffff",
                "fd00::-fdff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"
            ]
        );
    }
}
