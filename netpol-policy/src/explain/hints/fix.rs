//! The change that a hint suggests. It is checked first: a hint is only given if the change allows the packet.

use netpol_common::Direction;

use crate::cluster_state::ClusterState;
use crate::model::{Mode, Policy, PolicyKey, Rule};
use crate::reference::{self, Packet};

/// The change that a hint suggests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::explain) enum Fix {
    /// Replace the policy's rule at this index, in the packet's direction, by this rule. Without an index, add this
    /// rule.
    Rule(PolicyKey, Option<usize>, Rule),
    /// Correct an invalid part of the policy's rule at this index. Without an index, the list of rules itself is
    /// invalid. The correct value is unknown, so the [`Rule`] here has a part that matches everything instead of the
    /// invalid part.
    Correction(PolicyKey, Option<usize>, Rule),
    /// Correct an invalid part of the policy. After the correction, the policy does not isolate the pod in the packet's
    /// direction.
    NotIsolating(PolicyKey),
    /// Send this packet instead. For example, its destination is the port of the pod, not the port of a Service.
    OtherPacket(Packet),
    /// No change is needed: the remote address is an address of the pod's node, and the agent on the pod's node allows
    /// the packet.
    LocalNode,
}

impl Fix {
    /// Returns whether a denied packet is allowed after the change. The agent calls this for each denied flow, so no
    /// policy is copied.
    pub(super) fn works(&self, cluster_state: &ClusterState, packet: &Packet, mode: Mode) -> bool {
        let Some(pod) = cluster_state.pods.get(&packet.pod) else { return false };
        match self {
            Self::Rule(key, _, rule) | Self::Correction(key, _, rule) => {
                let policy = cluster_state.policies.get(key);
                policy.is_some_and(|policy| reference::allows(cluster_state, policy, rule, pod, packet))
            }
            // The packet is denied, so no rule of another policy allows it. After the change, this policy does not
            // isolate the pod. Then the packet is allowed only if no other policy isolates the pod.
            Self::NotIsolating(key) => {
                reference::isolating_in(cluster_state, pod, packet.direction, mode).all(|policy| policy.key == *key)
            }
            Self::OtherPacket(other) => reference::evaluate_in(cluster_state, other, mode).reason.allows(),
            // Traffic between a pod and the local node is allowed (docs/semantics.md, item 15).
            Self::LocalNode => true,
        }
    }
}

/// Returns the index of the rule that contains a field, and the path of the field below the rule: `(0, ".ports[1]")`
/// for `spec.ingress[0].ports[1]`. Returns `None` if the field is in no rule of this direction.
pub(super) fn rule_index_and_path(field: &str, direction: Direction) -> Option<(usize, &str)> {
    let rest = field.strip_prefix("spec.")?.strip_prefix(direction.name())?.strip_prefix('[')?;
    let (index, rest) = rest.split_once(']')?;
    Some((index.parse().ok()?, rest))
}

/// Returns a copy of one of a policy's rules.
pub(super) fn rule(
    cluster_state: &ClusterState,
    policy: &PolicyKey,
    direction: Direction,
    index: usize,
) -> Option<Rule> {
    let policy: &Policy = cluster_state.policies.get(policy)?;
    reference::rules(policy, direction).get(index).cloned()
}

#[cfg(test)]
impl Fix {
    /// Applies the change to the objects or to the packet.
    pub(in crate::explain) fn apply(&self, cluster_state: &mut ClusterState, packet: &mut Packet) {
        use crate::cluster_state::Event;
        use crate::model::Object;

        match self {
            Self::Rule(key, index, rule) | Self::Correction(key, index, rule) => {
                set_rule(cluster_state, key, packet.direction, *index, rule.clone());
            }
            Self::NotIsolating(key) => {
                let mut policy = cluster_state.policies[key].clone();
                match packet.direction {
                    Direction::Ingress => policy.ingress = None,
                    Direction::Egress => policy.egress = None,
                }
                cluster_state.apply(Event::Apply(Object::Policy(policy)));
            }
            Self::OtherPacket(other) => *packet = other.clone(),
            Self::LocalNode => {
                cluster_state.apply(Event::LocalAddresses(vec![packet.remote]));
                packet.from_node = packet.direction == Direction::Ingress;
            }
        }
    }
}

/// Replaces the rule at an index of a policy. Without an index, adds the rule.
#[cfg(test)]
pub(in crate::explain) fn set_rule(
    cluster_state: &mut ClusterState,
    key: &PolicyKey,
    direction: Direction,
    index: Option<usize>,
    rule: Rule,
) {
    let mut policy = cluster_state.policies[key].clone();
    let rules = match direction {
        Direction::Ingress => &mut policy.ingress,
        Direction::Egress => &mut policy.egress,
    };
    let rules = rules.as_mut().expect("the policy isolates in this direction");
    match index {
        Some(index) => rules[index] = rule,
        None => rules.push(rule),
    }
    cluster_state.apply(crate::cluster_state::Event::Apply(crate::model::Object::Policy(policy)));
}
