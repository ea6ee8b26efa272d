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
    let mut best: Option<(usize, usize, Candidate<'w>)> = None;
    for policy in reference::isolating_in(cluster_state, pod, packet.direction, mode) {
        for (index, rule) in reference::rules(policy, packet.direction).iter().enumerate() {
            let peer = nearest_peer(cluster_state, policy, rule, packet);
            let port = unmet_ports(cluster_state, rule, index, packet);
            let unmet = usize::from(!peer.lacks.is_empty()) + usize::from(port.is_some());
            let distance = peer.lacks.len();
            if best.as_ref().is_none_or(|(least, length, _)| (*least, *length) > (unmet, distance)) {
                best = Some((unmet, distance, Candidate { policy, index, rule, peer, port }));
            }
        }
    }
    best.map(|(_, _, candidate)| candidate.finish(packet.direction))
}

/// A rule that may be the nearest.
struct Candidate<'w> {
    policy: &'w Policy,
    index: usize,
    rule: &'w Rule,
    peer: NearestPeer<'w>,
    /// The unmet condition of the ports.
    port: Option<String>,
}

/// The nearest peer of a rule.
struct NearestPeer<'w> {
    /// Its index in the model, and the peer.
    found: Option<(usize, &'w Peer)>,
    /// Its unmet conditions, each with the path below the peer.
    lacks: Vec<String>,
}

impl<'w> Candidate<'w> {
    fn finish(self, direction: Direction) -> Nearest<'w> {
        let Self { policy, index, rule, peer: NearestPeer { found, lacks }, port } = self;
        let path = match found {
            Some((peer, _)) => peer_path(policy, direction, index, peer),
            None => peers_path(direction, index),
        };
        let (peer_matches, port_matches) = (lacks.is_empty(), port.is_none());
        let unmet_conditions = lacks.iter().map(|lack| format!("{path}{lack}")).chain(port).collect();
        let found_rule =
            NearestRule { policy: policy.key.clone(), index, peer_matches, port_matches, unmet_conditions };
        Nearest { rule: found_rule, peer: found.map(|(_, peer)| peer), ports: &rule.ports }
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

fn nearest_peer<'w>(cluster_state: &ClusterState, policy: &Policy, rule: &'w Rule, packet: &Packet) -> NearestPeer<'w> {
    let Peers::Of(peers) = &rule.peers else { return NearestPeer { found: None, lacks: Vec::new() } };
    let remote = Remote::of(cluster_state, packet.remote);
    let of_peer = |(index, peer): (usize, &'w Peer)| NearestPeer {
        found: Some((index, peer)),
        lacks: conditions::unmet_by_peer(cluster_state, policy, peer, &remote),
    };
    let nearest = peers.iter().enumerate().map(of_peer).min_by_key(|peer| peer.lacks.len());
    nearest.unwrap_or_else(|| NearestPeer { found: None, lacks: vec![": no valid peer".into()] })
}

fn unmet_ports(cluster_state: &ClusterState, rule: &Rule, index: usize, packet: &Packet) -> Option<String> {
    let destination = destination(cluster_state, packet);
    let Ports::Of(ports) = &rule.ports else { return None };
    let matches = reference::allows_port(&rule.ports, packet.protocol, packet.port, destination);
    let path = || format!("spec.{}[{index}].ports", packet.direction.name());
    (!matches).then(|| conditions::unmet_ports(&path(), ports, packet, destination))
}
