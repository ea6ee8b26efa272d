//! Matches peers and ports of rules. Numbers in comments are items of `docs/semantics.md`.

use std::net::IpAddr;

use netpol_common::protocol;

use crate::cluster_state::ClusterState;
use crate::model::{Peer, Peers, Pod, Policy, PortMatch, PortRange, Ports};

/// The remote side of a flow, seen from the pod with the policies that are evaluated.
#[derive(Clone, Copy, Debug)]
pub struct Remote<'w> {
    /// The remote address, as in the packet.
    pub address: IpAddr,
    /// The pod at this address that selectors can match. If several pods list the address, only one of them counts (6).
    /// `None` if the address belongs to a node (30), to no pod, or only to host-network or finished pods (5, 6).
    pub pod: Option<&'w Pod>,
}

impl<'w> Remote<'w> {
    /// Finds the pod with this address.
    pub fn of(cluster_state: &'w ClusterState, address: IpAddr) -> Self {
        Self { address, pod: cluster_state.peer_at(address) }
    }
}

/// Returns whether the list `from` or `to` of a rule (`peers`) matches the remote. An absent or empty list matches
/// every address (3).
pub fn allows_peer(cluster_state: &ClusterState, policy: &Policy, peers: &Peers, remote: &Remote<'_>) -> bool {
    match peers {
        Peers::Any => true,
        Peers::Of(peers) => peers.iter().any(|peer| peer_matches(cluster_state, policy, peer, remote)),
    }
}

/// Returns whether one peer matches the remote.
pub fn peer_matches(cluster_state: &ClusterState, policy: &Policy, peer: &Peer, remote: &Remote<'_>) -> bool {
    match peer {
        // 4: both selectors must match. Without a namespaceSelector, the pod must be in the policy's own namespace.
        Peer::Pods { namespaces, pods } => remote.pod.is_some_and(|pod| {
            let namespace_matches = match namespaces {
                Some(selector) => selector.matches(&cluster_state.namespace_labels(&pod.key.namespace)),
                None => pod.key.namespace == policy.key.namespace,
            };
            namespace_matches && pods.matches(&pod.labels)
        }),
        // 11, 14: only the address is compared, even if a pod has it. An `except` applies only to its own block.
        Peer::Block(block) => block.contains(remote.address),
    }
}

/// Returns whether the list `ports` of a rule matches a protocol and port at the destination. An absent or empty list
/// matches everything (3, 17). `destination`: the pod in which named ports are looked up.
pub fn allows_port(ports: &Ports, protocol: u8, port: u16, destination: Option<&Pod>) -> bool {
    match ports {
        Ports::Any => true,
        Ports::Of(ports) => {
            protocol::has_ports(protocol) && ports.iter().any(|item| port_matches(item, protocol, port, destination))
        }
    }
}

/// Returns whether one item of `ports` matches a protocol and port at the destination (8, 9).
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
