//! The size of policies, and how much kernel memory they need in the maps.

use std::collections::BTreeMap;

use ipnet::IpNet;
use netpol_common::Direction;

use super::Omitted;
use crate::compile::allow::prefix_count;
use crate::model::{IpBlock, Peer, Policy, PortMatch, Ports, Rule};

/// Bytes of kernel memory for an entry of `PREFIXES_*` or `PORTS`: its trie node and, at worst, an intermediate node.
/// Measured; see docs/capacity.md.
pub(super) const TRIE_ENTRY: u64 = 128;
/// Bytes of kernel memory for an entry of `ALLOW`, including its part of the bucket array.
pub const ALLOW_ENTRY: u64 = 128;

/// Size of a policy in one direction.
#[derive(Clone, Debug, Default)]
pub(super) struct Size {
    /// Number of block prefixes, by family (`true`: IPv6) and length.
    pub(super) prefixes: BTreeMap<(bool, u8), u64>,
    /// Number of port prefixes.
    pub(super) ports: u64,
}

/// What is used of a policy that costs more than its share of the memory limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cut {
    /// Number of blocks and ports that are used, by direction. The first ones in the policy are used.
    pub(super) items: [usize; 2],
    pub(super) omitted: Omitted,
}

impl Size {
    pub(super) fn of(rules: Option<&[Rule]>) -> Self {
        let mut size = Self::default();
        for item in rules.unwrap_or_default().iter().flat_map(items) {
            match item {
                Item::Block(block) => {
                    for net in nets(block) {
                        *size.prefixes.entry(family_and_length(net)).or_default() += 1;
                    }
                }
                Item::Port(port) => size.ports += prefix_count(&port.port),
            }
        }
        size
    }
}

/// Number of rule sets with a block that is wider than a prefix, by family and length of the prefix.
pub(super) struct WiderBlocks([Vec<u64>; 2]);

impl WiderBlocks {
    pub(super) fn of<'a>(rule_sets: impl IntoIterator<Item = &'a [Option<u8>; 2]>) -> Self {
        let mut counts = [vec![0; 130], vec![0; 130]];
        for widest in rule_sets {
            for (of_family, length) in counts.iter_mut().zip(widest) {
                if let Some(length) = length {
                    of_family[usize::from(*length) + 1] += 1;
                }
            }
        }
        for of_family in &mut counts {
            for length in 1..of_family.len() {
                of_family[length] += of_family[length - 1];
            }
        }
        Self(counts)
    }

    fn wider_than(&self, (ipv6, length): (bool, u8)) -> u64 {
        self.0[usize::from(ipv6)].get(usize::from(length)).copied().unwrap_or(0)
    }
}

/// Computes the cost of a namespace's blocks and ports.
pub(super) struct Price<'a> {
    /// Blocks in the rule sets of all namespaces.
    pub(super) all: &'a WiderBlocks,
    /// Blocks in the rule sets of this namespace.
    pub(super) own: WiderBlocks,
}

impl Price<'_> {
    /// Returns the cost of a prefix in this number of the namespace's rule sets. A prefix has a class of its own, so
    /// each rule set with the same block or a wider block can need an entry for it. The cost includes the entries in
    /// rule sets of other namespaces, because only this prefix makes them necessary.
    fn of_prefix(&self, prefix: (bool, u8), rule_sets: u64) -> u64 {
        let own = self.own.wider_than(prefix);
        TRIE_ENTRY + ALLOW_ENTRY * (own.max(rule_sets) + self.all.wider_than(prefix) - own)
    }

    pub(super) fn of_size(&self, size: &Size, rule_sets: u64) -> u64 {
        if rule_sets == 0 {
            return 0;
        }
        let prefixes =
            size.prefixes.iter().map(|(prefix, count)| count.saturating_mul(self.of_prefix(*prefix, rule_sets)));
        prefixes.fold(0, u64::saturating_add).saturating_add(size.ports.saturating_mul(TRIE_ENTRY * rule_sets))
    }

    /// Cuts a policy to at most this cost.
    pub(super) fn cut(&self, policy: &Policy, rule_sets: [u64; 2], max_cost: u64) -> Cut {
        let mut cut = Cut { items: [0; 2], omitted: Omitted::default() };
        let mut spent: u64 = 0;
        for direction in Direction::BOTH {
            let rule_sets = rule_sets[direction as usize];
            let mut full = false;
            for item in policy.rules(direction).unwrap_or_default().iter().flat_map(items) {
                let cost = match item {
                    Item::Block(block) => {
                        nets(block).map(|net| self.of_prefix(family_and_length(net), rule_sets)).sum()
                    }
                    Item::Port(port) => prefix_count(&port.port) * TRIE_ENTRY * rule_sets,
                };
                full |= rule_sets > 0 && spent.saturating_add(cost) > max_cost;
                cut.omitted.total += 1;
                match item {
                    _ if !full => {
                        spent += if rule_sets > 0 { cost } else { 0 };
                        cut.items[direction as usize] += 1;
                    }
                    Item::Block(_) => cut.omitted.blocks += 1,
                    Item::Port(_) => cut.omitted.ports += 1,
                }
            }
        }
        cut
    }
}

/// A block or port of a rule.
enum Item<'a> {
    Block(&'a IpBlock),
    Port(&'a PortMatch),
}

/// Returns the blocks and ports of a rule, in the order in which [`super::Quota`] counts them.
fn items(rule: &Rule) -> impl Iterator<Item = Item<'_>> {
    let ports = match &rule.ports {
        Ports::Any => &[][..],
        Ports::Of(ports) => ports,
    };
    let blocks = rule.peers.listed().iter().filter_map(|peer| match peer {
        Peer::Block(block) => Some(Item::Block(block)),
        Peer::Pods { .. } => None,
    });
    blocks.chain(ports.iter().map(Item::Port))
}

fn nets(block: &IpBlock) -> impl Iterator<Item = &IpNet> {
    std::iter::once(&block.cidr).chain(&block.except)
}

fn family_and_length(net: &IpNet) -> (bool, u8) {
    (net.addr().is_ipv6(), net.prefix_len())
}
