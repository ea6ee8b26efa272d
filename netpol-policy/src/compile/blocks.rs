//! The ipBlocks of policies. Each prefix (the `cidr` of a block, or one of its `except` entries) stores all blocks that
//! cover the prefix and do not except it. So one longest-prefix match finds all blocks that apply to an address.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use netpol_common::ClassId;

use super::selector_set::PeerSelectorSet;
use super::selectors::PeerSelectorId;
use crate::model::IpBlock;

/// The prefixes of all blocks.
#[derive(Clone, Debug, Default)]
pub(super) struct Blocks {
    prefixes: BTreeMap<IpNet, Prefix>,
    /// Number of prefixes by family (IPv6 or not) and length.
    lengths: BTreeMap<(bool, u8), usize>,
}

#[derive(Clone, Debug, Default)]
struct Prefix {
    /// The blocks (each block is a peer selector) that cover the prefix and do not except it.
    covering: PeerSelectorSet,
    /// The class (equivalence class of addresses) of the prefix.
    class: ClassId,
    /// Number of blocks that have this prefix as `cidr` or in `except`.
    users: usize,
}

impl Blocks {
    /// Adds a block. Returns the prefixes with a new or changed signature. The signature of a prefix is the set of
    /// blocks that cover the prefix and do not except it.
    pub(super) fn add(&mut self, id: PeerSelectorId, block: &IpBlock) -> Vec<IpNet> {
        let mut changed = BTreeSet::new();
        for net in std::iter::once(&block.cidr).chain(&block.except) {
            if !self.prefixes.contains_key(net) {
                let covering = self.covering(net.addr(), net.prefix_len()).cloned().unwrap_or_default();
                self.prefixes.insert(*net, Prefix { covering, ..Prefix::default() });
                *self.lengths.entry((net.addr().is_ipv6(), net.prefix_len())).or_default() += 1;
                changed.insert(*net);
            }
            if let Some(prefix) = self.prefixes.get_mut(net) {
                prefix.users += 1;
            }
        }
        let excepts = outermost(&block.except);
        for (net, prefix) in inside(&mut self.prefixes, block.cidr) {
            // `excepts` is sorted, and its entries do not overlap. So only the last entry that does not sort after the
            // prefix can contain the prefix.
            let end = excepts.partition_point(|except| except <= net);
            let is_excepted = excepts[..end].last().is_some_and(|except| except.contains(net));
            if !is_excepted && prefix.covering.insert(id) {
                changed.insert(*net);
            }
        }
        changed.into_iter().collect()
    }

    /// Removes a block from all signatures. Returns the prefixes with a changed signature. The prefixes stay until
    /// [`Blocks::retire`].
    pub(super) fn remove(&mut self, id: PeerSelectorId, block: &IpBlock) -> Vec<IpNet> {
        let mut changed = Vec::new();
        for (net, prefix) in inside(&mut self.prefixes, block.cidr) {
            if prefix.covering.remove(id) {
                changed.push(*net);
            }
        }
        for net in std::iter::once(&block.cidr).chain(&block.except) {
            if let Some(prefix) = self.prefixes.get_mut(net) {
                prefix.users -= 1;
            }
        }
        changed
    }

    /// After a block was removed, removes those of its prefixes that no other block has. Returns these prefixes with
    /// their classes.
    pub(super) fn retire(&mut self, block: &IpBlock) -> Vec<(IpNet, ClassId)> {
        let mut removed = Vec::new();
        for net in std::iter::once(&block.cidr).chain(&block.except) {
            if self.prefixes.get(net).is_none_or(|prefix| prefix.users > 0) {
                continue;
            }
            if let Some(prefix) = self.prefixes.remove(net) {
                removed.push((*net, prefix.class));
            }
            let length = (net.addr().is_ipv6(), net.prefix_len());
            if let Some(count) = self.lengths.get_mut(&length) {
                *count -= 1;
                if *count == 0 {
                    self.lengths.remove(&length);
                }
            }
        }
        removed
    }

    /// Returns the blocks that cover a prefix and do not except it.
    pub(super) fn signature(&self, net: &IpNet) -> PeerSelectorSet {
        self.prefixes.get(net).map(|prefix| prefix.covering.clone()).unwrap_or_default()
    }

    /// Returns the blocks that cover an address and do not except it.
    pub(super) fn at(&self, address: IpAddr) -> Option<&PeerSelectorSet> {
        self.covering(address, u8::MAX)
    }

    /// Returns a prefix's class.
    pub(super) fn class_of(&self, net: &IpNet) -> ClassId {
        self.prefixes.get(net).map_or(ClassId::NONE, |prefix| prefix.class)
    }

    /// Sets a prefix's class. Returns the previous class.
    pub(super) fn set_class(&mut self, net: &IpNet, class: ClassId) -> ClassId {
        self.prefixes.get_mut(net).map_or(ClassId::NONE, |prefix| std::mem::replace(&mut prefix.class, class))
    }

    /// Returns the class of the longest prefix that covers an address.
    pub(super) fn class_at(&self, address: IpAddr) -> ClassId {
        self.longest(address, u8::MAX).map_or(ClassId::NONE, |prefix| prefix.class)
    }

    /// Returns the blocks of the longest prefix that covers the address and is shorter than `shorter_than` bits.
    fn covering(&self, address: IpAddr, shorter_than: u8) -> Option<&PeerSelectorSet> {
        self.longest(address, shorter_than).map(|prefix| &prefix.covering)
    }

    /// Returns the longest prefix that covers the address and is shorter than `shorter_than` bits.
    fn longest(&self, address: IpAddr, shorter_than: u8) -> Option<&Prefix> {
        let lengths = self.lengths.range((address.is_ipv6(), 0)..(address.is_ipv6(), shorter_than)).rev();
        let mut nets = lengths.filter_map(|((_, length), _)| IpNet::new(address, *length).ok());
        nets.find_map(|net| self.prefixes.get(&net.trunc()))
    }
}

/// Returns the `except` entries sorted, without those inside other entries.
fn outermost(excepts: &[IpNet]) -> Vec<IpNet> {
    let mut sorted = excepts.to_vec();
    sorted.sort_unstable();
    // Of two prefixes with the same address, the wider one sorts first.
    sorted.dedup_by(|inner, outer| outer.contains(&*inner));
    sorted
}

/// Returns the prefixes inside a net, including the net itself.
fn inside(prefixes: &mut BTreeMap<IpNet, Prefix>, net: IpNet) -> impl Iterator<Item = (&IpNet, &mut Prefix)> {
    let host = if net.addr().is_ipv6() { 128 } else { 32 };
    let last = IpNet::new(net.broadcast(), host).unwrap_or(net);
    prefixes.range_mut(net..=last).filter(move |(inner, _)| net.contains(*inner))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn excepts_inside_other_excepts_are_removed() {
        let nets = |texts: &[&str]| -> Vec<IpNet> { texts.iter().map(|text| text.parse().expect("a net")).collect() };
        let cases: &[(&[&str], &[&str])] = &[
            (&[], &[]),
            (&["10.2.0.0/16", "10.1.0.0/16"], &["10.1.0.0/16", "10.2.0.0/16"]),
            (&["10.1.0.0/24", "10.1.0.0/16", "10.1.7.0/24", "10.2.0.0/16"], &["10.1.0.0/16", "10.2.0.0/16"]),
            (&["fd00::/64", "fd00::/16", "fd00:1::/32"], &["fd00::/16"]),
        ];
        for (excepts, expected) in cases {
            assert_eq!(outermost(&nets(excepts)), nets(expected), "{excepts:?}");
        }
    }
}
