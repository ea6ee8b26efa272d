//! The nearest rule: the rule with the fewest unmet conditions.

use std::collections::BTreeSet;

use netpol_common::Direction;

use crate::cluster_state::ClusterState;
use crate::model::{Mode, Peer, Peers, Policy, Ports, Rule, Severity};
use crate::reference::{self, Packet, Remote};

use super::{NearestRule, conditions, destination};

/// The nearest rule, and its nearest peer.
pub(super) struct Nearest<'w> {
    pub(super) rule: NearestRule,
    /// The peer with the fewest unmet conditions; `None` if the rule has no `from` or `to`, or no valid peer.
    pub(super) peer: Option<&'w Peer>,
    pub(super) ports: &'w Ports,
}

/// Finds the nearest rule of all isolating policies: first by whether a peer and a port match, then by the number of unmet
/// conditions of the peer. Of equal rules, the first one. `None` if there is no rule.
pub(super) fn nearest<'w>(cluster_state: &'w ClusterState, packet: &Packet, mode: Mode) -> Option<Nearest<'w>> {
    let pod = cluster_state.pods.get(&packet.pod)?;
    let remote = Remote::of(cluster_state, packet.remote);
    let mut best: Option<((usize, usize), Candidate<'w>)> = None;
    for policy in reference::isolating_in(cluster_state, pod, packet.direction, mode) {
        for (index, rule) in reference::rules(policy, packet.direction).iter().enumerate() {
            let (distance, peer) = nearest_peer(cluster_state, policy, rule, &remote);
            let port_matches = has_port(cluster_state, rule, packet);
            let unmet = usize::from(distance > 0) + usize::from(!port_matches);
            if best.as_ref().is_none_or(|(least, _)| *least > (unmet, distance)) {
                best = Some(((unmet, distance), Candidate { policy, index, rule, peer, port_matches }));
            }
        }
    }
    best.map(|(_, candidate)| candidate.finish(cluster_state, packet, &remote))
}

/// A rule that may be the nearest.
struct Candidate<'w> {
    policy: &'w Policy,
    index: usize,
    rule: &'w Rule,
    /// The nearest peer, and its index in the model.
    peer: Option<(usize, &'w Peer)>,
    port_matches: bool,
}

impl<'w> Candidate<'w> {
    /// Describes the unmet conditions.
    fn finish(self, cluster_state: &ClusterState, packet: &Packet, remote: &Remote<'_>) -> Nearest<'w> {
        let Self { policy, index, rule, peer, port_matches } = self;
        let direction = packet.direction;
        let (path, lacks) = match (peer, &rule.peers) {
            (Some((number, peer)), _) => {
                let lacks = conditions::unmet_by_peer(cluster_state, policy, peer, remote);
                (peer_path(policy, direction, index, number), lacks)
            }
            (None, Peers::Any) => (String::new(), Vec::new()),
            (None, Peers::Of(_)) => (peers_path(direction, index), vec![": no valid peer".into()]),
        };
        let port = unmet_ports(cluster_state, rule, index, packet).filter(|_| !port_matches);
        let peer_matches = lacks.is_empty();
        let unmet_conditions = lacks.iter().map(|lack| format!("{path}{lack}")).chain(port).collect();
        let found_rule =
            NearestRule { policy: policy.key.clone(), index, peer_matches, port_matches, unmet_conditions };
        Nearest { rule: found_rule, peer: peer.map(|(_, peer)| peer), ports: &rule.ports }
    }
}

/// `spec.ingress[0].from`.
fn peers_path(direction: Direction, rule: usize) -> String {
    let list = match direction {
        Direction::Ingress => "from",
        Direction::Egress => "to",
    };
    format!("spec.{}[{rule}].{list}", direction.name())
}

/// The path of a peer in the manifest. The model does not contain invalid peers, so its indices can differ.
pub(crate) fn peer_path(policy: &Policy, direction: Direction, rule: usize, peer: usize) -> String {
    let list = peers_path(direction, rule);
    let errors = policy.diagnostics.iter().filter(|diagnostic| diagnostic.severity == Severity::Error);
    let left_out: BTreeSet<usize> = errors
        .filter_map(|diagnostic| {
            let (index, rest) = diagnostic.field.strip_prefix(&list)?.strip_prefix('[')?.split_once(']')?;
            // A peer with an invalid selector is kept: it matches nothing.
            let is_kept = rest.starts_with(".podSelector") || rest.starts_with(".namespaceSelector");
            index.parse().ok().filter(|_| !is_kept)
        })
        .collect();
    let index = (0..).filter(|index| !left_out.contains(index)).nth(peer).unwrap_or(peer);
    format!("{list}[{index}]")
}

/// Returns the number of unmet conditions of the nearest peer, and that peer with its index.
fn nearest_peer<'w>(
    cluster_state: &ClusterState,
    policy: &Policy,
    rule: &'w Rule,
    remote: &Remote<'_>,
) -> (usize, Option<(usize, &'w Peer)>) {
    let Peers::Of(peers) = &rule.peers else { return (0, None) };
    let of_peer = |(index, peer): (usize, &'w Peer)| {
        (conditions::count_unmet_by_peer(cluster_state, policy, peer, remote), Some((index, peer)))
    };
    // Without a valid peer, one condition is unmet.
    peers.iter().enumerate().map(of_peer).min_by_key(|(unmet, _)| *unmet).unwrap_or((1, None))
}

fn has_port(cluster_state: &ClusterState, rule: &Rule, packet: &Packet) -> bool {
    matches!(rule.ports, Ports::Any)
        || reference::allows_port(&rule.ports, packet.protocol, packet.port, destination(cluster_state, packet))
}

fn unmet_ports(cluster_state: &ClusterState, rule: &Rule, index: usize, packet: &Packet) -> Option<String> {
    let Ports::Of(ports) = &rule.ports else { return None };
    let path = format!("spec.{}[{index}].ports", packet.direction.name());
    Some(conditions::unmet_ports(&path, ports, packet, destination(cluster_state, packet)))
}
