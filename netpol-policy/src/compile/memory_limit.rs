//! Memory limit for policies: what each policy costs in the maps, and which parts are omitted above the limit.
//!
//! Costs are computed from the objects before anything is written, so that the same objects always have the same
//! result. If the sum is above the limit, namespaces share it max-min fairly: a namespace that costs less than an equal
//! share is not affected, and all others get the same amount. Policies share their namespace's amount in the same way.
//! A policy that costs more than its share is cut: its blocks and ports count in order, up to the share. A block is
//! omitted with all of its `except` entries, so that a cut policy never allows more than the complete one.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::hash::{Hash, Hasher};

use ipnet::IpNet;
use netpol_common::Direction;

use super::allow::prefix_count;
use super::entry_counts::EntryCounts;
use super::rules::rules;
use crate::cluster_state::ClusterState;
use crate::model::{IpBlock, NamespaceName, Peer, Peers, Pod, PodKey, Policy, PolicyKey, PortMatch, Ports, Rule};

/// Bytes of kernel memory for an entry of `PREFIXES_*` or `PORTS`: its trie node and, at worst, an intermediate node.
/// Measured; see docs/capacity.md.
const TRIE_ENTRY: u64 = 128;
/// Bytes of kernel memory for an entry of `ALLOW`, including its part of the bucket array.
pub const ALLOW_ENTRY: u64 = 128;
/// Number of significant bits of a share, so that it changes in steps of at most an eighth. Otherwise every change
/// would move all cuts a little, and each moved cut recompiles its policy.
const SHARE_BITS: u32 = 4;

/// The parts of a policy that are omitted because of the memory limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Omitted {
    /// Number of `ipBlock` peers that match nothing.
    pub blocks: usize,
    /// Number of items of `ports` that match nothing.
    pub ports: usize,
    /// Number of all `ipBlock` peers and items of `ports` in the policy.
    pub total: usize,
    /// Number of missing `ALLOW` entries, with their ports, for rules of this policy and of policies that select the
    /// same pods.
    pub entries: usize,
}

/// Memory limit and costs of policies; see the module documentation.
#[derive(Clone, Debug, Default)]
pub(super) struct MemoryLimit {
    /// Limit in bytes; `None`: no limit.
    limit: Option<u64>,
    /// Pods in scope.
    pods: BTreeMap<NamespaceName, BTreeSet<PodKey>>,
    /// Size of each policy, by direction.
    sizes: BTreeMap<PolicyKey, [Size; 2]>,
    /// Number of prefixes and ports in a namespace's policies.
    sums: BTreeMap<NamespaceName, (u64, u64)>,
    /// Policies in use, by namespace. Empty while the limit cannot be exceeded.
    demands: BTreeMap<NamespaceName, Demand>,
    /// Namespaces with a changed policy or pod.
    changed: BTreeSet<NamespaceName>,
    cuts: BTreeMap<PolicyKey, Cut>,
}

/// Size of a policy in one direction.
#[derive(Clone, Debug, Default)]
struct Size {
    /// Number of block prefixes, by family and length.
    prefixes: BTreeMap<(bool, u8), u64>,
    /// Number of port prefixes.
    ports: u64,
}

/// The policies of a namespace that isolate pods in scope.
#[derive(Clone, Debug, Default)]
struct Demand {
    /// Number of rule sets that contain each policy, by direction.
    policies: Vec<(PolicyKey, [u64; 2])>,
    /// The widest block of each rule set, by family. In such a rule set every narrower block inside has a class of its
    /// own.
    widest: Vec<[Option<u8>; 2]>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cut {
    /// Number of blocks and ports that count, by direction.
    items: [usize; 2],
    omitted: Omitted,
}

/// Number of blocks and ports of one policy in one direction that still fit within the memory limit.
#[derive(Debug)]
pub(super) struct Quota {
    left: usize,
    exceeded: bool,
}

impl Quota {
    /// Counts the next block or port. Returns whether it fits.
    pub(super) fn take_one(&mut self) -> bool {
        let fits = self.left > 0;
        self.left = self.left.saturating_sub(1);
        self.exceeded |= !fits;
        fits
    }

    /// Returns whether a block or port did not fit.
    pub(super) fn is_exceeded(&self) -> bool {
        self.exceeded
    }
}

impl MemoryLimit {
    pub(super) fn of(limit: Option<u64>) -> Self {
        Self { limit, ..Self::default() }
    }

    pub(super) fn bytes(&self) -> Option<u64> {
        self.limit
    }

    /// Records that a pod is in scope, or no longer is.
    pub(super) fn record_pod(&mut self, key: &PodKey, in_scope: bool) {
        if self.limit.is_none() {
            return;
        }
        let pods = self.pods.entry(key.namespace.clone()).or_default();
        let was_in_scope = if in_scope { !pods.insert(key.clone()) } else { pods.remove(key) };
        if pods.is_empty() {
            self.pods.remove(&key.namespace);
        }
        if in_scope || was_in_scope {
            self.changed.insert(key.namespace.clone());
        }
    }

    /// Records a new, changed or deleted policy.
    pub(super) fn record_policy(&mut self, key: &PolicyKey, policy: Option<&Policy>) {
        if self.limit.is_none() {
            return;
        }
        let sum = |sizes: &[Size; 2]| {
            let prefixes = sizes.iter().flat_map(|size| size.prefixes.values()).sum::<u64>();
            (prefixes, sizes[0].ports + sizes[1].ports)
        };
        let after = policy.map(|policy| Direction::BOTH.map(|direction| Size::of(rules(policy, direction))));
        let (prefixes, ports) = after.as_ref().map(sum).unwrap_or_default();
        let before = match after {
            Some(sizes) => self.sizes.insert(key.clone(), sizes),
            None => self.sizes.remove(key),
        };
        let (old_prefixes, old_ports) = before.as_ref().map(sum).unwrap_or_default();
        let sums = self.sums.entry(key.namespace.clone()).or_default();
        *sums = (sums.0 + prefixes - old_prefixes, sums.1 + ports - old_ports);
        self.changed.insert(key.namespace.clone());
    }

    /// Returns whether a namespace may use this many more bytes for what is known only after compilation: port sets and
    /// entries for classes of pods. Half of the limit is reserved for these. Of this half, one part is first come, first
    /// served. The other part, of the same size, is divided equally among namespaces with pods in scope, so that each
    /// namespace always has its share.
    pub(super) fn has_room(
        &self,
        namespace: &NamespaceName,
        (ports, allow): (&EntryCounts, &EntryCounts),
        (new_ports, new_allow): (u64, u64),
    ) -> bool {
        let Some(limit) = self.limit else { return true };
        let quarter = limit / 4;
        let bytes = |ports: u64, allow: u64| ports * TRIE_ENTRY + allow * ALLOW_ENTRY;
        let guaranteed = quarter / (self.pods.len() as u64).max(1);
        bytes(ports.total() + new_ports, allow.total() + new_allow) <= quarter
            || bytes(ports.of(namespace) + new_ports, allow.of(namespace) + new_allow) <= guaranteed
    }

    /// Returns how many blocks and ports of a policy fit in one direction.
    pub(super) fn quota(&self, policy: &PolicyKey, direction: Direction) -> Quota {
        let left = self.cuts.get(policy).map_or(usize::MAX, |cut| cut.items[direction as usize]);
        Quota { left, exceeded: false }
    }

    /// Returns the policies that are cut.
    pub(super) fn cuts(&self) -> impl Iterator<Item = (&PolicyKey, Omitted)> {
        self.cuts.iter().map(|(policy, cut)| (policy, cut.omitted))
    }

    /// Divides the limit after a change. Returns the policies with a changed cut.
    pub(super) fn balance(&mut self, cluster_state: &ClusterState) -> Vec<PolicyKey> {
        let changed = std::mem::take(&mut self.changed);
        // The other half is reserved for what is known only after compilation.
        let Some(limit) = self.limit.filter(|_| !changed.is_empty()).map(|limit| limit / 2) else { return Vec::new() };
        let cuts = if self.upper_bound() <= limit {
            self.demands.clear();
            BTreeMap::new()
        } else {
            let all = if self.demands.is_empty() { self.pods.keys().cloned().collect() } else { changed };
            for namespace in all {
                match self.pods.get(&namespace) {
                    Some(pods) => {
                        let demand = self.demand(cluster_state, &namespace, pods);
                        self.demands.insert(namespace, demand);
                    }
                    None => drop(self.demands.remove(&namespace)),
                }
            }
            self.share(cluster_state, limit)
        };
        let before = std::mem::replace(&mut self.cuts, cuts);
        let differs = |policy: &PolicyKey| before.get(policy) != self.cuts.get(policy);
        let keys: BTreeSet<&PolicyKey> = before.keys().chain(self.cuts.keys()).collect();
        keys.into_iter().filter(|policy| differs(policy)).cloned().collect()
    }

    /// Returns an upper bound of the cost: each pod has rule sets of its own, with an entry for each prefix.
    fn upper_bound(&self) -> u64 {
        let pods: u64 = self.pods.values().map(|pods| pods.len() as u64).sum();
        let cost = |(namespace, own): (&NamespaceName, &BTreeSet<PodKey>)| {
            let (prefixes, ports) = self.sums.get(namespace).copied().unwrap_or_default();
            let prefixes = prefixes.saturating_mul(TRIE_ENTRY + ALLOW_ENTRY * 2 * pods);
            prefixes.saturating_add(ports.saturating_mul(TRIE_ENTRY * 2 * own.len() as u64))
        };
        self.pods.iter().map(cost).fold(0, u64::saturating_add)
    }

    /// Returns the rule sets that the pods of a namespace will have. Pods that the same policies select share a rule
    /// set.
    fn demand(&self, cluster_state: &ClusterState, namespace: &NamespaceName, pods: &BTreeSet<PodKey>) -> Demand {
        let pods: Vec<&Pod> = pods.iter().filter_map(|key| cluster_state.pods.get(key)).collect();
        // A named port of an ingress rule is resolved on the selected pod.
        let mut rule_sets: Vec<_> = pods.iter().map(|pod| [(hash(&pod.ports), [None; 2]), (0, [None; 2])]).collect();
        let mut selecting = Vec::new();
        for policy in policies_of(cluster_state, namespace) {
            let selected: Vec<usize> =
                (0..pods.len()).filter(|index| policy.pods.isolates(&pods[*index].labels)).collect();
            let Some(sizes) = self.sizes.get(&policy.key).filter(|_| !selected.is_empty()) else { continue };
            let policy_hash = hash(&policy.key);
            for direction in Direction::BOTH.into_iter().filter(|direction| rules(policy, *direction).is_some()) {
                for index in &selected {
                    let (fingerprint, widest) = &mut rule_sets[*index][direction as usize];
                    *fingerprint = fingerprint.wrapping_mul(31).wrapping_add(policy_hash);
                    for (ipv6, length) in sizes[direction as usize].prefixes.keys() {
                        let widest = &mut widest[usize::from(*ipv6)];
                        *widest = Some(widest.unwrap_or(u8::MAX).min(*length));
                    }
                }
            }
            selecting.push((policy, selected));
        }
        let count = |policy: &Policy, selected: &[usize], direction: Direction| {
            let distinct = |index: &usize| rule_sets[*index][direction as usize].0;
            let isolates = rules(policy, direction).is_some();
            if isolates { selected.iter().map(distinct).collect::<HashSet<u64>>().len() as u64 } else { 0 }
        };
        let policies = selecting
            .iter()
            .map(|(policy, selected)| {
                (policy.key.clone(), Direction::BOTH.map(|direction| count(policy, selected, direction)))
            })
            .collect();
        let distinct: BTreeMap<_, _> = Direction::BOTH
            .into_iter()
            .flat_map(|direction| {
                rule_sets
                    .iter()
                    .map(move |sets| ((direction as usize, sets[direction as usize].0), sets[direction as usize].1))
            })
            .collect();
        Demand { policies, widest: distinct.into_values().filter(|widest| *widest != [None; 2]).collect() }
    }

    /// Divides the limit. Returns the policies that cost more than their share.
    fn share(&self, cluster_state: &ClusterState, limit: u64) -> BTreeMap<PolicyKey, Cut> {
        let all = WiderBlocks::of(self.demands.values().flat_map(|demand| &demand.widest));
        let prices: BTreeMap<&NamespaceName, Price<'_>> = self
            .demands
            .iter()
            .map(|(namespace, demand)| (namespace, Price { all: &all, own: WiderBlocks::of(&demand.widest) }))
            .collect();
        let mut costs: BTreeMap<&NamespaceName, BTreeMap<&PolicyKey, u64>> = BTreeMap::new();
        for (namespace, demand) in &self.demands {
            let cost = |(policy, rule_sets): &(PolicyKey, [u64; 2])| {
                let sizes = self.sizes.get(policy).into_iter().flatten().zip(rule_sets);
                sizes.map(|(size, rule_sets)| prices[namespace].of_size(size, *rule_sets)).fold(0, u64::saturating_add)
            };
            let of_policies = demand.policies.iter().map(|policy| (&policy.0, cost(policy))).collect();
            costs.insert(namespace, of_policies);
        }
        let total = |costs: &BTreeMap<&PolicyKey, u64>| costs.values().copied().fold(0, u64::saturating_add);
        let level = rounded(fair_share(costs.values().map(total), limit));
        let mut cuts = BTreeMap::new();
        for (namespace, policies) in costs.iter().filter(|(_, policies)| total(policies) > level) {
            let level = rounded(fair_share(policies.values().copied(), level));
            for policy in policies.iter().filter(|(_, cost)| **cost > level).map(|(policy, _)| *policy) {
                let rule_sets = self.demands[*namespace].policies.iter().find(|(key, _)| key == policy);
                if let (Some(policy), Some((_, rule_sets))) = (cluster_state.policies.get(policy), rule_sets) {
                    cuts.insert(policy.key.clone(), prices[namespace].cut(policy, *rule_sets, level));
                }
            }
        }
        cuts
    }
}

impl Size {
    fn of(rules: Option<&[Rule]>) -> Self {
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

/// Number of rule sets with a wider block than a prefix of a given length, by family.
struct WiderBlocks([Vec<u64>; 2]);

impl WiderBlocks {
    fn of<'a>(rule_sets: impl IntoIterator<Item = &'a [Option<u8>; 2]>) -> Self {
        let mut wide = [vec![0; 130], vec![0; 130]];
        for widest in rule_sets {
            for (wide, length) in wide.iter_mut().zip(widest) {
                if let Some(length) = length {
                    wide[usize::from(*length) + 1] += 1;
                }
            }
        }
        for lengths in &mut wide {
            for length in 1..lengths.len() {
                lengths[length] += lengths[length - 1];
            }
        }
        Self(wide)
    }

    fn wider_than(&self, (ipv6, length): (bool, u8)) -> u64 {
        self.0[usize::from(ipv6)].get(usize::from(length)).copied().unwrap_or(0)
    }
}

/// Computes the cost of a namespace's blocks and ports.
struct Price<'a> {
    all: &'a WiderBlocks,
    own: WiderBlocks,
}

impl Price<'_> {
    /// Returns the cost of a prefix. A prefix has a class of its own, so it takes an entry in each rule set with the
    /// same or a wider block. Entries for wider blocks of other namespaces are charged to the narrow block: these
    /// namespaces need only their own blocks without it.
    fn of_prefix(&self, prefix: (bool, u8), rule_sets: u64) -> u64 {
        let own = self.own.wider_than(prefix);
        TRIE_ENTRY + ALLOW_ENTRY * (own.max(rule_sets) + self.all.wider_than(prefix) - own)
    }

    fn of_size(&self, size: &Size, rule_sets: u64) -> u64 {
        if rule_sets == 0 {
            return 0;
        }
        let prefixes =
            size.prefixes.iter().map(|(prefix, count)| count.saturating_mul(self.of_prefix(*prefix, rule_sets)));
        prefixes.fold(0, u64::saturating_add).saturating_add(size.ports.saturating_mul(TRIE_ENTRY * rule_sets))
    }

    /// Cuts a policy to at most this cost.
    fn cut(&self, policy: &Policy, rule_sets: [u64; 2], most: u64) -> Cut {
        let mut cut = Cut { items: [0; 2], omitted: Omitted::default() };
        let mut spent: u64 = 0;
        for direction in Direction::BOTH {
            let rule_sets = rule_sets[direction as usize];
            let mut full = false;
            for item in rules(policy, direction).unwrap_or_default().iter().flat_map(items) {
                let cost = match item {
                    Item::Block(block) => {
                        nets(block).map(|net| self.of_prefix(family_and_length(net), rule_sets)).sum()
                    }
                    Item::Port(port) => prefix_count(&port.port) * TRIE_ENTRY * rule_sets,
                };
                full |= rule_sets > 0 && spent.saturating_add(cost) > most;
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

/// Returns the policies of a namespace, in the order of their names.
pub(super) fn policies_of<'a>(
    cluster_state: &'a ClusterState,
    namespace: &'a NamespaceName,
) -> impl Iterator<Item = &'a Policy> {
    let policies = cluster_state.policies.range(PolicyKey::new(namespace.clone(), "")..).map(|(_, policy)| policy);
    policies.take_while(move |policy| policy.key.namespace == *namespace)
}

/// A block or port of a rule, in the order in which [`Quota`] counts it.
enum Item<'a> {
    Block(&'a IpBlock),
    Port(&'a PortMatch),
}

fn items(rule: &Rule) -> impl Iterator<Item = Item<'_>> {
    let peers = match &rule.peers {
        Peers::Any => &[][..],
        Peers::Of(peers) => peers,
    };
    let ports = match &rule.ports {
        Ports::Any => &[][..],
        Ports::Of(ports) => ports,
    };
    let blocks = peers.iter().filter_map(|peer| match peer {
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

fn hash(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

/// Rounds a share down to [`SHARE_BITS`] significant bits.
fn rounded(share: u64) -> u64 {
    let dropped = (u64::BITS - share.leading_zeros()).saturating_sub(SHARE_BITS);
    share >> dropped << dropped
}

/// Returns the max-min fair share of the limit: smaller demands are met in full, and the others get the same amount
/// each.
fn fair_share(demands: impl Iterator<Item = u64>, limit: u64) -> u64 {
    let mut demands: Vec<u64> = demands.collect();
    demands.sort_unstable();
    let mut left = limit;
    for (done, demand) in demands.iter().enumerate() {
        let share = left / (demands.len() - done) as u64;
        if *demand > share {
            return share;
        }
        left -= demand;
    }
    u64::MAX
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_demands_are_met_and_the_others_share_the_rest() {
        let cases: [(&[u64], u64, u64); 6] = [
            (&[], 10, u64::MAX),
            (&[3, 7], 10, u64::MAX),
            (&[3, 8], 10, 7),
            (&[100, 100], 10, 5),
            (&[1, 100, 2, 100], 23, 10),
            (&[5, 5, 5], 14, 4),
        ];
        for (demands, limit, share) in cases {
            assert_eq!(fair_share(demands.iter().copied(), limit), share, "{demands:?}");
        }
    }

    #[test]
    fn shares_change_in_steps() {
        for (share, expected) in [(0, 0), (7, 7), (15, 15), (17, 16), (31, 30), (1_000_000, 983_040)] {
            assert_eq!(rounded(share), expected, "{share}");
        }
    }
}
