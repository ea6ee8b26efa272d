//! Memory limit for policies: how much kernel memory each policy costs in the BPF maps, and which blocks and ports of
//! policies are omitted above the limit. The module [`super`] explains the terms.
//!
//! Costs are computed from the objects before anything is written, so that the same objects always have the same
//! result. If the sum is above the limit, namespaces share the limit max-min fairly: a namespace that costs less than
//! an equal share is not affected, and all others get the same amount. Policies share their namespace's amount in the
//! same way. A policy that costs more than its share is cut: only its first blocks and ports are used, up to the share.
//! A block is omitted with all of its `except` entries, so that a cut policy never allows more than the complete
//! policy.

mod price;

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::hash::{Hash, Hasher};

use netpol_common::Direction;

use super::entry_counts::EntryCounts;
use super::resolve::isolates;
use crate::cluster_state::ClusterState;
use crate::model::{Mode, NamespaceName, Pod, PodKey, Policy, PolicyKey};

pub use price::ALLOW_ENTRY;
use price::{Cut, Prices, RuleSetCounts, Size, TRIE_ENTRY, Widest};

/// Number of significant bits of a share. The other bits are zero, so a share changes in steps of at most an eighth.
/// Without steps, every change would move all cuts a little, and each moved cut recompiles its policy.
const SHARE_BITS: u32 = 4;

/// How much of a policy is omitted because of the memory limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Omitted {
    /// Number of omitted `ipBlock` peers.
    pub blocks: usize,
    /// Number of omitted items of `ports`.
    pub ports: usize,
    /// Number of all `ipBlock` peers and items of `ports` in the policy.
    pub policy_items: usize,
    /// Number of missing entries of rule sets that contain this policy. An entry is an `ALLOW` entry, or the list of
    /// ports that a rule set allows to any peer. A missing entry is counted for each policy of its rule set.
    pub entries: usize,
}

/// An account, to which map entries are charged: the name of a namespace, or [`shadow_account`].
pub(super) type Account = NamespaceName;

/// The account of all rule sets for shadow mode. No namespace has an empty name.
fn shadow_account() -> Account {
    Account::default()
}

/// Returns the account for a namespace's rule sets of this mode.
pub(super) fn account(mode: Mode, namespace: &NamespaceName) -> Account {
    match mode {
        Mode::Enforce => namespace.clone(),
        Mode::Shadow => shadow_account(),
    }
}

/// What changed when the limit was divided again.
#[derive(Debug, Default)]
pub(super) struct Balance {
    /// The policies with a changed cut.
    pub(super) policies: Vec<PolicyKey>,
    /// The namespaces that got or lost the memory for policies in shadow mode.
    pub(super) namespaces: Vec<NamespaceName>,
}

/// Memory limit and costs of policies; see the module documentation.
#[derive(Clone, Debug, Default)]
pub(super) struct MemoryLimit {
    /// Limit in bytes. `None` means no limit.
    limit: Option<u64>,
    /// Pods in scope: the pods that get endpoints. In an agent, these are the pods of its node.
    pods: BTreeMap<NamespaceName, BTreeSet<PodKey>>,
    /// Size of each policy, by direction.
    sizes: BTreeMap<PolicyKey, [Size; 2]>,
    /// For each namespace, the sums over the sizes of its policies: the number of CIDRs (`Size::prefixes`), and the
    /// number of port prefixes (`Size::ports`).
    sums: BTreeMap<NamespaceName, (u64, u64)>,
    /// The demand of each namespace. Empty while the limit cannot be exceeded.
    demands: BTreeMap<NamespaceName, NamespaceDemand>,
    /// Namespaces with a changed policy or pod since the limit was divided last.
    changed: BTreeSet<NamespaceName>,
    /// The policies that are cut, and what is used of them.
    cuts: BTreeMap<PolicyKey, Cut>,
    /// Namespaces with policies in shadow mode.
    shadow: BTreeSet<NamespaceName>,
    /// Namespaces with policies in shadow mode for which there is no memory.
    without_shadow: BTreeSet<NamespaceName>,
}

/// The demand of a namespace.
#[derive(Clone, Debug, Default)]
struct NamespaceDemand {
    enforced: Demand,
    /// The demand of the rule sets for shadow mode. These rule sets also contain enforced policies.
    shadow: Demand,
}

/// What the rule sets of one mode need in a namespace. Only policies that select pods in scope are listed.
#[derive(Clone, Debug, Default)]
struct Demand {
    /// The rule sets that contain each policy, by direction.
    policies: Vec<(PolicyKey, [RuleSetCounts; 2])>,
    /// The widest block of each rule set.
    widest: Vec<Widest>,
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

    /// Records whether a pod is in scope.
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
        let after = policy.map(|policy| Direction::BOTH.map(|direction| Size::of(policy.rules(direction))));
        let (prefixes, ports) = after.as_ref().map(sum).unwrap_or_default();
        let before = match after {
            Some(sizes) => self.sizes.insert(key.clone(), sizes),
            None => self.sizes.remove(key),
        };
        let (old_prefixes, old_ports) = before.as_ref().map(sum).unwrap_or_default();
        let sums = self.sums.entry(key.namespace.clone()).or_default();
        *sums = (sums.0 + prefixes - old_prefixes, sums.1 + ports - old_ports);
        if *sums == (0, 0) {
            self.sums.remove(&key.namespace);
        }
        self.changed.insert(key.namespace.clone());
    }

    /// Records whether a namespace has policies in shadow mode.
    pub(super) fn record_modes(&mut self, namespace: &NamespaceName, cluster_state: &ClusterState) {
        if self.limit.is_none() {
            return;
        }
        if cluster_state.has_shadow_policies(namespace) {
            self.shadow.insert(namespace.clone());
        } else {
            self.shadow.remove(namespace);
        }
        self.changed.insert(namespace.clone());
    }

    /// Returns whether a namespace has memory for policies in shadow mode.
    pub(super) fn has_room_for_shadow(&self, namespace: &NamespaceName) -> bool {
        !self.without_shadow.contains(namespace)
    }

    /// Returns the namespaces without memory for policies in shadow mode.
    pub(super) fn namespaces_without_shadow(&self) -> &BTreeSet<NamespaceName> {
        &self.without_shadow
    }

    /// Returns whether an account may use `new_ports` more entries of port sets, and `new_allow` more `ALLOW` entries
    /// for classes of pods. How many of these entries are needed is known only after compilation. Half of the limit is
    /// reserved for them: one quarter is first come, first served, and one quarter is divided equally among namespaces
    /// with pods in scope. So each namespace always has its share. Rule sets for shadow mode may use a sixteenth of the
    /// limit while the first of these quarters has room. Their entries are not counted when enforced rule sets need
    /// room.
    pub(super) fn has_room(
        &self,
        account: &Account,
        (ports, allow): (&EntryCounts, &EntryCounts),
        (new_ports, new_allow): (u64, u64),
    ) -> bool {
        let Some(limit) = self.limit else { return true };
        let quarter = limit / 4;
        let bytes = |ports: u64, allow: u64| ports * TRIE_ENTRY + allow * ALLOW_ENTRY;
        let guaranteed = quarter / (self.pods.len() as u64).max(1);
        let shadow = shadow_account();
        let of_account = bytes(ports.of_account(account) + new_ports, allow.of_account(account) + new_allow);
        if *account == shadow {
            return of_account <= limit / 16 && bytes(ports.total() + new_ports, allow.total() + new_allow) <= quarter;
        }
        let enforced = (ports.total() - ports.of_account(&shadow), allow.total() - allow.of_account(&shadow));
        bytes(enforced.0 + new_ports, enforced.1 + new_allow) <= quarter || of_account <= guaranteed
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

    /// Divides the limit after a change.
    pub(super) fn balance(&mut self, cluster_state: &ClusterState) -> Balance {
        let changed = std::mem::take(&mut self.changed);
        // Half of the limit is reserved for entries that are known only after compilation, see `has_room`.
        let Some(limit) = self.limit.filter(|_| !changed.is_empty()).map(|limit| limit / 2) else {
            return Balance::default();
        };
        let (cuts, without_shadow) = if self.upper_bound() <= limit {
            self.demands.clear();
            Default::default()
        } else {
            let namespaces = if self.demands.is_empty() { self.pods.keys().cloned().collect() } else { changed };
            for namespace in namespaces {
                match self.pods.get(&namespace) {
                    Some(pods) => {
                        let demand = self.namespace_demand(cluster_state, &namespace, pods);
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
        let policies = keys.into_iter().filter(|policy| differs(policy)).cloned().collect();
        let namespaces = self.without_shadow.symmetric_difference(&without_shadow).cloned().collect();
        self.without_shadow = without_shadow;
        Balance { policies, namespaces }
    }

    /// Returns an upper bound of the cost, as if each pod had rule sets of its own, with an entry for each prefix.
    fn upper_bound(&self) -> u64 {
        let pods: u64 = self.pods.values().map(|pods| pods.len() as u64).sum();
        // The rule sets of a pod: one for each direction, enforced and for shadow mode.
        let rule_sets = if self.shadow.is_empty() { 2 } else { 4 };
        let cost = |(namespace, own_pods): (&NamespaceName, &BTreeSet<PodKey>)| {
            let (prefixes, ports) = self.sums.get(namespace).copied().unwrap_or_default();
            let prefixes = prefixes.saturating_mul(TRIE_ENTRY + ALLOW_ENTRY * rule_sets * pods);
            prefixes.saturating_add(ports.saturating_mul(TRIE_ENTRY * rule_sets * own_pods.len() as u64))
        };
        self.pods.iter().map(cost).fold(0, u64::saturating_add)
    }

    /// Returns the demand of a namespace with these pods in scope.
    fn namespace_demand(
        &self,
        cluster_state: &ClusterState,
        namespace: &NamespaceName,
        pods: &BTreeSet<PodKey>,
    ) -> NamespaceDemand {
        let pods: Vec<&Pod> = pods.iter().filter_map(|key| cluster_state.pods.get(key)).collect();
        let modes = cluster_state.effective_modes(namespace);
        let policies: Vec<&Policy> = policies_of(cluster_state, namespace).collect();
        let is_enforced = |policy: &&Policy| modes.of(policy) == Mode::Enforce;
        let enforced: Vec<&Policy> = policies.iter().copied().filter(is_enforced).collect();
        if enforced.len() == policies.len() {
            return NamespaceDemand { enforced: self.demand(&pods, &enforced, |_, _| true), shadow: Demand::default() };
        }
        let has_shadow = |pod: &Pod, direction| {
            let mut shadow = policies.iter().filter(|policy| !is_enforced(policy));
            shadow.any(|policy| isolates(policy, pod, direction))
        };
        NamespaceDemand {
            enforced: self.demand(&pods, &enforced, |_, _| true),
            shadow: self.demand(&pods, &policies, has_shadow),
        }
    }

    /// Returns the demand of the rule sets that pods will have with these policies. A pod has a rule set in a direction
    /// only if `has_rule_set` returns true. Pods that the same policies select share a rule set.
    fn demand(&self, pods: &[&Pod], policies: &[&Policy], has_rule_set: impl Fn(&Pod, Direction) -> bool) -> Demand {
        let with_rule_set: Vec<[bool; 2]> =
            pods.iter().map(|pod| Direction::BOTH.map(|direction| has_rule_set(pod, direction))).collect();
        // For each pod and direction, a fingerprint of the rule set, and its widest block by family. A named port of an
        // ingress rule is resolved on the selected pod, so for ingress, the fingerprint depends on the pod's ports.
        let mut rule_sets: Vec<_> = pods.iter().map(|pod| [(hash(&pod.ports), [None; 2]), (0, [None; 2])]).collect();
        let mut selecting = Vec::new();
        for policy in policies {
            let selected: Vec<usize> =
                (0..pods.len()).filter(|index| policy.pods.matches_or_is_invalid(&pods[*index].labels)).collect();
            let Some(sizes) = self.sizes.get(&policy.key).filter(|_| !selected.is_empty()) else { continue };
            let policy_hash = hash(&policy.key);
            for direction in Direction::BOTH.into_iter().filter(|direction| policy.isolates_in(*direction)) {
                for index in selected.iter().filter(|index| with_rule_set[**index][direction as usize]) {
                    let (fingerprint, widest) = &mut rule_sets[*index][direction as usize];
                    *fingerprint = fingerprint.wrapping_mul(31).wrapping_add(policy_hash);
                    for (ipv6, length) in sizes[direction as usize].prefixes.keys() {
                        let widest = &mut widest[usize::from(*ipv6)];
                        *widest = Some(widest.unwrap_or(u8::MAX).min(*length));
                    }
                }
            }
            selecting.push((*policy, selected));
        }
        let count = |policy: &Policy, selected: &[usize], direction: Direction| {
            let mut counts = RuleSetCounts::default();
            let mut counted = HashSet::new();
            for index in selected.iter().filter(|index| with_rule_set[**index][direction as usize]) {
                let (fingerprint, widest) = rule_sets[*index][direction as usize];
                if policy.isolates_in(direction) && counted.insert(fingerprint) {
                    counts.add(widest);
                }
            }
            counts
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

    /// Divides the limit. Returns the cuts of enforced policies that cost more than their share, and the namespaces
    /// without memory for policies in shadow mode. Policies in shadow mode get only what enforced policies do not need.
    /// Namespaces share this rest max-min fairly. If a namespace needs more than its share of the rest, it gets nothing
    /// of the rest: incomplete policies would report denials that the complete policies would not cause.
    fn share(&self, cluster_state: &ClusterState, limit: u64) -> (BTreeMap<PolicyKey, Cut>, BTreeSet<NamespaceName>) {
        let prices = Prices::of(self.demands.values().flat_map(|demand| &demand.enforced.widest));
        let mut costs: BTreeMap<&NamespaceName, BTreeMap<&PolicyKey, u64>> = BTreeMap::new();
        for (namespace, NamespaceDemand { enforced, .. }) in &self.demands {
            let of_policies = enforced.policies.iter().map(|policy| (&policy.0, self.cost(&prices, policy))).collect();
            costs.insert(namespace, of_policies);
        }
        let total = |costs: &BTreeMap<&PolicyKey, u64>| costs.values().copied().fold(0, u64::saturating_add);
        let namespace_share = rounded(fair_share(costs.values().map(total), limit));
        let used = costs.values().map(|costs| total(costs).min(namespace_share)).fold(0, u64::saturating_add);
        let mut cuts = BTreeMap::new();
        for (namespace, policies) in costs.iter().filter(|(_, policies)| total(policies) > namespace_share) {
            let policy_share = rounded(fair_share(policies.values().copied(), namespace_share));
            for policy in policies.iter().filter(|(_, cost)| **cost > policy_share).map(|(policy, _)| *policy) {
                let rule_sets = self.demands[*namespace].enforced.policies.iter().find(|(key, _)| key == policy);
                if let (Some(policy), Some((_, rule_sets))) = (cluster_state.policies.get(policy), rule_sets) {
                    cuts.insert(policy.key.clone(), prices.cut(policy, rule_sets, policy_share));
                }
            }
        }
        (cuts, self.share_shadow(limit.saturating_sub(used)))
    }

    /// Divides the rest of the limit, which enforced policies do not need, among namespaces with policies in shadow
    /// mode. Returns the namespaces that need more than their share.
    fn share_shadow(&self, rest: u64) -> BTreeSet<NamespaceName> {
        let demands = self.demands.values().flat_map(|NamespaceDemand { enforced, shadow }| [enforced, shadow]);
        let prices = Prices::of(demands.flat_map(|demand| &demand.widest));
        let cost = |demand: &Demand| {
            demand.policies.iter().map(|policy| self.cost(&prices, policy)).fold(0, u64::saturating_add)
        };
        let costs: BTreeMap<&NamespaceName, u64> =
            self.demands.iter().map(|(namespace, demand)| (namespace, cost(&demand.shadow))).collect();
        let share = rounded(fair_share(costs.values().copied(), rest));
        costs.into_iter().filter(|(_, cost)| *cost > share).map(|(namespace, _)| namespace.clone()).collect()
    }

    /// Returns the cost of a policy in both directions together. `rule_sets`: those that contain the policy, by
    /// direction.
    fn cost(&self, prices: &Prices, (policy, rule_sets): &(PolicyKey, [RuleSetCounts; 2])) -> u64 {
        let sizes = self.sizes.get(policy).into_iter().flatten().zip(rule_sets);
        sizes.map(|(size, rule_sets)| prices.cost(size, rule_sets)).fold(0, u64::saturating_add)
    }
}

/// Returns the policies of a namespace, in the order of their names.
pub(super) fn policies_of<'a>(
    cluster_state: &'a ClusterState,
    namespace: &NamespaceName,
) -> impl Iterator<Item = &'a Policy> + use<'a> {
    let policies = cluster_state.policies.range(PolicyKey::new(namespace.clone(), "")..).map(|(_, policy)| policy);
    let namespace = namespace.clone();
    policies.take_while(move |policy| policy.key.namespace == namespace)
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

/// Returns the max-min fair share of the limit. Demands up to the share are met in full, and each larger demand gets
/// the share. Returns `u64::MAX` if all demands can be met.
fn fair_share(demands: impl Iterator<Item = u64>, limit: u64) -> u64 {
    let mut demands: Vec<u64> = demands.collect();
    demands.sort_unstable();
    let mut left = limit;
    for (met, demand) in demands.iter().enumerate() {
        let share = left / (demands.len() - met) as u64;
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
