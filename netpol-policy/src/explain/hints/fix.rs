//! What a hint says to do, so that it is only given where that changes the verdict.

use netpol_common::Direction;

use crate::model::{Policy, PolicyKey, Rule};
use crate::reference::{self, Packet};
use crate::world::World;

/// A change that a hint asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::explain) enum Fix {
    /// A rule of the policy, in the packet's direction, is this one instead; without an index, a further rule.
    Rule(PolicyKey, Option<usize>, Rule),
    /// The policy does not isolate the pod in the packet's direction.
    NotIsolating(PolicyKey),
    /// The question is about this packet instead.
    Ask(Packet),
    /// The other end is the local node.
    LocalNode,
}

impl Fix {
    /// Whether it makes a denied packet an allowed one. Costs no copy of a policy: the agent asks for each denied flow.
    pub(super) fn works(&self, world: &World, packet: &Packet) -> bool {
        let Some(pod) = world.pods.get(&packet.pod) else { return false };
        match self {
            Self::Rule(key, _, rule) => {
                let policy = world.policies.get(key);
                policy.is_some_and(|policy| reference::allows(world, policy, rule, pod, packet))
            }
            // No rule of the others allows the packet, so that each of them denies it alone.
            Self::NotIsolating(key) => {
                reference::isolating(world, pod, packet.direction).all(|policy| policy.key == *key)
            }
            Self::Ask(other) => reference::evaluate(world, other).reason.allows(),
            // 15: traffic between a pod and the local node is allowed.
            Self::LocalNode => true,
        }
    }
}

/// The index of the rule that a field of a policy is in, and the rest of the field; `None` where it is in no rule of this direction.
pub(super) fn rule_of(field: &str, direction: Direction) -> Option<(usize, &str)> {
    let rest = field.strip_prefix("spec.")?.strip_prefix(direction.name())?.strip_prefix('[')?;
    let (index, rest) = rest.split_once(']')?;
    Some((index.parse().ok()?, rest))
}

/// A copy of one of a policy's rules.
pub(super) fn rule(world: &World, policy: &PolicyKey, direction: Direction, index: usize) -> Option<Rule> {
    let policy: &Policy = world.policies.get(policy)?;
    reference::rules(policy, direction).get(index).cloned()
}

#[cfg(test)]
impl Fix {
    /// Does what the hint says, to the objects or to the question.
    pub(in crate::explain) fn apply(&self, world: &mut World, packet: &mut Packet) {
        use crate::model::Object;
        use crate::world::Event;

        match self {
            Self::Rule(key, index, rule) => {
                let mut policy = world.policies[key].clone();
                let rules = match packet.direction {
                    Direction::Ingress => &mut policy.ingress,
                    Direction::Egress => &mut policy.egress,
                };
                let rules = rules.as_mut().expect("it isolates");
                match index {
                    Some(index) => rules[*index] = rule.clone(),
                    None => rules.push(rule.clone()),
                }
                world.apply(Event::Apply(Object::Policy(policy)));
            }
            Self::NotIsolating(key) => {
                let mut policy = world.policies[key].clone();
                match packet.direction {
                    Direction::Ingress => policy.ingress = None,
                    Direction::Egress => policy.egress = None,
                }
                world.apply(Event::Apply(Object::Policy(policy)));
            }
            Self::Ask(other) => *packet = other.clone(),
            Self::LocalNode => {
                world.apply(Event::OwnAddresses(vec![packet.remote]));
                packet.from_node = packet.direction == Direction::Ingress;
            }
        }
    }
}
