//! Counts the flows that each rule allows, and the flows that are denied, or would be denied, because of each policy.

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant, SystemTime};

use netpol_dataplane::Dataplane;
use netpol_policy::cluster_state::ClusterState;
use netpol_policy::model::PolicyKey;
use netpol_policy::reference::RuleRef;

use super::explain::{CountedRule, content_hash};
use super::quota::Quota;
use crate::reconcile::Reconciler;

/// Maximum number of rules that have counters. The same limit applies to policies.
const MAX_COUNTED: usize = 10_000;
/// Maximum number of rules of one namespace that have counters. The same limit applies to policies.
const MAX_PER_NAMESPACE: usize = 1000;
/// One event is counted for at most this number of policies.
pub(super) const MAX_POLICIES: usize = 64;

/// Minimum time between two calls of [`HitCounters::refresh`] that have an effect.
const REFRESH_INTERVAL: Duration = Duration::from_secs(5);

/// A counter of flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hits {
    /// The number of flows.
    pub flows: u64,
    /// The time of the last flow.
    pub last: SystemTime,
}

#[derive(Debug)]
struct RuleHits {
    /// The hash of the rule's content when its flows were counted.
    content_hash: u64,
    hits: Hits,
}

/// All counters. Only `refresh` removes counters, because a search for outdated counters at each event would take too
/// long. At the limit, no new counters are added.
#[derive(Debug)]
pub struct HitCounters {
    /// When counting started.
    since: SystemTime,
    rules: HashMap<RuleRef, RuleHits>,
    rule_quota: Quota,
    /// Flows that were allowed by an unknown rule, or by a rule without a counter.
    uncounted_flows: u64,
    /// Denied flows.
    denied: PolicyCounters,
    /// Flows that policies in shadow mode would deny.
    shadow: PolicyCounters,
    /// Policies that select pods of this node.
    local: BTreeSet<PolicyKey>,
    /// When `local` was set, and [`Reconciler::engine_version`] at this time.
    refreshed: Option<(Instant, u64)>,
}

impl Default for HitCounters {
    fn default() -> Self {
        Self {
            since: SystemTime::now(),
            rules: HashMap::new(),
            rule_quota: Quota::new(MAX_COUNTED, MAX_PER_NAMESPACE),
            uncounted_flows: 0,
            denied: PolicyCounters::default(),
            shadow: PolicyCounters::default(),
            local: BTreeSet::new(),
            refreshed: None,
        }
    }
}

impl HitCounters {
    /// Returns the time since which flows have been counted.
    pub fn since(&self) -> SystemTime {
        self.since
    }

    /// Returns the number of flows that were allowed by an unknown rule, or by a rule without a counter.
    pub fn uncounted_flows(&self) -> u64 {
        self.uncounted_flows
    }

    /// Counts flows that a rule allows. If the content of the rule has changed, its counter starts at 0 again.
    pub(super) fn count_allowed(&mut self, rule: &CountedRule, flows: u64, at: SystemTime) {
        let new = || RuleHits { content_hash: rule.content_hash, hits: Hits { flows: 0, last: at } };
        if !self.rules.contains_key(&rule.rule) {
            let namespace = &rule.rule.policy.namespace;
            if !self.rule_quota.has_room(namespace) {
                self.uncounted_flows += flows;
                return;
            }
            self.rule_quota.add(namespace);
        }
        let counted = self.rules.entry(rule.rule.clone()).or_insert_with(new);
        if counted.content_hash != rule.content_hash {
            *counted = new();
        }
        counted.hits.flows += flows;
        counted.hits.last = counted.hits.last.max(at);
    }

    /// Counts flows that an unknown rule allows.
    pub(super) fn count_allowed_by_unknown(&mut self, flows: u64) {
        self.uncounted_flows += flows;
    }

    /// Counts a denied flow for each of the policies that isolate the pod.
    pub(super) fn count_denied(&mut self, policies: &[PolicyKey], at: SystemTime) {
        self.denied.count(policies, 1, at);
    }

    /// Counts flows that policies in shadow mode would deny, for each of these policies.
    pub(super) fn count_shadow_denied(&mut self, policies: &[PolicyKey], flows: u64, at: SystemTime) {
        self.shadow.count(policies, flows, at);
    }

    /// Returns the counter of a rule; `None` if no flow was counted since the rule changed.
    pub fn of_rule(&self, rule: &RuleRef, cluster_state: &ClusterState) -> Option<Hits> {
        let counted = self.rules.get(rule)?;
        (content_hash(cluster_state, rule)? == counted.content_hash).then_some(counted.hits)
    }

    /// Returns the counters of rules of the policies that select pods of this node, sorted by rule.
    pub fn local_rules(&self) -> Vec<(&RuleRef, Hits)> {
        let local = self.rules.iter().filter(|(rule, _)| self.local.contains(&rule.policy));
        let mut rules: Vec<_> = local.map(|(rule, counted)| (rule, counted.hits)).collect();
        rules.sort_unstable_by_key(|(rule, _)| *rule);
        rules
    }

    /// Finds out which policies select pods of this node, and removes counters of rules and policies that do not exist
    /// any more. Does nothing in most calls: see [`REFRESH_INTERVAL`].
    pub(super) fn refresh<D: Dataplane>(&mut self, reconciler: &Reconciler<D>, now: Instant) {
        let version = reconciler.engine_version();
        let is_outdated = |(at, refreshed_version): (Instant, u64)| {
            refreshed_version != version && now.saturating_duration_since(at) >= REFRESH_INTERVAL
        };
        if !self.refreshed.is_none_or(is_outdated) {
            return;
        }
        self.refreshed = Some((now, version));
        let cluster_state = reconciler.engine().cluster_state();
        self.local = reconciler.engine().policies_on_node().map(|listed| listed.policy.key.clone()).collect();
        self.remove_stale(cluster_state);
    }

    /// Removes counters of rules and policies that do not exist any more.
    fn remove_stale(&mut self, cluster_state: &ClusterState) {
        self.rules.retain(|rule, counted| content_hash(cluster_state, rule) == Some(counted.content_hash));
        self.rule_quota.set(self.rules.keys().map(|rule| rule.policy.namespace.clone()));
        self.denied.remove_stale(cluster_state);
        self.shadow.remove_stale(cluster_state);
    }

    /// Returns the counter of the denied flows of the pods that a policy isolates.
    pub fn denied_of(&self, policy: &PolicyKey) -> Option<Hits> {
        self.denied.hits.get(policy).copied()
    }

    /// Returns the counter of the flows that a policy in shadow mode would deny, alone or together with other
    /// policies.
    pub fn shadow_denied_of(&self, policy: &PolicyKey) -> Option<Hits> {
        self.shadow.hits.get(policy).copied()
    }
}

/// Counters of policies.
#[derive(Debug)]
struct PolicyCounters {
    hits: HashMap<PolicyKey, Hits>,
    quota: Quota,
}

impl Default for PolicyCounters {
    fn default() -> Self {
        Self { hits: HashMap::new(), quota: Quota::new(MAX_COUNTED, MAX_PER_NAMESPACE) }
    }
}

impl PolicyCounters {
    fn count(&mut self, policies: &[PolicyKey], flows: u64, at: SystemTime) {
        for policy in policies.iter().take(MAX_POLICIES) {
            if !self.hits.contains_key(policy) {
                if !self.quota.has_room(&policy.namespace) {
                    continue;
                }
                self.quota.add(&policy.namespace);
            }
            let hits = self.hits.entry(policy.clone()).or_insert(Hits { flows: 0, last: at });
            hits.flows += flows;
            hits.last = hits.last.max(at);
        }
    }

    fn remove_stale(&mut self, cluster_state: &ClusterState) {
        self.hits.retain(|policy, _| cluster_state.policies.contains_key(policy));
        self.quota.set(self.hits.keys().map(|policy| policy.namespace.clone()));
    }
}

#[cfg(test)]
mod tests {
    use netpol_common::Direction;
    use netpol_policy::manifest;

    use super::*;

    /// Returns a cluster with the policy `shop/web`, which has one rule for this port.
    fn cluster_state(port: u16) -> ClusterState {
        let text = format!(
            "{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: web, namespace: shop}}, \
             spec: {{podSelector: {{}}, ingress: [{{ports: [{{port: {port}}}]}}]}}}}"
        );
        ClusterState::from_objects(manifest::parse(&text, "f").objects.into_iter().map(|located| located.object))
    }

    /// Returns the ingress rule of `shop/web` with this index, and the hash of its content in this cluster.
    fn rule(index: usize, cluster_state: &ClusterState) -> CountedRule {
        let rule = RuleRef { policy: PolicyKey::new("shop", "web"), direction: Direction::Ingress, index };
        CountedRule { content_hash: content_hash(cluster_state, &rule).unwrap_or_default(), rule }
    }

    #[test]
    fn the_counter_of_a_rule_starts_again_at_zero_when_the_rule_changes() {
        let (before, after) = (cluster_state(80), cluster_state(81));
        let mut counters = HitCounters::default();
        let at = SystemTime::UNIX_EPOCH;
        counters.count_allowed(&rule(0, &before), 3, at + Duration::from_secs(1));
        counters.count_allowed(&rule(0, &before), 1, at);
        let flows_of_rule =
            |counters: &HitCounters, state| counters.of_rule(&rule(0, &before).rule, state).map(|hits| hits.flows);
        assert_eq!(flows_of_rule(&counters, &before), Some(4));
        assert_eq!(flows_of_rule(&counters, &after), None, "the rule has another port now");
        counters.count_allowed(&rule(0, &after), 2, at);
        assert_eq!(flows_of_rule(&counters, &after), Some(2));
    }

    #[test]
    fn the_number_of_counters_is_bounded_and_all_other_flows_are_counted_together() {
        let state = cluster_state(80);
        let mut counters = HitCounters::default();
        let at = SystemTime::now();
        let of_namespace = |namespace: usize, index: usize| {
            let policy = PolicyKey::new(format!("n{namespace}"), "web");
            CountedRule { rule: RuleRef { policy, ..rule(index, &state).rule }, content_hash: 0 }
        };
        for index in 0..3 * MAX_PER_NAMESPACE {
            counters.count_allowed(&of_namespace(0, index), 1, at);
        }
        assert_eq!(
            (counters.rules.len(), counters.uncounted_flows()),
            (MAX_PER_NAMESPACE, 2 * MAX_PER_NAMESPACE as u64)
        );
        counters.count_allowed(&rule(0, &state), 1, at);
        assert_eq!(counters.rules.len(), MAX_PER_NAMESPACE + 1, "namespace shop must still have room");
        for index in 0..2 * MAX_COUNTED {
            counters.count_allowed(&of_namespace(index % 100, index), 1, at);
            counters.count_denied(&[PolicyKey::new(format!("n{}", index % 100), index.to_string())], at);
        }
        assert_eq!((counters.rules.len(), counters.denied.hits.len()), (MAX_COUNTED, MAX_COUNTED));
        // Only the rule of `shop/web` exists. All other counters are removed, and there is room for new ones.
        counters.remove_stale(&state);
        assert_eq!((counters.rules.len(), counters.denied.hits.len()), (1, 0));
        counters.count_allowed(&of_namespace(0, 0), 1, at);
        assert_eq!(counters.rules.len(), 2);
    }

    #[test]
    fn an_event_is_counted_for_a_bounded_number_of_policies() {
        let mut counters = HitCounters::default();
        let policies: Vec<PolicyKey> = (0..1000).map(|index| PolicyKey::new("shop", format!("p{index}"))).collect();
        counters.count_denied(&policies, SystemTime::now());
        assert_eq!(counters.denied.hits.len(), MAX_POLICIES);
    }
}
