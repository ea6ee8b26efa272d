//! The nearest rule: of all rules of the policies that isolate a pod, the one that comes closest to allowing a packet.

use std::collections::BTreeSet;

use netpol_common::Direction;

use crate::cluster_state::ClusterState;
use crate::model::{Mode, Peer, Peers, Policy, Ports, Rule, Severity};
use crate::reference::{self, Packet, Remote};

use super::{NearestRule, conditions, destination};

/// The nearest rule, and its nearest peer.
pub(super) struct Nearest<'c> {
    pub(super) rule: NearestRule,
    /// The peer with the fewest unmet conditions; `None` if the rule has no `from` or `to`, or no valid peer.
    pub(super) peer: Option<&'c Peer>,
    pub(super) ports: &'c Ports,
}

/// Finds the nearest rule: the rule with the fewest parts (peers, ports) that do not match. Of several such rules, the
/// one with the fewest unmet conditions in its nearest peer is selected. Of these, the first one is selected. With
/// [`Mode::Shadow`], policies in shadow mode count as enforced. Returns `None` if there is no rule.
pub(super) fn nearest<'c>(cluster_state: &'c ClusterState, packet: &Packet, mode: Mode) -> Option<Nearest<'c>> {
    let pod = cluster_state.pods.get(&packet.pod)?;
    let remote = Remote::of(cluster_state, packet.remote);
    let mut best: Option<((usize, usize), Candidate<'c>)> = None;
    for policy in reference::isolating_in(cluster_state, pod, packet.direction, mode) {
        for (index, rule) in reference::rules(policy, packet.direction).iter().enumerate() {
            let (unmet_conditions, peer) = nearest_peer(cluster_state, policy, rule, &remote);
            let port_matches = port_matches(cluster_state, rule, packet);
            let unmet_parts = usize::from(unmet_conditions > 0) + usize::from(!port_matches);
            let distance = (unmet_parts, unmet_conditions);
            if best.as_ref().is_none_or(|(least, _)| *least > distance) {
                best = Some((distance, Candidate { policy, index, rule, peer, port_matches }));
            }
        }
    }
    best.map(|(_, candidate)| candidate.describe(cluster_state, packet, &remote))
}

/// A rule that may be the nearest one.
struct Candidate<'c> {
    policy: &'c Policy,
    /// The index of the rule in the policy.
    index: usize,
    rule: &'c Rule,
    /// The peer with the fewest unmet conditions, and its index in the parsed rule (`rule.peers`).
    peer: Option<(usize, &'c Peer)>,
    port_matches: bool,
}

impl<'c> Candidate<'c> {
    /// Returns the rule with texts for its unmet conditions.
    fn describe(self, cluster_state: &ClusterState, packet: &Packet, remote: &Remote<'_>) -> Nearest<'c> {
        let Self { policy, index, rule, peer, port_matches } = self;
        let direction = packet.direction;
        let (path, peer_conditions) = match (peer, &rule.peers) {
            (Some((peer_index, peer)), _) => {
                let unmet = conditions::unmet_by_peer(cluster_state, policy, peer, remote);
                (peer_path(policy, direction, index, peer_index), unmet)
            }
            (None, Peers::Any) => (String::new(), Vec::new()),
            (None, Peers::Of(_)) => (peers_path(direction, index), vec![": no valid peer".into()]),
        };
        let port = unmet_ports(cluster_state, rule, index, packet).filter(|_| !port_matches);
        let peer_matches = peer_conditions.is_empty();
        let unmet_conditions =
            peer_conditions.iter().map(|condition| format!("{path}{condition}")).chain(port).collect();
        let found_rule =
            NearestRule { policy: policy.key.clone(), index, peer_matches, port_matches, unmet_conditions };
        Nearest { rule: found_rule, peer: peer.map(|(_, peer)| peer), ports: &rule.ports }
    }
}

/// Returns the path of a rule's list of peers: for example, `spec.ingress[0].from`.
fn peers_path(direction: Direction, rule: usize) -> String {
    let list = match direction {
        Direction::Ingress => "from",
        Direction::Egress => "to",
    };
    format!("spec.{}[{rule}].{list}", direction.name())
}

/// Returns the path of a peer in the manifest. `peer` is the index of the peer in the parsed rule. It can differ from
/// the index in the manifest, because a parsed rule omits invalid peers, except those with an invalid selector.
pub(crate) fn peer_path(policy: &Policy, direction: Direction, rule: usize, peer: usize) -> String {
    let list = peers_path(direction, rule);
    let errors = policy.diagnostics.iter().filter(|diagnostic| diagnostic.severity == Severity::Error);
    let omitted: BTreeSet<usize> = errors
        .filter_map(|diagnostic| {
            let (index, rest) = diagnostic.field.strip_prefix(&list)?.strip_prefix('[')?.split_once(']')?;
            // A peer with an invalid selector is kept: it matches nothing.
            let is_kept = rest.starts_with(".podSelector") || rest.starts_with(".namespaceSelector");
            index.parse().ok().filter(|_| !is_kept)
        })
        .collect();
    let index = (0..).filter(|index| !omitted.contains(index)).nth(peer).unwrap_or(peer);
    format!("{list}[{index}]")
}

/// Returns the number of unmet conditions of the nearest peer, and that peer with its index.
fn nearest_peer<'c>(
    cluster_state: &ClusterState,
    policy: &Policy,
    rule: &'c Rule,
    remote: &Remote<'_>,
) -> (usize, Option<(usize, &'c Peer)>) {
    let Peers::Of(peers) = &rule.peers else { return (0, None) };
    let count_unmet = |(index, peer): (usize, &'c Peer)| {
        (conditions::count_unmet_by_peer(cluster_state, policy, peer, remote), Some((index, peer)))
    };
    // A rule without a valid peer has one unmet condition.
    peers.iter().enumerate().map(count_unmet).min_by_key(|(unmet, _)| *unmet).unwrap_or((1, None))
}

fn port_matches(cluster_state: &ClusterState, rule: &Rule, packet: &Packet) -> bool {
    matches!(rule.ports, Ports::Any)
        || reference::allows_port(&rule.ports, packet.protocol, packet.port, destination(cluster_state, packet))
}

fn unmet_ports(cluster_state: &ClusterState, rule: &Rule, index: usize, packet: &Packet) -> Option<String> {
    let Ports::Of(ports) = &rule.ports else { return None };
    let path = format!("spec.{}[{index}].ports", packet.direction.name());
    Some(conditions::unmet_ports(&path, ports, packet, destination(cluster_state, packet)))
}
