//! Lists policies with the pods that they select, for status and for the counters of the flows that each rule allows.
//! The pods in scope are those that get endpoints: with [`NodeScope::Node`](super::NodeScope::Node), only pods of this
//! node.

use netpol_common::Direction;

use super::Engine;
use super::memory_limit::policies_of;
use crate::model::{Mode, PodKey, Policy};
use crate::reference::{self, RuleRef};

/// A policy, its mode, and the pods that it selects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedPolicy<'a> {
    /// The policy.
    pub policy: &'a Policy,
    /// Its current mode.
    pub mode: Mode,
    /// Whether enforcement is suspended in its namespace. If so, `mode` is [`Mode::Shadow`].
    pub suspended: bool,
    /// The pods in scope that the policy selects.
    pub pods: Vec<&'a PodKey>,
}

impl ListedPolicy<'_> {
    /// Returns the rules of the policy, in the directions that the policy restricts.
    pub fn rules(&self) -> impl Iterator<Item = RuleRef> {
        let rules = Direction::BOTH.into_iter().flat_map(|direction| {
            let count = reference::rules(self.policy, direction).len();
            (0..count).map(move |index| (direction, index))
        });
        rules.map(|(direction, index)| RuleRef { policy: self.policy.key.clone(), direction, index })
    }
}

impl Engine {
    /// Returns all policies, in the order of their keys. Each policy has the list of pods in scope that it selects.
    pub fn policies(&self) -> impl Iterator<Item = ListedPolicy<'_>> {
        self.cluster_state.policies.values().map(|policy| self.listed(policy))
    }

    /// Returns the policies that select at least one pod in scope, in the order of their keys.
    pub fn policies_on_node(&self) -> impl Iterator<Item = ListedPolicy<'_>> {
        let mut policies = Vec::new();
        for name in self.endpoints.namespaces() {
            policies.extend(policies_of(&self.cluster_state, &name).map(|policy| self.listed(policy)));
        }
        policies.into_iter().filter(|listed: &ListedPolicy<'_>| !listed.pods.is_empty())
    }

    fn listed<'a>(&'a self, policy: &'a Policy) -> ListedPolicy<'a> {
        let selects = |pod: &&PodKey| {
            let pod = self.cluster_state.pods.get(*pod);
            pod.is_some_and(|pod| policy.pods.matches_or_is_invalid(&pod.labels))
        };
        let modes = self.cluster_state.effective_modes(&policy.key.namespace);
        ListedPolicy {
            policy,
            mode: modes.of(policy),
            suspended: modes.suspended,
            pods: self.endpoints.of_namespace(&policy.key.namespace).filter(selects).collect(),
        }
    }
}
