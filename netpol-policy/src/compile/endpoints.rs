//! The rule sets of each endpoint.

use std::collections::BTreeMap;

use netpol_common::RuleSetId;

use crate::model::{NamespaceName, PodKey};

/// Ingress and egress rule sets by endpoint.
#[derive(Clone, Debug, Default)]
pub(super) struct Endpoints {
    by_pod: BTreeMap<PodKey, [RuleSetId; 2]>,
}

impl Endpoints {
    pub(super) fn get(&self, pod: &PodKey) -> Option<[RuleSetId; 2]> {
        self.by_pod.get(pod).copied()
    }

    /// Returns all endpoints.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&PodKey, [RuleSetId; 2])> {
        self.by_pod.iter().map(|(pod, rule_sets)| (pod, *rule_sets))
    }

    /// Sets the rule sets of an endpoint. Returns the previous ones.
    pub(super) fn set(&mut self, pod: &PodKey, rule_sets: Option<[RuleSetId; 2]>) -> Option<[RuleSetId; 2]> {
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
}
