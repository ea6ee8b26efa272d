//! Which rule sets each endpoint has.

use std::collections::BTreeMap;

use netpol_common::RuleSetId;

use crate::model::{NamespaceName, PodKey};

/// The rule sets of the endpoints, ingress and egress.
#[derive(Clone, Debug, Default)]
pub(super) struct Endpoints {
    by_pod: BTreeMap<PodKey, [RuleSetId; 2]>,
}

impl Endpoints {
    pub(super) fn get(&self, pod: &PodKey) -> Option<[RuleSetId; 2]> {
        self.by_pod.get(pod).copied()
    }

    /// All of them.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&PodKey, [RuleSetId; 2])> {
        self.by_pod.iter().map(|(pod, rule_sets)| (pod, *rule_sets))
    }

    /// Notes an endpoint's rule sets; those before.
    pub(super) fn set(&mut self, pod: &PodKey, rule_sets: Option<[RuleSetId; 2]>) -> Option<[RuleSetId; 2]> {
        match rule_sets {
            Some(rule_sets) => self.by_pod.insert(pod.clone(), rule_sets),
            None => self.by_pod.remove(pod),
        }
    }

    /// The endpoints that have a rule set.
    pub(super) fn having(&self, rule_set: RuleSetId) -> impl Iterator<Item = &PodKey> {
        self.by_pod.iter().filter(move |(_, ids)| ids.contains(&rule_set)).map(|(pod, _)| pod)
    }

    /// The endpoints of a namespace.
    pub(super) fn of_namespace(&self, namespace: &NamespaceName) -> impl Iterator<Item = &PodKey> {
        let first = PodKey::new(namespace.clone(), "");
        self.by_pod.range(first..).map(|(pod, _)| pod).take_while(move |pod| pod.namespace == *namespace)
    }
}
