//! Finds peers (items of `from` or `to`) that match no pod.

use netpol_common::Direction;

use super::context::{Context, Group, PolicyView, shortened_list};
use super::finding::{Draft, DraftFix};
use super::patch::Operation;
use super::{NotChecked, RuleId, created, intent, similar, suggest};
use crate::explain::yaml::{self, Node, entry};
use crate::explain::{describe, peer_path};
use crate::manifest::FieldPath;
use crate::model::{NAMESPACE_NAME_LABEL, NamespaceName, Peer, Policy, Requirement, Selector};
use crate::reference;

/// A peer and its place in a policy.
#[derive(Clone, Copy)]
pub(super) struct PeerPlace<'p> {
    pub(super) policy: &'p Policy,
    pub(super) direction: Direction,
    /// The index of the rule.
    pub(super) rule: usize,
    /// The peers of this rule.
    pub(super) peers: &'p [Peer],
    /// The index of the peer in `peers`.
    pub(super) index: usize,
}

impl<'p> PeerPlace<'p> {
    /// Returns the peer.
    pub(super) fn peer(&self) -> &'p Peer {
        &self.peers[self.index]
    }

    /// Returns the path of the peer, such as `spec.ingress[0].from[1]`.
    pub(super) fn path(&self) -> String {
        peer_path(self.policy, self.direction, self.rule, self.index)
    }
}

/// Adds a finding for each peer that matches no pod. If the input has too few objects for a check, adds the reason to
/// `not_checked`.
pub(super) fn check(
    context: &Context<'_>,
    view: &PolicyView<'_>,
    drafts: &mut Vec<Draft>,
    not_checked: &mut Vec<NotChecked>,
) {
    for direction in Direction::BOTH {
        for (rule_index, rule) in reference::rules(view.policy, direction).iter().enumerate() {
            let peers = rule.peers.listed();
            for index in 0..peers.len() {
                let place = PeerPlace { policy: view.policy, direction, rule: rule_index, peers, index };
                drafts.extend(check_peer(context, place, not_checked));
            }
        }
    }
}

fn check_peer(context: &Context<'_>, place: PeerPlace<'_>, not_checked: &mut Vec<NotChecked>) -> Option<Draft> {
    let Peer::Pods { namespaces, pods } = place.peer() else { return None };
    if !yaml::is_valid(place.peer()) {
        return None;
    }
    if let Some(selector) = namespaces.as_ref().filter(|selector| !context.selects_a_namespace(selector)) {
        if context.has_namespaces {
            if let Some(reason) = not_in_input(context, selector) {
                not_checked.push(NotChecked::new(RuleId::NAMESPACE_SELECTOR_MATCHES_NOTHING, reason));
                return None;
            }
            return Some(no_namespace(context, place, selector));
        }
        not_checked.push(NotChecked::new(RuleId::NAMESPACE_SELECTOR_MATCHES_NOTHING, "the input has no Namespace"));
        return None;
    }
    // A group: pods that have the same labels and are in the same namespace.
    let groups = context.peer_groups(place.policy, place.peer());
    if groups.iter().any(|group| !group.host_network) {
        return None;
    }
    if !groups.is_empty() {
        return (!pods.requirements.is_empty()).then(|| host_network(place, &groups));
    }
    let namespaces_with_pods: Vec<_> = context.pod_namespaces(place.policy, namespaces.as_ref()).collect();
    if namespaces_with_pods.is_empty() {
        let reason = "the input has no pods in the namespaces of some peers";
        not_checked.push(NotChecked::new(RuleId::PEER_MATCHES_NO_POD, reason));
        return None;
    }
    // A selector at the wrong place: two peers that should be one, or one that should be two.
    let misplaced = intent::split(context, place).or_else(|| intent::joined(context, place));
    // A controller may create the pods later.
    if let (None, Some(reason)) = (&misplaced, created::reason(context, place.policy, namespaces.as_ref(), pods)) {
        not_checked.push(NotChecked::new(RuleId::PEER_MATCHES_NO_POD, reason));
        return None;
    }
    Some(misplaced.unwrap_or_else(|| {
        let labels: Vec<_> =
            namespaces_with_pods.iter().flat_map(|(_, groups)| groups.iter()).map(|group| group.labels).collect();
        let fix = similar::label_fix(&format!("{}.podSelector", place.path()), pods, &labels);
        Draft::new(
            RuleId::PEER_MATCHES_NO_POD,
            place.path(),
            format!("No pod matches the peer: {}.", describe::peer(place.policy, place.peer())),
            "The peer allows nothing.",
            fix.unwrap_or_else(|| {
                "check the labels of the pods; without a namespaceSelector, a peer is in the namespace of the policy"
                    .into()
            }),
        )
    }))
}

/// Returns why a namespace selector cannot be checked; `None` if it can. A selector cannot be checked if it selects
/// namespaces by name and none of them is in the input: manifests of an application rarely contain the namespaces of
/// other applications, such as an ingress controller. But the selector is checked if one of its names is similar to the
/// name of an existing namespace ([`Context::namespaces`]), because such a name is probably a typo. It is also checked
/// if the input probably has all objects of a cluster.
fn not_in_input(context: &Context<'_>, selector: &Selector) -> Option<String> {
    let names = selector.requirements.iter().find_map(|requirement| match requirement {
        Requirement::In(key, names) if **key == *NAMESPACE_NAME_LABEL => Some(names),
        _ => None,
    })?;
    let is_known = |name: &str| context.namespaces.contains(name) || closest_namespace(context, name).is_some();
    if context.is_whole_cluster() || names.iter().any(|name| is_known(name)) {
        return None;
    }
    Some(format!("namespace {} is not in the input", names.join(" or ")))
}

fn closest_namespace<'c>(context: &'c Context<'_>, name: &str) -> Option<&'c str> {
    similar::closest(name, context.namespaces.iter().map(|name| &**name))
}

/// Returns the finding for a namespace selector that matches no namespace.
fn no_namespace(context: &Context<'_>, place: PeerPlace<'_>, selector: &Selector) -> Draft {
    let field = format!("{}.namespaceSelector", place.path());
    Draft::new(
        RuleId::NAMESPACE_SELECTOR_MATCHES_NOTHING,
        field.clone(),
        format!("namespaceSelector {} selects no namespace.", describe::labels(selector)),
        "The peer matches no pod.",
        fix_by_name(context, &field, selector).unwrap_or_else(|| {
            let advice = "check the labels of the namespace; the value of kubernetes.io/metadata.name is its name";
            DraftFix::from(advice)
        }),
    )
}

/// Returns a fix that selects a namespace by its name. `None` unless the selector has only one label, and the value of
/// this label is the name of a namespace. For the label `kubernetes.io/metadata.name`, a similar name is sufficient.
fn fix_by_name(context: &Context<'_>, field: &str, selector: &Selector) -> Option<DraftFix> {
    let [Requirement::In(key, values)] = selector.requirements.as_slice() else { return None };
    let [value] = values.as_slice() else { return None };
    let name: NamespaceName = match context.namespaces.get(value) {
        Some(name) => name.clone(),
        None if **key == *NAMESPACE_NAME_LABEL => closest_namespace(context, value)?.into(),
        None => return None,
    };
    let label = entry(NAMESPACE_NAME_LABEL, yaml::string(&name));
    let labels = Node::Map(vec![entry("matchLabels", Node::Map(vec![label]))]);
    let description = format!("select namespace {name} by the label that every namespace has, {NAMESPACE_NAME_LABEL}");
    Some(DraftFix::of(description, vec![Operation::Replace(FieldPath::parse(field), labels)]))
}

/// Returns the finding for a peer with labels that only host-network pods have, which a peer never matches. `groups`
/// are these pods.
fn host_network(place: PeerPlace<'_>, groups: &[&Group<'_>]) -> Draft {
    let pods = || groups.iter().flat_map(|group| &group.pods);
    let names: Vec<String> = pods().map(|pod| pod.key.to_string()).collect();
    let (blocks, missing) = suggest::blocks(pods().flat_map(|pod| pod.addresses.iter().copied()));
    Draft::new(
        RuleId::HOST_NETWORK_PEER,
        place.path(),
        format!(
            "The selector matches host-network pods only ({}): {}.",
            describe::peer(place.policy, place.peer()),
            shortened_list(&names, "pods")
        ),
        "Host-network pods are not peers: a selector never matches the address of a node.",
        with_blocks(&FieldPath::parse(&place.path()), &blocks, missing),
    )
}

/// Returns a fix that replaces a peer of host-network pods with the addresses of their nodes. `blocks`: one for each of
/// the first addresses. `missing`: the number of the other addresses.
fn with_blocks(peer: &FieldPath, blocks: &[Peer], missing: usize) -> DraftFix {
    let Some((first, others)) = blocks.split_first() else { return "allow the addresses of their nodes".into() };
    let list = FieldPath(peer.0[..peer.0.len() - 1].to_vec());
    let replaced = Operation::Replace(peer.clone(), yaml::of_peer(first));
    let added = others.iter().map(|block| Operation::Append(list.clone(), yaml::of_peer(block)));
    let flow: Vec<String> = blocks.iter().map(|block| yaml::of_peer(block).flow()).collect();
    let more = match missing {
        0 => String::new(),
        1 => " and 1 more address".to_owned(),
        missing => format!(" and {missing} more addresses"),
    };
    let description = format!("replace the peer with the addresses of their nodes, {}{more}", flow.join(", "));
    DraftFix::of(description, std::iter::once(replaced).chain(added).collect())
}
