//! The rule that lacks least.

use crate::model::{Peer, Peers, Policy, Ports, Rule};
use crate::reference::{self, Packet, Remote};
use crate::world::World;

use super::{NearestRule, destination, lacks};

/// The nearest rule, and of its peers the nearest.
pub(super) struct Nearest<'w> {
    pub(super) rule: NearestRule,
    /// The peer that lacks least; `None` where the rule is for anyone, or none of its peers was understood.
    pub(super) peer: Option<&'w Peer>,
    pub(super) ports: &'w Ports,
}

/// Of all rules of the policies that isolate, the one with most conditions met: peer and port first, then the fewest things
/// lacking in the peer; the first one of equals. `None` where there is no rule.
pub(super) fn nearest<'w>(world: &'w World, packet: &Packet) -> Option<Nearest<'w>> {
    let pod = world.pods.get(&packet.pod)?;
    let mut best: Option<(usize, usize, Nearest<'w>)> = None;
    for policy in reference::isolating(world, pod, packet.direction) {
        for (index, rule) in reference::rules(policy, packet.direction).iter().enumerate() {
            let (peer_lacks, peer) = of_peers(world, policy, rule, packet);
            let port_lacks = of_ports(world, rule, packet);
            let unmet = usize::from(!peer_lacks.is_empty()) + usize::from(port_lacks.is_some());
            let distance = peer_lacks.len();
            if best.as_ref().is_some_and(|(least, length, _)| (*least, *length) <= (unmet, distance)) {
                continue;
            }
            let found = NearestRule {
                policy: policy.key.clone(),
                index,
                peer_matches: peer_lacks.is_empty(),
                port_matches: port_lacks.is_none(),
                lacks: lacks::clauses(packet, &peer_lacks, port_lacks),
            };
            best = Some((unmet, distance, Nearest { rule: found, peer, ports: &rule.ports }));
        }
    }
    best.map(|(_, _, nearest)| nearest)
}

fn of_peers<'w>(world: &World, policy: &Policy, rule: &'w Rule, packet: &Packet) -> (Vec<String>, Option<&'w Peer>) {
    let Peers::Of(peers) = &rule.peers else { return (Vec::new(), None) };
    let remote = Remote::of(world, packet.remote);
    let lacking = peers.iter().map(|peer| (lacks::of_peer(world, policy, peer, &remote), Some(peer)));
    lacking
        .min_by_key(|(lacks, _)| lacks.len())
        .unwrap_or_else(|| (vec!["none of its peers was understood".into()], None))
}

fn of_ports(world: &World, rule: &Rule, packet: &Packet) -> Option<String> {
    let destination = destination(world, packet);
    let Ports::Of(ports) = &rule.ports else { return None };
    let matches = reference::allows_port(&rule.ports, packet.protocol, packet.port, destination);
    (!matches).then(|| lacks::of_ports(ports, destination))
}
