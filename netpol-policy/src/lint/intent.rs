//! One peer that should be two, and two peers that should be one.
//!
//! *Split*: two list items, one with only a podSelector and one with only a namespaceSelector. *Joined*: one item with
//! both. In YAML, the two forms differ by one `-`, and both are valid. So the joined form is reported only if it
//! matches no pod, but each of its selectors alone matches pods. The split form is reported only if its podSelector
//! matches no pod, but the joined form matches a pod or may match one. The joined form may match a pod if the input has
//! no pods in the selected namespaces, because the input may be incomplete.

use super::RuleId;
use super::context::Context;
use super::finding::{Draft, DraftFix};
use super::patch::Operation;
use super::peers::PeerPlace;
use crate::explain::{describe, yaml};
use crate::manifest::{FieldPath, Step};
use crate::model::{Peer, Selector};

/// Finds a peer with only a podSelector, next to a peer with only a namespaceSelector.
pub(super) fn split(context: &Context<'_>, place: PeerPlace<'_>) -> Option<Draft> {
    let Peer::Pods { namespaces: None, pods } = place.peer() else { return None };
    let neighbors = [place.index.checked_sub(1), Some(place.index + 1)].into_iter().flatten();
    neighbors.filter(|index| *index < place.peers.len()).find_map(|index| {
        let neighbor = PeerPlace { index, ..place };
        let Peer::Pods { namespaces: Some(namespaces), pods: others } = neighbor.peer() else { return None };
        if !others.requirements.is_empty() || others.invalid || namespaces.invalid {
            return None;
        }
        let joined_peer = Peer::Pods { namespaces: Some(namespaces.clone()), pods: pods.clone() };
        let has_no_known_pods = context.pod_namespaces(place.policy, Some(namespaces)).next().is_none();
        (has_no_known_pods || matches(context, place, &joined_peer)).then(|| {
            let (neighbor_path, path) = (neighbor.path(), place.path());
            let operations = vec![
                Operation::Replace(FieldPath::parse(&neighbor_path), yaml::of_peer(&joined_peer)),
                Operation::Remove(FieldPath::parse(&path)),
            ];
            Draft::new(
                RuleId::SPLIT_PEER,
                path.clone(),
                format!("No pod matches the peer: {}.", describe::peer(place.policy, place.peer())),
                format!(
                    "{neighbor_path} is another peer, which allows {}. Two list items are alternatives.",
                    describe::peer(place.policy, neighbor.peer())
                ),
                DraftFix::of(
                    format!(
                        "write both selectors in one item, without the second `-`, to allow only {}",
                        describe::peer(place.policy, &joined_peer)
                    ),
                    operations,
                ),
            )
        })
    })
}

/// Finds a peer with both selectors that matches no pod, although each selector alone matches pods.
pub(super) fn joined(context: &Context<'_>, place: PeerPlace<'_>) -> Option<Draft> {
    let Peer::Pods { namespaces: Some(namespaces), pods } = place.peer() else { return None };
    if pods.requirements.is_empty() || namespaces.matches(&context.state.namespace_labels(&place.policy.key.namespace))
    {
        return None;
    }
    let all_of_namespaces = Peer::Pods { namespaces: Some(namespaces.clone()), pods: Selector::everything() };
    let in_own_namespace = Peer::Pods { namespaces: None, pods: pods.clone() };
    if !matches(context, place, &all_of_namespaces) || !matches(context, place, &in_own_namespace) {
        return None;
    }
    let path = FieldPath::parse(&place.path());
    let list = FieldPath(path.0[..path.0.len() - 1].to_vec());
    debug_assert!(matches!(list.0.last(), Some(Step::Key(_))), "a peer is an item of a list");
    let operations = vec![
        Operation::Replace(path, yaml::of_peer(&all_of_namespaces)),
        Operation::Append(list, yaml::of_peer(&in_own_namespace)),
    ];
    Some(Draft::new(
        RuleId::JOINED_PEER,
        place.path(),
        format!("No pod matches the peer: {}.", describe::peer(place.policy, place.peer())),
        "A pod must match both selectors of an item.",
        DraftFix::of(
            format!(
                "write two list items, if {} and {} are intended",
                describe::peer(place.policy, &all_of_namespaces),
                describe::peer(place.policy, &in_own_namespace)
            ),
            operations,
        ),
    ))
}

fn matches(context: &Context<'_>, place: PeerPlace<'_>, peer: &Peer) -> bool {
    context.peer_groups(place.policy, peer).iter().any(|group| !group.host_network)
}
