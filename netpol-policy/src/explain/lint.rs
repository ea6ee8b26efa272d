//! Lints policies against the other objects: finds parts that match nothing, and mistakes that are only visible together
//! with the other objects.

pub(super) mod dns;
mod ports;
mod services;
pub(super) mod suggest;

use netpol_common::Direction;

use crate::cluster_state::ClusterState;
use crate::model::{MODE_ANNOTATION, Mode, Peer, Peers, Pod, Policy, PolicyKey, Rule, Selector, Severity};
use crate::reference;

use super::{PolicyChange, describe, nearest};

/// A warning about a policy, or information.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The policy.
    pub policy: PolicyKey,
    /// `Warning` or `Info`.
    pub severity: Severity,
    /// The field, as a path: `spec.egress[0].to[0]`.
    pub field: String,
    /// One sentence each: what is wrong; why it matters; how to fix it, unless `change` has the fix.
    pub sentences: Vec<String>,
    /// The rule that fixes it.
    pub change: Option<PolicyChange>,
}

impl Finding {
    /// The sentences and the fix on one line.
    pub fn message(&self) -> String {
        let fix = self.change.as_ref().map(|change| format!("Fix: {}: {}", change.instruction(), change.inline()));
        self.sentences.iter().cloned().chain(fix).collect::<Vec<_>>().join(" ")
    }
}

/// A finding of a submodule; [`lint`] adds the policy.
struct PartialFinding {
    field: String,
    sentences: Vec<String>,
    change: Option<PolicyChange>,
}

impl PartialFinding {
    fn new<S: Into<String>>(field: impl Into<String>, sentences: impl IntoIterator<Item = S>) -> Self {
        Self { field: field.into(), sentences: sentences.into_iter().map(Into::into).collect(), change: None }
    }

    fn with(self, change: Option<PolicyChange>) -> Self {
        Self { change, ..self }
    }
}

/// Returns information on policies that are not enforced, and warnings about policies that select no pod, use port names that no pod has or selectors that match no
/// namespace, deny DNS, or use the address or port of a Service instead of those of its backends. Returns nothing if
/// there are no pods.
pub fn lint(cluster_state: &ClusterState) -> Vec<Finding> {
    let mut findings = Vec::new();
    if cluster_state.pods.is_empty() {
        return findings;
    }
    let mut without_dns = services::without_dns(cluster_state);
    for policy in cluster_state.policies.values() {
        findings.extend(not_enforced(cluster_state, policy));
        let mut found = Vec::new();
        let selected: Vec<&Pod> = cluster_state.pods.values().filter(|pod| selects(policy, pod)).collect();
        if selected.is_empty() {
            found.push(no_pod(policy));
        }
        found.extend(without_dns.remove(&policy.key));
        for (index, rule) in reference::rules(policy, Direction::Egress).iter().enumerate() {
            found.extend(services::mistakes(cluster_state, policy, index, rule, &selected));
        }
        for direction in Direction::BOTH {
            for (index, rule) in reference::rules(policy, direction).iter().enumerate() {
                let field = format!("spec.{}[{index}].ports", direction.name());
                let destinations = if direction == Direction::Ingress { Some(selected.as_slice()) } else { None };
                let unresolved = ports::unresolved(cluster_state, rule, destinations);
                found.extend(unresolved.into_iter().map(|sentences| PartialFinding::new(field.clone(), sentences)));
                found.extend(empty_namespace_selectors(cluster_state, policy, direction, index, rule));
            }
        }
        findings.extend(found.into_iter().map(|PartialFinding { field, sentences, change }| Finding {
            policy: policy.key.clone(),
            severity: Severity::Warning,
            field,
            sentences,
            change,
        }));
    }
    findings
}

/// A policy in shadow mode.
fn not_enforced(cluster_state: &ClusterState, policy: &Policy) -> Option<Finding> {
    if cluster_state.mode(policy) == Mode::Enforce {
        return None;
    }
    let namespace = &policy.key.namespace;
    let suspended = cluster_state.suspensions_of(namespace).max_by_key(|suspension| suspension.until);
    let annotation = format!("metadata.annotations.{MODE_ANNOTATION}");
    let (field, cause) = match (suspended, policy.mode) {
        (Some(suspension), _) => {
            let (until, of) = (suspension.until, suspension.namespace);
            let text = format!("Enforcement is suspended until {until} by an annotation of Namespace {of}.");
            ("metadata.namespace".to_owned(), text)
        }
        (None, Some(_)) => (annotation, "The policy is in shadow mode.".to_owned()),
        (None, None) => {
            let text =
                format!("The policy is in shadow mode by annotation {MODE_ANNOTATION} of Namespace {namespace}.");
            ("metadata.namespace".to_owned(), text)
        }
    };
    let effect = "It is not enforced; netpol reports what it would deny.".to_owned();
    let sentences = vec![cause, effect];
    Some(Finding { policy: policy.key.clone(), severity: Severity::Info, field, sentences, change: None })
}

fn no_pod(policy: &Policy) -> PartialFinding {
    let labels = describe::labels(&policy.pods);
    let sentences = [
        format!("podSelector {labels} selects no pod in namespace {}.", policy.key.namespace),
        "The policy isolates no pod.".to_owned(),
        "Fix: check the namespace of the policy and the labels of the pods.".to_owned(),
    ];
    PartialFinding::new("spec.podSelector", sentences)
}

fn selects(policy: &Policy, pod: &Pod) -> bool {
    pod.is_selectable() && pod.key.namespace == policy.key.namespace && policy.pods.isolates(&pod.labels)
}

/// Namespace selectors of a rule that match no namespace.
fn empty_namespace_selectors(
    cluster_state: &ClusterState,
    policy: &Policy,
    direction: Direction,
    index: usize,
    rule: &Rule,
) -> Vec<PartialFinding> {
    let peers = match &rule.peers {
        Peers::Any => &[][..],
        Peers::Of(peers) => peers.as_slice(),
    };
    let empty = peers.iter().enumerate().filter_map(|(peer_index, peer)| {
        let Peer::Pods { namespaces: Some(selector), .. } = peer else { return None };
        if selector.invalid || selects_a_namespace(cluster_state, selector) {
            return None;
        }
        let path = nearest::peer_path(policy, direction, index, peer_index);
        let sentences = [
            format!("namespaceSelector {} selects no namespace.", describe::labels(selector)),
            "The peer matches no pod.".to_owned(),
            "Fix: check the labels of the namespace; the label kubernetes.io/metadata.name has its name.".to_owned(),
        ];
        Some(PartialFinding::new(format!("{path}.namespaceSelector"), sentences))
    });
    empty.collect()
}

fn selects_a_namespace(cluster_state: &ClusterState, selector: &Selector) -> bool {
    // Other objects can refer to a namespace that is not in the input (docs/semantics.md, item 39).
    let of_pods = cluster_state.pods.keys().map(|key| &key.namespace);
    let of_policies = cluster_state.policies.keys().map(|key| &key.namespace);
    let of_services = cluster_state.services.keys().map(|key| &key.namespace);
    let referred_to = of_pods.chain(of_policies).chain(of_services);
    cluster_state
        .namespaces
        .keys()
        .chain(referred_to)
        .any(|name| selector.matches(&cluster_state.namespace_labels(name)))
}

#[cfg(test)]
mod tests;
