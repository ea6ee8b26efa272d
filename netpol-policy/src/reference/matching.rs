//! Whether a peer and a port of a rule match.

use std::net::IpAddr;

use netpol_common::protocol;

use crate::model::{Peer, Peers, Pod, Policy, PortMatch, PortRange, Ports};
use crate::world::World;

/// The other end of an attempt.
#[derive(Clone, Copy, Debug)]
pub struct Remote<'w> {
    /// Its address, as the packet carries it.
    pub address: IpAddr,
    /// The pod whose address that is. Host-network and finished pods, those that lost it to another, and those that claim
    /// a node's, have none (5, 6, 15).
    pub pod: Option<&'w Pod>,
}

impl<'w> Remote<'w> {
    /// Whoever has this address.
    pub fn of(world: &'w World, address: IpAddr) -> Self {
        Self { address, pod: world.peer_at(address) }
    }
}

/// Whether `from` or `to` admits the remote. Absent or empty: anyone (3).
pub fn allows_peer(world: &World, policy: &Policy, peers: &Peers, remote: &Remote<'_>) -> bool {
    match peers {
        Peers::Any => true,
        Peers::Of(peers) => peers.iter().any(|peer| peer_matches(world, policy, peer, remote)),
    }
}

/// Whether one peer is the remote.
pub fn peer_matches(world: &World, policy: &Policy, peer: &Peer, remote: &Remote<'_>) -> bool {
    match peer {
        // 4: both selectors must hold; without a namespaceSelector, the policy's own namespace is meant.
        Peer::Pods { namespaces, pods } => remote.pod.is_some_and(|pod| {
            let namespace_matches = match namespaces {
                Some(selector) => selector.matches(&world.namespace_labels(&pod.key.namespace)),
                None => pod.key.namespace == policy.key.namespace,
            };
            namespace_matches && pods.matches(&pod.labels)
        }),
        // 11, 14: the address decides, whoever has it; an except subtracts from this block only.
        Peer::Block(block) => block.contains(remote.address),
    }
}

/// Whether `ports` admits protocol and port at the destination. Absent or empty: every protocol and port (3, 17).
pub fn allows_port(ports: &Ports, protocol: u8, port: u16, destination: Option<&Pod>) -> bool {
    match ports {
        Ports::Any => true,
        Ports::Of(ports) => {
            protocol::has_ports(protocol) && ports.iter().any(|item| port_matches(item, protocol, port, destination))
        }
    }
}

/// Whether one item of `ports` is this port of this protocol at the destination (8, 9).
pub fn port_matches(item: &PortMatch, protocol: u8, port: u16, destination: Option<&Pod>) -> bool {
    item.protocol.number() == protocol
        && match &item.port {
            PortRange::All => true,
            PortRange::Range(first, last) => (*first..=*last).contains(&port),
            PortRange::Named(name) => destination.is_some_and(|pod| {
                let mut ports = pod.ports.iter();
                ports.any(|named| named.name == *name && named.protocol == item.protocol && named.port == port)
            }),
        }
}
