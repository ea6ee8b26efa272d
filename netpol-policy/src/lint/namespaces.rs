//! Finds traffic that the policies of a namespace do not restrict.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use netpol_common::Direction;

use super::RuleId;
use super::context::{Context, Group, shortened_list};
use super::finding::{Draft, DraftFix, Finding};
use crate::manifest::Parsed;
use crate::model::{Mode, NamespaceName, Object, ObjectKey, Pod};

/// System namespaces. Their pods are rarely isolated.
const SYSTEM: [&str; 3] = ["kube-system", "kube-public", "kube-node-lease"];

/// A file and a line.
type Place = (Arc<str>, usize);

pub(super) fn check(parsed: &Parsed, context: &Context<'_>) -> Vec<Finding> {
    let places = places(parsed);
    let mut findings = Vec::new();
    let names = context.groups.keys().filter(|name| !SYSTEM.contains(&name.as_ref()));
    for name in names {
        let groups = context.groups_of(name);
        let not_isolated = not_isolated(context, name, groups);
        let drafts = default_deny(context, name).into_iter().chain(not_isolated);
        let Some((file, line)) = places.get(*name) else { continue };
        let object = ObjectKey::Namespace((*name).clone()).to_string();
        findings.extend(drafts.map(|draft| {
            let finding = draft.finish(&object, None);
            Finding { file: file.clone(), line: *line, path: None, ..finding }
        }));
    }
    findings
}

/// Returns a place for each namespace: its Namespace object (rank 0). If the input does not have this object: the first
/// policy in the namespace (rank 1). If there is no policy either: the first pod or workload in the namespace (rank 2).
fn places(parsed: &Parsed) -> BTreeMap<NamespaceName, Place> {
    let mut places: BTreeMap<NamespaceName, (u8, Place)> = BTreeMap::new();
    let mut add = |namespace: &NamespaceName, rank: u8, place: Place| match places.get_mut(namespace) {
        Some((best_rank, best_place)) if rank < *best_rank => (*best_rank, *best_place) = (rank, place),
        Some(_) => {}
        None => {
            places.insert(namespace.clone(), (rank, place));
        }
    };
    for located in &parsed.objects {
        let place = (located.file.clone(), located.line);
        match &located.object {
            Object::Namespace(namespace) => add(&namespace.name, 0, place),
            Object::Policy(policy) => add(&policy.key.namespace, 1, place),
            Object::Pod(pod) => add(&pod.key.namespace, 2, place),
            Object::Node(_) | Object::Service(_) | Object::Slice(_) => {}
        }
    }
    for located in &parsed.workloads {
        add(&located.object.key.namespace, 2, (located.file.clone(), located.line));
    }
    places.into_iter().map(|(name, (_, place))| (name, place)).collect()
}

/// Checks whether, in at least one direction, the namespace has policies for some pods, but no policy for all pods.
fn default_deny(context: &Context<'_>, namespace: &NamespaceName) -> Option<Draft> {
    let isolating = |direction: Direction| {
        let of_namespace =
            context.policies.iter().map(|view| view.policy).filter(|policy| policy.key.namespace == *namespace);
        of_namespace.filter(move |policy| policy.isolates_in(direction))
    };
    let lacks = |direction: &Direction| {
        let mut policies = isolating(*direction).peekable();
        // A policy with an invalid podSelector isolates all pods, until the selector is corrected.
        policies.peek().is_some() && !policies.any(|policy| policy.pods.requirements.is_empty() || policy.pods.invalid)
    };
    let missing: Vec<Direction> = Direction::BOTH.into_iter().filter(lacks).collect();
    let names: Vec<&str> = missing.iter().map(|direction| direction.name()).collect();
    if names.is_empty() {
        return None;
    }
    let types: Vec<&str> = missing
        .iter()
        .map(|direction| match direction {
            Direction::Ingress => "Ingress",
            Direction::Egress => "Egress",
        })
        .collect();
    Some(Draft::new(
        RuleId::DEFAULT_DENY_MISSING,
        "",
        format!("No policy selects all pods of namespace {namespace} for {}.", names.join(" and ")),
        "A new pod is not isolated if no policy selects its labels.",
        default_deny_policy("add a policy for all pods", namespace, &types.join(", ")),
    ))
}

fn default_deny_policy(description: &str, namespace: &str, types: &str) -> DraftFix {
    let metadata = format!("metadata: {{name: default-deny, namespace: {namespace}}}");
    let spec = format!("spec: {{podSelector: {{}}, policyTypes: [{types}]}}");
    let lines = ["apiVersion: networking.k8s.io/v1", "kind: NetworkPolicy", &metadata, &spec];
    DraftFix::from(description).with_yaml(&lines)
}

/// Finds pods that no policy isolates in any direction.
fn not_isolated(context: &Context<'_>, namespace: &NamespaceName, groups: &[Group<'_>]) -> Option<Draft> {
    let of_namespace = context.policies.iter().filter(|view| view.policy.key.namespace == *namespace);
    let enforced = of_namespace.filter(|view| context.state.mode(view.policy) == Mode::Enforce);
    let isolating = enforced.filter(|view| view.policy.ingress.is_some() || view.policy.egress.is_some());
    let isolated: BTreeSet<usize> = isolating.flat_map(|view| view.selected.iter().copied()).collect();
    let groups = groups.iter().enumerate();
    let groups =
        groups.filter(|(index, group)| !group.host_network && !isolated.contains(index)).map(|(_, group)| group);
    let mut pods: Vec<&Pod> = groups.flat_map(|group| group.pods.iter().copied()).collect();
    pods.sort_by_key(|pod| &pod.key);
    let names: Vec<String> = pods.iter().map(|pod| pod.key.to_string()).collect();
    let (subject, them) = match names.len() {
        0 => return None,
        1 => ("pod", "the pod"),
        _ => ("pods", "these pods"),
    };
    Some(Draft::new(
        RuleId::PODS_NOT_ISOLATED,
        "",
        format!("No policy isolates {subject} {}.", shortened_list(&names, "pods")),
        format!("Every connection of {them} is allowed, unless a policy of the other pod denies it."),
        default_deny_policy("add a policy for all pods, and policies for what to allow", namespace, "Ingress, Egress"),
    ))
}
