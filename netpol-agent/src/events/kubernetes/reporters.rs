//! Selects which agents of a cluster report the diagnostics of a policy, and which agents report suspensions of
//! enforcement. All agents find the same diagnostics and suspensions, but only a few agents need to report them.

use std::collections::BTreeSet;

use netpol_policy::cluster_state::ClusterState;
use netpol_policy::model::{Pod, PodKey, Policy, Severity, Suspension};

use super::notice::{Notice, NoticeReason};

/// Maximum number of policies that are reported at one time.
const MAX_POLICIES: usize = 64;
/// Maximum number of diagnostics that are reported for one policy.
const MAX_DIAGNOSTICS: usize = 8;
/// Maximum number of suspensions that are reported at one time.
const MAX_SUSPENSIONS: usize = 64;
/// Number of agents that report about one object. There is more than one, because an agent may be down or run without
/// `--kube-events`. All use the same Event name, so there is only one Event.
const REPORTERS: usize = 3;
/// Maximum number of pods that are searched to select the agents.
const MAX_PODS: usize = 2000;

/// Returns the policies with errors.
pub(super) fn policies_with_errors(cluster_state: &ClusterState) -> impl Iterator<Item = &Policy> {
    let has_errors =
        |policy: &&Policy| policy.diagnostics.iter().any(|diagnostic| diagnostic.severity == Severity::Error);
    cluster_state.policies.values().filter(has_errors).take(MAX_POLICIES)
}

/// Returns the diagnostics of policies that the agent on `node` reports.
pub(super) fn diagnostics(cluster_state: &ClusterState, node: &str) -> Vec<Notice> {
    let reported_here = policies_with_errors(cluster_state).filter(|policy| is_reporter(cluster_state, policy, node));
    reported_here
        .flat_map(|policy| {
            let errors = policy.diagnostics.iter().filter(|diagnostic| diagnostic.severity == Severity::Error);
            errors.take(MAX_DIAGNOSTICS).map(|diagnostic| Notice::about_policy(&policy.key, &diagnostic.to_string()))
        })
        .collect()
}

/// Returns whether the agent on `node` reports a policy. The reporting agents are on the nodes of the first pods that
/// the policy selects. If the policy selects no pods, they are on the nodes of the first pods in its namespace. If the
/// namespace has no pods, they are on the first nodes. If the nodes are unknown, all agents report.
fn is_reporter(cluster_state: &ClusterState, policy: &Policy, node: &str) -> bool {
    let namespace = &policy.key.namespace;
    let in_namespace = || {
        let from = PodKey::new(namespace.clone(), "");
        let pods = cluster_state.pods.range(from..).map(|(_, pod)| pod).take(MAX_PODS);
        pods.take_while(|pod| pod.key.namespace == *namespace).filter(|pod| pod.is_selectable())
    };
    let selected = nodes_of_first_pods(in_namespace().filter(|pod| policy.pods.matches_or_is_invalid(&pod.labels)));
    let nodes = if selected.is_empty() { nodes_of_first_pods(in_namespace()) } else { selected };
    if !nodes.is_empty() {
        return nodes.contains(node);
    }
    is_first_node(cluster_state, node)
}

/// Returns the suspensions that the agent on `node` reports. The agents on the first nodes report them. `ended`: the
/// suspensions that have ended.
pub(super) fn suspensions(cluster_state: &ClusterState, ended: &[Suspension], node: &str) -> Vec<Notice> {
    if !is_first_node(cluster_state, node) {
        return Vec::new();
    }
    let active = cluster_state.suspensions();
    let pending = cluster_state.pending_suspensions();
    let all = [
        (&active[..], NoticeReason::EnforcementSuspended),
        (&pending[..], NoticeReason::SuspensionNotStarted),
        (ended, NoticeReason::EnforcementResumed),
    ];
    let notices = all.into_iter().flat_map(|(suspensions, reason)| {
        suspensions.iter().map(move |suspension| Notice::about_suspension(suspension, reason))
    });
    notices.take(MAX_SUSPENSIONS).collect()
}

/// Returns whether a node is one of the first [`REPORTERS`] nodes. `true` if the nodes are unknown.
fn is_first_node(cluster_state: &ClusterState, node: &str) -> bool {
    cluster_state.nodes.is_empty() || cluster_state.nodes.keys().take(REPORTERS).any(|name| **name == *node)
}

/// Returns the nodes of the first pods, at most [`REPORTERS`] nodes.
fn nodes_of_first_pods<'w>(pods: impl Iterator<Item = &'w Pod>) -> BTreeSet<&'w str> {
    let mut nodes = BTreeSet::new();
    for node in pods.filter_map(|pod| pod.node.as_deref()) {
        nodes.insert(node);
        if nodes.len() == REPORTERS {
            break;
        }
    }
    nodes
}

#[cfg(test)]
pub(super) mod tests {
    use netpol_policy::manifest::parse;

    use super::*;

    /// Returns a cluster with pods distributed over the nodes in turn, and an invalid policy that selects the pods with
    /// an odd number.
    pub(in super::super) fn cluster_state(nodes: usize, pods: usize) -> ClusterState {
        let nodes_yaml = (0..nodes).map(|n| format!("{{apiVersion: v1, kind: Node, metadata: {{name: node-{n}}}}}"));
        let pods = (0..pods).map(|p| {
            let (odd, node) = (p % 2, p % nodes);
            format!(
                "{{apiVersion: v1, kind: Pod, metadata: {{name: pod-{p:03}, namespace: shop, labels: {{odd: \"{odd}\"}}}}, \
                 spec: {{nodeName: node-{node}}}}}"
            )
        });
        let policy = "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: bad, namespace: shop}, \
                      spec: {podSelector: {matchLabels: {odd: \"1\"}}, ingress: [{from: [{ipBlock: {cidr: nonsense}}]}]}}";
        let all: Vec<_> = nodes_yaml.chain(pods).chain([policy.to_owned()]).collect();
        let parsed = parse(&all.join("\n---\n"), "cluster.yaml");
        ClusterState::from_objects(parsed.objects.into_iter().map(|located| located.object))
    }

    fn reporters(cluster_state: &ClusterState) -> Vec<String> {
        (0..1000).map(|n| format!("node-{n}")).filter(|node| !diagnostics(cluster_state, node).is_empty()).collect()
    }

    #[test]
    fn three_of_five_hundred_nodes_report_and_have_pods_that_the_policy_selects() {
        assert_eq!(reporters(&cluster_state(500, 1000)), ["node-1", "node-3", "node-5"]);
    }

    #[test]
    fn a_policy_in_a_namespace_without_pods_is_reported_by_the_first_nodes() {
        assert_eq!(reporters(&cluster_state(10, 0)).len(), 3);
    }

    #[test]
    fn a_policy_that_selects_no_pod_is_reported_by_the_nodes_of_the_first_pods() {
        assert_eq!(reporters(&cluster_state(10, 1)), ["node-0"]);
    }
}
