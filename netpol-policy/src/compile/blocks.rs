//! CIDR blocks in use. Every prefix (a block's own, or one it excepts) knows all blocks that cover it less their excepts, so
//! that a longest-prefix match finds everything that holds for an address.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use netpol_common::ClassId;

use super::atom_set::AtomSet;
use super::atoms::AtomId;
use crate::model::IpBlock;

/// The prefixes in use.
#[derive(Clone, Debug, Default)]
pub(super) struct Blocks {
    prefixes: BTreeMap<IpNet, Prefix>,
    /// How many prefixes there are of each family and length.
    lengths: BTreeMap<(bool, u8), usize>,
}

#[derive(Clone, Debug, Default)]
struct Prefix {
    covering: AtomSet,
    class: ClassId,
    users: usize,
}

impl Blocks {
    /// Adds a block; the prefixes whose signature is new or changed.
    pub(super) fn add(&mut self, id: AtomId, block: &IpBlock) -> Vec<IpNet> {
        let mut touched = BTreeSet::new();
        for net in std::iter::once(&block.cidr).chain(&block.except) {
            if !self.prefixes.contains_key(net) {
                let covering = self.covering(net.addr(), net.prefix_len()).cloned().unwrap_or_default();
                self.prefixes.insert(*net, Prefix { covering, ..Prefix::default() });
                *self.lengths.entry((net.addr().is_ipv6(), net.prefix_len())).or_default() += 1;
                touched.insert(*net);
            }
            if let Some(prefix) = self.prefixes.get_mut(net) {
                prefix.users += 1;
            }
        }
        let holes = outermost(&block.except);
        for (net, prefix) in inside(&mut self.prefixes, block.cidr) {
            // Holes are apart from each other: only the last that begins before the prefix can have it.
            let before = holes.partition_point(|hole| hole <= net);
            let excepted = holes[..before].last().is_some_and(|hole| hole.contains(net));
            if !excepted && prefix.covering.insert(id) {
                touched.insert(*net);
            }
        }
        touched.into_iter().collect()
    }

    /// Takes a block out of the signatures; the prefixes whose signature changed. They stay until [`Blocks::retire`].
    pub(super) fn remove(&mut self, id: AtomId, block: &IpBlock) -> Vec<IpNet> {
        let mut touched = Vec::new();
        for (net, prefix) in inside(&mut self.prefixes, block.cidr) {
            if prefix.covering.remove(id) {
                touched.push(*net);
            }
        }
        for net in std::iter::once(&block.cidr).chain(&block.except) {
            if let Some(prefix) = self.prefixes.get_mut(net) {
                prefix.users -= 1;
            }
        }
        touched
    }

    /// Forgets the prefixes of a removed block that no other block has; with their class.
    pub(super) fn retire(&mut self, block: &IpBlock) -> Vec<(IpNet, ClassId)> {
        let mut gone = Vec::new();
        for net in std::iter::once(&block.cidr).chain(&block.except) {
            if self.prefixes.get(net).is_none_or(|prefix| prefix.users > 0) {
                continue;
            }
            if let Some(prefix) = self.prefixes.remove(net) {
                gone.push((*net, prefix.class));
            }
            let length = (net.addr().is_ipv6(), net.prefix_len());
            if let Some(count) = self.lengths.get_mut(&length) {
                *count -= 1;
                if *count == 0 {
                    self.lengths.remove(&length);
                }
            }
        }
        gone
    }

    /// The blocks that cover a prefix.
    pub(super) fn signature(&self, net: &IpNet) -> AtomSet {
        self.prefixes.get(net).map(|prefix| prefix.covering.clone()).unwrap_or_default()
    }

    /// The blocks that cover an address.
    pub(super) fn at(&self, address: IpAddr) -> Option<&AtomSet> {
        self.covering(address, u8::MAX)
    }

    /// A prefix's class.
    pub(super) fn class_of(&self, net: &IpNet) -> ClassId {
        self.prefixes.get(net).map_or(ClassId::NOBODY, |prefix| prefix.class)
    }

    /// Notes a prefix's class; the one before.
    pub(super) fn set_class(&mut self, net: &IpNet, class: ClassId) -> ClassId {
        self.prefixes.get_mut(net).map_or(ClassId::NOBODY, |prefix| std::mem::replace(&mut prefix.class, class))
    }

    /// The class of the longest prefix that covers an address.
    pub(super) fn class_at(&self, address: IpAddr) -> ClassId {
        self.longest(address, u8::MAX).map_or(ClassId::NOBODY, |prefix| prefix.class)
    }

    fn covering(&self, address: IpAddr, below: u8) -> Option<&AtomSet> {
        self.longest(address, below).map(|prefix| &prefix.covering)
    }

    /// The longest prefix that covers the address and is shorter than `below` bits.
    fn longest(&self, address: IpAddr, below: u8) -> Option<&Prefix> {
        let lengths = self.lengths.range((address.is_ipv6(), 0)..(address.is_ipv6(), below)).rev();
        let mut nets = lengths.filter_map(|((_, length), _)| IpNet::new(address, *length).ok());
        nets.find_map(|net| self.prefixes.get(&net.trunc()))
    }
}

/// Sorted, and without those that are inside others.
fn outermost(holes: &[IpNet]) -> Vec<IpNet> {
    let mut sorted = holes.to_vec();
    sorted.sort_unstable();
    // Of two that begin alike, the wider comes first.
    sorted.dedup_by(|inner, outer| outer.contains(&*inner));
    sorted
}

/// The prefixes inside a net, itself included.
fn inside(prefixes: &mut BTreeMap<IpNet, Prefix>, net: IpNet) -> impl Iterator<Item = (&IpNet, &mut Prefix)> {
    let host = if net.addr().is_ipv6() { 128 } else { 32 };
    let last = IpNet::new(net.broadcast(), host).unwrap_or(net);
    prefixes.range_mut(net..=last).filter(move |(inner, _)| net.contains(*inner))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_inside_holes_are_none_of_their_own() {
        let nets = |texts: &[&str]| -> Vec<IpNet> { texts.iter().map(|text| text.parse().expect("a net")).collect() };
        let cases: &[(&[&str], &[&str])] = &[
            (&[], &[]),
            (&["10.2.0.0/16", "10.1.0.0/16"], &["10.1.0.0/16", "10.2.0.0/16"]),
            (&["10.1.0.0/24", "10.1.0.0/16", "10.1.7.0/24", "10.2.0.0/16"], &["10.1.0.0/16", "10.2.0.0/16"]),
            (&["fd00::/64", "fd00::/16", "fd00:1::/32"], &["fd00::/16"]),
        ];
        for (holes, expected) in cases {
            assert_eq!(outermost(&nets(holes)), nets(expected), "{holes:?}");
        }
    }
}
