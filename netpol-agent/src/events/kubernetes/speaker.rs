//! Which of a cluster's agents speaks of a policy: all of them misunderstand it alike.

use std::collections::BTreeSet;

use netpol_policy::model::{Pod, PodKey, Policy, Severity};
use netpol_policy::world::World;

use super::policies::Misunderstood;

/// Policies that are spoken of at one time.
const POLICIES: usize = 64;
/// Problems of one policy that are spoken of.
const PROBLEMS: usize = 8;
/// Agents that speak of one policy: one may be down, or run without Events. They name the Event alike, so there is one.
const SPEAKERS: usize = 3;
/// Pods that are looked at to find them.
const PODS: usize = 2000;

/// The policies of which not all was understood.
pub(super) fn misunderstood(world: &World) -> impl Iterator<Item = &Policy> {
    let has_errors = |policy: &&Policy| policy.problems.iter().any(|problem| problem.severity == Severity::Error);
    world.policies.values().filter(has_errors).take(POLICIES)
}

/// What the agent on `node` has to say of them.
pub(super) fn to_be_said(world: &World, node: &str) -> Vec<Misunderstood> {
    let mine = misunderstood(world).filter(|policy| speaks(world, policy, node));
    mine.flat_map(|policy| {
        let errors = policy.problems.iter().filter(|problem| problem.severity == Severity::Error);
        errors.take(PROBLEMS).map(|problem| Misunderstood { policy: policy.key.clone(), problem: problem.to_string() })
    })
    .collect()
}

/// Those who speak are the nodes of the first pods that the policy selects; where it selects none, of the first pods beside
/// it; where there are none, the first nodes; and where those are not known either, everyone.
fn speaks(world: &World, policy: &Policy, node: &str) -> bool {
    let namespace = &policy.key.namespace;
    let beside = || {
        let from = PodKey::new(namespace.clone(), "");
        let pods = world.pods.range(from..).map(|(_, pod)| pod).take(PODS);
        pods.take_while(|pod| pod.key.namespace == *namespace).filter(|pod| pod.participates())
    };
    let selected = first_nodes(beside().filter(|pod| policy.pods.isolates(&pod.labels)));
    let nearest = if selected.is_empty() { first_nodes(beside()) } else { selected };
    if !nearest.is_empty() {
        return nearest.contains(node);
    }
    world.nodes.is_empty() || world.nodes.keys().take(SPEAKERS).any(|name| **name == *node)
}

fn first_nodes<'w>(pods: impl Iterator<Item = &'w Pod>) -> BTreeSet<&'w str> {
    let mut nodes = BTreeSet::new();
    for node in pods.filter_map(|pod| pod.node.as_deref()) {
        nodes.insert(node);
        if nodes.len() == SPEAKERS {
            break;
        }
    }
    nodes
}

#[cfg(test)]
pub(super) mod tests {
    use netpol_policy::manifest::parse;

    use super::*;

    /// Pods, one after the other on one of the nodes, and a policy that is not understood and selects every other of them.
    pub(in super::super) fn world(nodes: usize, pods: usize) -> World {
        let named = (0..nodes).map(|n| format!("{{apiVersion: v1, kind: Node, metadata: {{name: node-{n}}}}}"));
        let pods = (0..pods).map(|p| {
            let (odd, node) = (p % 2, p % nodes);
            format!(
                "{{apiVersion: v1, kind: Pod, metadata: {{name: pod-{p:03}, namespace: shop, labels: {{odd: \"{odd}\"}}}}, \
                 spec: {{nodeName: node-{node}}}}}"
            )
        });
        let policy = "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: bad, namespace: shop}, \
                      spec: {podSelector: {matchLabels: {odd: \"1\"}}, ingress: [{from: [{ipBlock: {cidr: nonsense}}]}]}}";
        let all: Vec<_> = named.chain(pods).chain([policy.to_owned()]).collect();
        let parsed = parse(&all.join("\n---\n"), "cluster.yaml");
        World::of(parsed.objects.into_iter().map(|located| located.object))
    }

    fn speakers(world: &World) -> Vec<String> {
        (0..1000).map(|n| format!("node-{n}")).filter(|node| !to_be_said(world, node).is_empty()).collect()
    }

    #[test]
    fn of_five_hundred_nodes_three_speak_and_they_have_pods_that_the_policy_selects() {
        assert_eq!(speakers(&world(500, 1000)), ["node-1", "node-3", "node-5"]);
    }

    #[test]
    fn a_policy_without_pods_is_spoken_of_by_the_first_nodes() {
        assert_eq!(speakers(&world(10, 0)).len(), 3);
    }

    #[test]
    fn a_policy_that_selects_nobody_is_spoken_of_beside_the_first_pods() {
        assert_eq!(speakers(&world(10, 1)), ["node-0"]);
    }
}
