//! Finds out which policies are enforced now, from the annotations of policies and namespaces. An annotation sets the
//! mode (enforced; or shadow: evaluated and reported, but not enforced), or suspends enforcement until a time.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::ClusterState;
use crate::model::{Mode, NamespaceModes, NamespaceName, Policy, Suspension, Timestamp};

/// A suspension is in effect only if it ends within this time from now.
pub const MAX_SUSPENSION_SECONDS: i64 = 24 * 60 * 60;

/// The namespace in which agents run by default.
pub const AGENT_NAMESPACE: &str = "kube-system";

/// What determines the modes of a namespace's policies now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct EffectiveModes {
    /// The mode of policies without an annotation of their own.
    default: Mode,
    /// Whether enforcement is suspended.
    pub suspended: bool,
}

impl EffectiveModes {
    /// Returns the mode of a policy of the namespace.
    pub fn of(self, policy: &Policy) -> Mode {
        self.of_annotation(policy.mode)
    }

    /// Returns the mode of a policy with this annotation.
    fn of_annotation(self, annotation: Option<Mode>) -> Mode {
        if self.suspended { Mode::Shadow } else { annotation.unwrap_or(self.default) }
    }
}

/// For each namespace, the number of policies with each annotation. A number of 0 is not stored.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct PolicyModes(BTreeMap<(NamespaceName, Option<Mode>), usize>);

impl PolicyModes {
    pub(super) fn add(&mut self, policy: &Policy) {
        *self.0.entry((policy.key.namespace.clone(), policy.mode)).or_default() += 1;
    }

    /// Removes a policy that was added before.
    pub(super) fn remove(&mut self, policy: &Policy) {
        let key = (policy.key.namespace.clone(), policy.mode);
        if let Some(count) = self.0.get_mut(&key) {
            *count -= 1;
            if *count == 0 {
                self.0.remove(&key);
            }
        }
    }
}

impl ClusterState {
    /// Sets the namespace in which agents run. Its annotation can suspend the enforcement of all namespaces.
    #[must_use]
    pub fn with_agent_namespace(mut self, name: NamespaceName) -> Self {
        self.agent_namespace = Some(name);
        self
    }

    /// Returns the namespace in which agents run.
    pub fn agent_namespace(&self) -> &str {
        self.agent_namespace.as_deref().unwrap_or(AGENT_NAMESPACE)
    }

    /// Returns the mode of a policy now.
    pub fn mode(&self, policy: &Policy) -> Mode {
        self.effective_modes(&policy.key.namespace).of(policy)
    }

    /// Returns the modes of a namespace's policies now.
    pub fn effective_modes(&self, namespace: &NamespaceName) -> EffectiveModes {
        let modes = self.namespaces.get(namespace).map(|namespace| &namespace.modes);
        let namespace_suspended_until = modes.and_then(|modes| modes.suspended_until);
        EffectiveModes {
            default: modes.and_then(|modes| modes.mode).unwrap_or_default(),
            suspended: self.is_active(namespace_suspended_until) || self.is_active(self.cluster_suspended_until()),
        }
    }

    /// Returns whether at least one policy of a namespace is in shadow mode now. The time that this takes does not
    /// depend on the number of policies.
    pub fn has_shadow_policies(&self, namespace: &NamespaceName) -> bool {
        let modes = self.effective_modes(namespace);
        let mut annotations = [None, Some(Mode::Enforce), Some(Mode::Shadow)].into_iter();
        annotations.any(|annotation| {
            modes.of_annotation(annotation) == Mode::Shadow
                && self.policy_modes.0.contains_key(&(namespace.clone(), annotation))
        })
    }

    fn agent_modes(&self) -> Option<&NamespaceModes> {
        self.namespaces.get(self.agent_namespace()).map(|namespace| &namespace.modes)
    }

    fn cluster_suspended_until(&self) -> Option<Timestamp> {
        self.agent_modes()?.cluster_suspended_until
    }

    /// Returns whether a suspension with this end is in effect now. A suspension that ends later than
    /// [`MAX_SUSPENSION_SECONDS`] from now is not in effect, because its end may be a mistake.
    fn is_active(&self, until: Option<Timestamp>) -> bool {
        until.is_some_and(|until| is_active_at(self.clock, until))
    }

    /// Returns the end of each suspension, also if the end has passed or is too late. For each end, returns the
    /// annotated namespace, its modes, and whether the suspension applies to the whole cluster.
    fn suspension_ends(&self) -> impl Iterator<Item = (&NamespaceName, &NamespaceModes, bool, Timestamp)> {
        let of_namespaces = self
            .namespaces
            .values()
            .filter_map(|namespace| Some((&namespace.name, &namespace.modes, false, namespace.modes.suspended_until?)));
        let of_cluster = self.namespaces.get(self.agent_namespace()).and_then(|namespace| {
            Some((&namespace.name, &namespace.modes, true, namespace.modes.cluster_suspended_until?))
        });
        of_namespaces.chain(of_cluster)
    }

    /// Returns the suspensions that are in effect now.
    pub fn suspensions(&self) -> Vec<Suspension> {
        self.suspensions_at(self.clock)
    }

    /// Returns the suspensions that are in effect at this time.
    pub fn suspensions_at(&self, time: Timestamp) -> Vec<Suspension> {
        self.suspensions_with(|until| is_active_at(time, until))
    }

    /// Returns the suspensions that are in effect now in a namespace.
    pub fn suspensions_of<'a>(&'a self, namespace: &'a NamespaceName) -> impl Iterator<Item = Suspension> + 'a {
        let all = self.suspensions().into_iter();
        all.filter(move |suspension| suspension.cluster || suspension.namespace == *namespace)
    }

    /// Returns the suspensions that are not in effect because their end is too late. Each takes effect
    /// [`MAX_SUSPENSION_SECONDS`] before its end, unless its annotation changes.
    pub fn pending_suspensions(&self) -> Vec<Suspension> {
        self.suspensions_with(|until| until > self.clock.plus_seconds(MAX_SUSPENSION_SECONDS))
    }

    fn suspensions_with(&self, includes: impl Fn(Timestamp) -> bool) -> Vec<Suspension> {
        let included = self.suspension_ends().filter(|(.., until)| includes(*until));
        included
            .map(|(namespace, modes, cluster, until)| Suspension {
                namespace: Arc::clone(namespace),
                cluster,
                until,
                reason: modes.reason.clone(),
            })
            .collect()
    }

    /// Returns the next time at which a suspension ends or takes effect.
    pub fn next_suspension_change(&self) -> Option<Timestamp> {
        let start_of = |until: Timestamp| until.plus_seconds(-MAX_SUSPENSION_SECONDS);
        let times = self.suspension_ends().flat_map(|(.., until)| [start_of(until), until]);
        times.filter(|time| *time > self.clock).min()
    }
}

fn is_active_at(time: Timestamp, until: Timestamp) -> bool {
    time < until && until <= time.plus_seconds(MAX_SUSPENSION_SECONDS)
}

#[cfg(test)]
mod tests {
    //! sNN in the name of a test is an item of docs/semantics.md.

    use super::*;
    use crate::cluster_state::Event;
    use crate::model::{Labels, Namespace, NamespaceModes, Object, PolicyKey, Selector};

    const NOW: Timestamp = Timestamp(1_800_000_000);

    /// Returns a namespace with annotations that suspend enforcement: in this namespace until `own_seconds` after
    /// [`NOW`], and in the cluster until `cluster_seconds` after [`NOW`].
    fn suspended_namespace(name: &str, own_seconds: Option<i64>, cluster_seconds: Option<i64>) -> Object {
        let modes = NamespaceModes {
            suspended_until: own_seconds.map(|seconds| NOW.plus_seconds(seconds)),
            cluster_suspended_until: cluster_seconds.map(|seconds| NOW.plus_seconds(seconds)),
            ..NamespaceModes::default()
        };
        Object::Namespace(Namespace { name: name.into(), labels: Labels::new(), modes })
    }

    fn state_at(clock: Timestamp, objects: impl IntoIterator<Item = Object>) -> ClusterState {
        let mut state = ClusterState::from_objects(objects);
        state.apply(Event::Clock(clock));
        state
    }

    #[test]
    fn s44_a_suspension_ends_at_its_time_and_starts_at_most_a_day_before() {
        // The end and the next change are in seconds after `NOW`.
        for (end, active, next) in [
            (-1, false, None),
            (0, false, None),
            (1, true, Some(1)),
            (MAX_SUSPENSION_SECONDS, true, Some(MAX_SUSPENSION_SECONDS)),
            (MAX_SUSPENSION_SECONDS + 5, false, Some(5)),
        ] {
            let state = state_at(NOW, [suspended_namespace("shop", Some(end), None)]);
            assert_eq!(state.effective_modes(&"shop".into()).suspended, active, "{end}");
            assert!(!state.effective_modes(&"other".into()).suspended, "{end}");
            assert_eq!(state.next_suspension_change(), next.map(|seconds| NOW.plus_seconds(seconds)), "{end}");
            assert_eq!(
                (state.suspensions().len() == 1, state.pending_suspensions().len() == 1),
                (active, end > MAX_SUSPENSION_SECONDS)
            );
        }
    }

    #[test]
    fn s43_a_namespace_has_shadow_policies_while_a_policy_is_in_shadow_mode() {
        let policy = |mode| {
            Object::Policy(Policy {
                key: PolicyKey::new("shop", "all"),
                mode,
                pods: Selector::default(),
                ingress: Some(Vec::new()),
                egress: None,
                diagnostics: Vec::new(),
            })
        };
        let has_shadow = |state: &ClusterState| {
            let found = state.has_shadow_policies(&"shop".into());
            let expected = state.policies.values().any(|policy| state.mode(policy) == Mode::Shadow);
            assert_eq!(found, expected);
            found
        };
        let mut state = state_at(NOW, [suspended_namespace("shop", None, None)]);
        assert!(!has_shadow(&state));
        for (mode, expected) in [(None, false), (Some(Mode::Shadow), true), (Some(Mode::Enforce), false)] {
            state.apply(Event::Apply(policy(mode)));
            assert_eq!(has_shadow(&state), expected, "{mode:?}");
        }
        state.apply(Event::Apply(suspended_namespace("shop", Some(60), None)));
        assert!(has_shadow(&state));
        state.apply(Event::Delete(policy(None).key()));
        assert!(!has_shadow(&state), "the only policy was deleted");
    }

    #[test]
    fn s44_only_the_namespace_of_the_agent_suspends_the_cluster() {
        let objects =
            || [suspended_namespace("shop", None, Some(60)), suspended_namespace("kube-system", None, Some(60))];
        let state = state_at(NOW, objects());
        assert!(state.effective_modes(&"other".into()).suspended);
        assert_eq!(state.suspensions().len(), 1);
        // Neither of the annotated namespaces is that of the agents.
        let mut state = ClusterState::default().with_agent_namespace("netpol".into());
        state.apply(Event::Clock(NOW));
        state.apply(Event::Reset(objects().into()));
        assert!(!state.effective_modes(&"other".into()).suspended && state.suspensions().is_empty());
        assert_eq!(state.clock, NOW, "a reset keeps the time");
    }

    #[test]
    fn s44_without_a_clock_nothing_is_suspended() {
        let state = ClusterState::from_objects([suspended_namespace("kube-system", Some(60), Some(60))]);
        assert!(!state.effective_modes(&"kube-system".into()).suspended);
    }
}
