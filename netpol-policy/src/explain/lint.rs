//! What a policy says that nothing there answers to: most likely a slip, and never visible from the policy alone.

pub(super) mod advice;
mod ports;
mod services;

use netpol_common::Direction;

use crate::model::{Peer, Peers, Pod, Policy, PolicyKey, Problem, Rule, Selector, Severity};
use crate::reference;
use crate::world::World;

use super::describe;

/// Warnings about policies that only show among the other objects: they select no pod, name ports that no pod has, or
/// namespaces that are not there, or mistake a Service for who is behind it. Says nothing of pods where there are none at all.
pub fn lint(world: &World) -> Vec<(PolicyKey, Problem)> {
    let mut found = Vec::new();
    if world.pods.is_empty() {
        return found;
    }
    let mut without_dns = services::without_dns(world);
    for policy in world.policies.values() {
        let mut warn = |field: String, message: String| {
            found.push((policy.key.clone(), Problem { severity: Severity::Warning, field, message }));
        };
        let selected: Vec<&Pod> = world.pods.values().filter(|pod| selects(policy, pod)).collect();
        if selected.is_empty() {
            warn("spec.podSelector".into(), format!("selects no pod of namespace {}", policy.key.namespace));
        }
        if let Some((field, message)) = without_dns.remove(&policy.key) {
            warn(field, message);
        }
        for (index, rule) in reference::rules(policy, Direction::Egress).iter().enumerate() {
            for (field, message) in services::misunderstood(world, policy, index, rule, &selected) {
                warn(field, message);
            }
        }
        for direction in Direction::BOTH {
            for (index, rule) in reference::rules(policy, direction).iter().enumerate() {
                let field = format!("spec.{}[{index}]", direction.name());
                let destinations = if direction == Direction::Ingress { Some(selected.as_slice()) } else { None };
                for message in ports::unresolved(world, rule, destinations) {
                    warn(format!("{field}.ports"), message);
                }
                unanswered_namespaces(world, rule).for_each(|selector| {
                    warn(field.clone(), format!("namespaceSelector {selector} selects no namespace"));
                });
            }
        }
    }
    found
}

fn selects(policy: &Policy, pod: &Pod) -> bool {
    pod.participates() && pod.key.namespace == policy.key.namespace && policy.pods.isolates(&pod.labels)
}

fn unanswered_namespaces<'a>(world: &'a World, rule: &'a Rule) -> impl Iterator<Item = String> + 'a {
    let peers = match &rule.peers {
        Peers::Any => &[][..],
        Peers::Of(peers) => peers.as_slice(),
    };
    peers.iter().filter_map(move |peer| {
        let Peer::Pods { namespaces: Some(selector), .. } = peer else { return None };
        (!selector.invalid && !selects_some(world, selector)).then(|| describe::labels(selector))
    })
}

fn selects_some(world: &World, selector: &Selector) -> bool {
    let of_pods = world.pods.keys().map(|key| &key.namespace);
    world.namespaces.keys().chain(of_pods).any(|name| selector.matches(&world.namespace_labels(name)))
}

#[cfg(test)]
mod tests;
