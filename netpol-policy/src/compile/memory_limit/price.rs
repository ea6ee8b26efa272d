//! The size of policies, and their cost: the kernel memory that they need in the BPF maps.

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

/// Size of a policy in one direction: the number of its CIDRs (`prefixes`), and of its port prefixes (`ports`).
#[derive(Clone, Debug, Default)]
pub(super) struct Size {
    /// Number of CIDRs of `ipBlock` peers (`cidr` and `except`), by family (`true`: IPv6) and prefix length.
    pub(super) prefixes: BTreeMap<(bool, u8), u64>,
    /// Number of the prefixes into which ports and port ranges are split. Each needs an entry of `PORTS`.
    pub(super) ports: u64,
}

/// Which blocks and ports of a policy are used, and which are omitted, because the policy costs more than its share of
/// the memory limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cut {
    /// Number of blocks and ports that are used, by direction. These are the first ones in the policy.
    pub(super) items: [usize; 2],
    pub(super) omitted: Omitted,
}

impl Size {
    /// Returns the size of a policy with these rules in one direction.
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

/// Prefix length of the widest block of a rule set, by family (IPv4, IPv6). A longer prefix of any policy may be inside
/// this block. Each prefix has a class of its own, so the rule set can need an entry for the longer prefix's class.
pub(super) type Widest = [Option<u8>; 2];

/// The rule sets that contain a policy in one direction: their number, by widest block.
#[derive(Clone, Debug, Default)]
pub(super) struct RuleSetCounts(BTreeMap<Widest, u64>);

impl RuleSetCounts {
    pub(super) fn add(&mut self, widest: Widest) {
        *self.0.entry(widest).or_default() += 1;
    }

    fn total(&self) -> u64 {
        self.0.values().sum()
    }

    /// Returns the number of rule sets without a block that is wider than this prefix.
    fn without_wider_block(&self, (ipv6, length): (bool, u8)) -> u64 {
        let is_wider = |widest: &Widest| widest[usize::from(ipv6)].is_some_and(|widest| widest < length);
        self.0.iter().filter(|(widest, _)| !is_wider(widest)).map(|(_, count)| count).sum()
    }
}

/// Computes the cost of blocks and ports. Contains, for each family and prefix length, the number of rule sets with a
/// block that is wider than a prefix of this length.
pub(super) struct Prices([Vec<u64>; 2]);

impl Prices {
    /// Computes the prices from the rule sets of all namespaces. Each rule set is given by its widest block.
    pub(super) fn of<'a>(rule_sets: impl IntoIterator<Item = &'a Widest>) -> Self {
        let mut counts = [vec![0; 130], vec![0; 130]];
        for widest in rule_sets {
            for (by_length, widest_length) in counts.iter_mut().zip(widest) {
                if let Some(widest_length) = widest_length {
                    by_length[usize::from(*widest_length) + 1] += 1;
                }
            }
        }
        for by_length in &mut counts {
            for length in 1..by_length.len() {
                by_length[length] += by_length[length - 1];
            }
        }
        Self(counts)
    }

    /// Returns the number of rule sets with a block that is wider than this prefix.
    fn wider_than(&self, (ipv6, length): (bool, u8)) -> u64 {
        self.0[usize::from(ipv6)].get(usize::from(length)).copied().unwrap_or(0)
    }

    /// Returns the cost of a prefix of a policy. The addresses of a prefix get a class of their own. So each rule set
    /// with this prefix, and each rule set with a wider block, can need an `ALLOW` entry for the class. The cost
    /// includes the entries of rule sets of other policies and namespaces, because only this prefix makes them
    /// necessary. `rule_sets`: those that contain the policy.
    fn of_prefix(&self, prefix: (bool, u8), rule_sets: &RuleSetCounts) -> u64 {
        TRIE_ENTRY + ALLOW_ENTRY * (self.wider_than(prefix) + rule_sets.without_wider_block(prefix))
    }

    /// Returns the cost of a policy with this size in one direction.
    pub(super) fn cost(&self, size: &Size, rule_sets: &RuleSetCounts) -> u64 {
        let rule_set_count = rule_sets.total();
        if rule_set_count == 0 {
            return 0;
        }
        let prefixes =
            size.prefixes.iter().map(|(prefix, count)| count.saturating_mul(self.of_prefix(*prefix, rule_sets)));
        prefixes.fold(0, u64::saturating_add).saturating_add(size.ports.saturating_mul(TRIE_ENTRY * rule_set_count))
    }

    /// Cuts a policy to at most this cost. `rule_sets`: those that contain the policy, by direction.
    pub(super) fn cut(&self, policy: &Policy, rule_sets: &[RuleSetCounts; 2], max_cost: u64) -> Cut {
        let mut cut = Cut { items: [0; 2], omitted: Omitted::default() };
        let mut spent: u64 = 0;
        for direction in Direction::BOTH {
            let rule_sets = &rule_sets[direction as usize];
            let rule_set_count = rule_sets.total();
            let mut full = false;
            for item in policy.rules(direction).unwrap_or_default().iter().flat_map(items) {
                let cost = match item {
                    Item::Block(block) => {
                        nets(block).map(|net| self.of_prefix(family_and_length(net), rule_sets)).sum()
                    }
                    Item::Port(port) => prefix_count(&port.port) * TRIE_ENTRY * rule_set_count,
                };
                full |= rule_set_count > 0 && spent.saturating_add(cost) > max_cost;
                cut.omitted.policy_items += 1;
                match item {
                    _ if !full => {
                        spent += if rule_set_count > 0 { cost } else { 0 };
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

/// Returns the CIDRs of a block: its `cidr`, and those of `except`.
fn nets(block: &IpBlock) -> impl Iterator<Item = &IpNet> {
    std::iter::once(&block.cidr).chain(&block.except)
}

fn family_and_length(net: &IpNet) -> (bool, u8) {
    (net.addr().is_ipv6(), net.prefix_len())
}
