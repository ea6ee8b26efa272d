//! Peers and ports in words.

use crate::model::{IpBlock, Peer, Peers, Pod, Policy, PortMatch, PortRange, Ports, Protocol, Requirement, Selector};
use crate::reference::{Packet, Remote, peer_matches, port_matches};
use crate::world::World;

/// `app=web`, `tier in (a, b)`, `no label x`.
pub(super) fn requirement(requirement: &Requirement) -> String {
    let values = |values: &[std::sync::Arc<str>]| values.join(", ");
    match requirement {
        Requirement::In(key, list) if list.len() == 1 => format!("{key}={}", list[0]),
        Requirement::In(key, list) => format!("{key} in ({})", values(list)),
        Requirement::NotIn(key, list) if list.len() == 1 => format!("{key}!={}", list[0]),
        Requirement::NotIn(key, list) => format!("{key} not in ({})", values(list)),
        Requirement::Exists(key) => format!("label {key}"),
        Requirement::DoesNotExist(key) => format!("no label {key}"),
    }
}

fn selector(selector: &Selector) -> Option<String> {
    let requirements: Vec<String> = selector.requirements.iter().map(requirement).collect();
    (!requirements.is_empty()).then(|| requirements.join(", "))
}

/// All that a selector asks for.
pub(super) fn labels(asked: &Selector) -> String {
    selector(asked).unwrap_or_else(|| "{}".into())
}

/// A peer.
pub(super) fn peer(policy: &Policy, peer: &Peer) -> String {
    match peer {
        Peer::Pods { namespaces, pods } => {
            let pods = selector(pods).map_or_else(|| "all pods".to_owned(), |labels| format!("pods with {labels}"));
            match namespaces {
                None => format!("{pods} of namespace {}", policy.key.namespace),
                Some(namespaces) => match selector(namespaces) {
                    None => format!("{pods} of all namespaces"),
                    Some(labels) => format!("{pods} of namespaces with {labels}"),
                },
            }
        }
        Peer::Block(block) => ip_block(block),
    }
}

fn ip_block(block: &IpBlock) -> String {
    if block.except.is_empty() {
        return format!("addresses in {}", block.cidr);
    }
    let except: Vec<String> = block.except.iter().map(ToString::to_string).collect();
    format!("addresses in {} except {}", block.cidr, except.join(", "))
}

/// `8080/TCP`, `every UDP port`, `"web"/TCP`.
pub(super) fn port(port: &PortMatch) -> String {
    let protocol = port.protocol.name();
    match &port.port {
        PortRange::All => format!("every {protocol} port"),
        PortRange::Range(first, last) if first == last => format!("{first}/{protocol}"),
        PortRange::Range(first, last) => format!("{first}-{last}/{protocol}"),
        PortRange::Named(name) => format!("\"{name}\"/{protocol}"),
    }
}

/// All of a rule's ports.
pub(super) fn ports(ports: &[PortMatch]) -> String {
    /// More than these are counted only.
    const SHOWN: usize = 8;
    let mut words: Vec<String> = ports.iter().take(SHOWN).map(port).collect();
    if ports.len() > SHOWN {
        words.push(format!("{} more", ports.len() - SHOWN));
    }
    words.join(", ")
}

/// The first peer that matches.
pub(super) fn matching_peer(world: &World, policy: &Policy, peers: &Peers, remote: &Remote<'_>) -> String {
    match peers {
        Peers::Any => "anyone".into(),
        Peers::Of(peers) => peers
            .iter()
            .find(|candidate| peer_matches(world, policy, candidate, remote))
            .map_or_else(String::new, |found| peer(policy, found)),
    }
}

/// The first port that matches.
pub(super) fn matching_port(ports: &Ports, packet: &Packet, destination: Option<&Pod>) -> String {
    match ports {
        Ports::Any => "every protocol and port".into(),
        Ports::Of(ports) => ports
            .iter()
            .find(|candidate| port_matches(candidate, packet.protocol, packet.port, destination))
            .map_or_else(String::new, port),
    }
}

/// `80/TCP`, as people ask for it.
pub(super) fn asked(packet: &Packet) -> String {
    match Protocol::from_number(packet.protocol) {
        Some(protocol) => format!("{}/{}", packet.port, protocol.name()),
        None => format!("IP protocol {}", packet.protocol),
    }
}
