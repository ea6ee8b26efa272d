//! The rule sets of each endpoint (a pod interface under enforcement, identified by its pod). A rule set has the
//! compiled rules of all policies that isolate the pod in one direction.

use std::collections::BTreeMap;

use netpol_common::{Direction, DirectionPolicy, RuleSetId};

use crate::model::{Mode, NamespaceName, PodKey};

/// The purpose of a rule set of an endpoint. Each endpoint has one rule set for each pair of a mode and a direction. In
/// shadow mode, policies are only evaluated and reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Slot {
    pub(super) mode: Mode,
    pub(super) direction: Direction,
}

impl Slot {
    /// All slots. Those of enforced policies come first, so that their rule sets get memory first.
    pub(super) const ALL: [Self; 4] = [
        Self { mode: Mode::Enforce, direction: Direction::Ingress },
        Self { mode: Mode::Enforce, direction: Direction::Egress },
        Self { mode: Mode::Shadow, direction: Direction::Ingress },
        Self { mode: Mode::Shadow, direction: Direction::Egress },
    ];
}

/// The rule sets of an endpoint, in the order of [`Slot::ALL`]. A slot without isolating policies has the rule set of
/// [`DirectionPolicy::OPEN`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct EndpointRuleSets([RuleSetId; 4]);

impl EndpointRuleSets {
    pub(super) fn new(rule_set: impl FnMut(Slot) -> RuleSetId) -> Self {
        Self(Slot::ALL.map(rule_set))
    }

    /// Returns the rule sets for ingress and egress in a mode.
    pub(super) const fn of(self, mode: Mode) -> [RuleSetId; 2] {
        let [ingress, egress, shadow_ingress, shadow_egress] = self.0;
        match mode {
            Mode::Enforce => [ingress, egress],
            Mode::Shadow => [shadow_ingress, shadow_egress],
        }
    }

    pub(super) fn all(self) -> impl Iterator<Item = RuleSetId> {
        self.0.into_iter()
    }

    pub(super) fn slots(self) -> impl Iterator<Item = (Slot, RuleSetId)> {
        Slot::ALL.into_iter().zip(self.0)
    }

    /// Returns the rule sets for egress in both modes, except those of slots without isolating policies.
    pub(super) fn egress(self) -> impl Iterator<Item = RuleSetId> {
        Mode::BOTH.into_iter().map(move |mode| self.of(mode)[1]).filter(|id| *id != DirectionPolicy::OPEN.rule_set)
    }

    pub(super) fn contains(self, id: RuleSetId) -> bool {
        self.0.contains(&id)
    }
}

/// Rule sets by endpoint.
#[derive(Clone, Debug, Default)]
pub(super) struct Endpoints {
    by_pod: BTreeMap<PodKey, EndpointRuleSets>,
}

impl Endpoints {
    pub(super) fn get(&self, pod: &PodKey) -> Option<EndpointRuleSets> {
        self.by_pod.get(pod).copied()
    }

    /// Returns all endpoints.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&PodKey, EndpointRuleSets)> {
        self.by_pod.iter().map(|(pod, rule_sets)| (pod, *rule_sets))
    }

    /// Sets the rule sets of an endpoint; `None` removes the endpoint. Returns the previous rule sets.
    pub(super) fn set(&mut self, pod: &PodKey, rule_sets: Option<EndpointRuleSets>) -> Option<EndpointRuleSets> {
        match rule_sets {
            Some(rule_sets) => self.by_pod.insert(pod.clone(), rule_sets),
            None => self.by_pod.remove(pod),
        }
    }

    /// Returns the endpoints of a namespace.
    pub(super) fn of_namespace(&self, namespace: &NamespaceName) -> impl Iterator<Item = &PodKey> {
        let first = PodKey::new(namespace.clone(), "");
        self.by_pod.range(first..).map(|(pod, _)| pod).take_while(move |pod| pod.namespace == *namespace)
    }

    /// Returns the namespaces with endpoints.
    pub(super) fn namespaces(&self) -> Vec<NamespaceName> {
        let mut namespaces: Vec<NamespaceName> = self.by_pod.keys().map(|pod| pod.namespace.clone()).collect();
        namespaces.dedup();
        namespaces
    }
}
