//! Modes of policies, and suspensions of enforcement.

use std::collections::BTreeSet;

use super::Engine;
use crate::cluster_state::Event;
use crate::model::{Mode, Namespace, Object, ObjectKey, PolicyKey, Suspension, Timestamp};

impl Engine {
    /// Returns the suspensions of enforcement that are in effect now.
    pub fn suspensions(&self) -> Vec<Suspension> {
        self.cluster_state.suspensions()
    }

    /// Returns the time at which the engine needs the next [`Event::Clock`], because a suspension ends or takes effect.
    pub fn next_suspension_change(&self) -> Option<Timestamp> {
        self.cluster_state.next_suspension_change()
    }

    /// Returns the policies in shadow mode that are evaluated for only some of their pods, or for none, because of the
    /// memory limit.
    pub fn unevaluated_shadow(&self) -> BTreeSet<PolicyKey> {
        let incomplete = self.rule_sets.incomplete_shadow().flat_map(|rule_set| &rule_set.policies);
        let without_memory = self.memory_limit.namespaces_without_shadow();
        let of_namespace = |policy: &&PolicyKey| without_memory.contains(&policy.namespace);
        let policies = self.cluster_state.policies.keys().filter(of_namespace).chain(incomplete);
        let is_shadow = |key: &&PolicyKey| {
            let policy = self.cluster_state.policies.get(*key);
            policy.is_some_and(|policy| self.cluster_state.mode(policy) == Mode::Shadow)
        };
        policies.filter(is_shadow).cloned().collect()
    }

    /// Returns whether other suspensions are in effect at `time` than now.
    pub(super) fn changes_modes(&self, time: Timestamp) -> bool {
        self.cluster_state.suspensions() != self.cluster_state.suspensions_at(time.max(self.cluster_state.clock))
    }

    /// If an event changes both the labels of a namespace and its modes (the annotations that select how its policies
    /// are enforced), returns the namespace with its old labels and its new modes. The modes can then be changed in a
    /// step of their own.
    pub(super) fn separate_mode_change(&self, event: &Event) -> Option<Namespace> {
        let (name, after) = match event {
            Event::Apply(Object::Namespace(namespace)) => (&namespace.name, Some(namespace)),
            Event::Delete(ObjectKey::Namespace(name)) => (name, None),
            _ => return None,
        };
        let or_implicit =
            |found: Option<&Namespace>| found.cloned().unwrap_or_else(|| Namespace::implicit(name.clone()));
        let (before, after) = (or_implicit(self.cluster_state.namespaces.get(name)), or_implicit(after));
        let changes_both = before.labels != after.labels && !before.modes.has_same_effect_as(&after.modes);
        changes_both.then_some(Namespace { modes: after.modes, ..before })
    }
}
