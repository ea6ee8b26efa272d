//! Pods and namespaces.

use std::net::IpAddr;
use std::sync::Arc;

use super::{Frontend, Labels, NamespaceName, Place, PodKey, Protocol};

/// The label with a namespace's own name, which the API server sets on every namespace.
pub const NAMESPACE_NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// A namespace.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Namespace {
    /// `metadata.name`.
    pub name: NamespaceName,
    /// Its labels; `kubernetes.io/metadata.name` is always among them.
    pub labels: Labels,
}

/// A pod.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Pod {
    /// Its namespace and name.
    pub key: PodKey,
    /// `spec.nodeName`, once scheduled.
    pub node: Option<Arc<str>>,
    /// `spec.hostNetwork`: its addresses are the node's, and it is neither subject nor selectable peer.
    pub host_network: bool,
    /// Succeeded or Failed: its addresses may be another pod's by now, and it selects nothing.
    pub finished: bool,
    /// It has a `metadata.deletionTimestamp`.
    pub deleting: bool,
    /// `metadata.creationTimestamp` in seconds since 1970; orders pods that claim the same address.
    pub created: i64,
    /// Its labels.
    pub labels: Labels,
    /// `status.podIPs` (or `status.podIP`): at most one per family.
    pub addresses: Vec<IpAddr>,
    /// The named ports of its containers and of its sidecars (init containers with `restartPolicy: Always`).
    pub ports: Vec<NamedPort>,
    /// What its node hands on to it. Boxed, as few pods have any.
    pub host_ports: Option<Box<HostPorts>>,
}

impl Pod {
    /// Whether policies can select it and peers can name it: alive, with a network of its own.
    pub fn participates(&self) -> bool {
        !self.host_network && !self.finished
    }

    /// Where connections to its hostPorts go in, and the port of the pod that each leads to.
    pub fn host_frontends(&self) -> impl Iterator<Item = (Frontend, u16)> {
        let host = self.host_ports.iter().filter(|_| self.participates());
        host.flat_map(|host| host.ports.iter().flat_map(|port| port.frontends(&host.addresses)))
    }
}

/// The hostPorts of a pod that has a network of its own, and its node's addresses.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HostPorts {
    /// `status.hostIPs` (or `status.hostIP`).
    pub addresses: Vec<IpAddr>,
    /// The ports; never empty.
    pub ports: Vec<HostPort>,
}

/// A port of the node that leads to a port of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostPort {
    /// `hostIP`: the one address that has it, or, unspecified, all of its family. Absent, all of the node's.
    pub address: Option<IpAddr>,
    /// The protocol.
    pub protocol: Protocol,
    /// `hostPort`.
    pub port: u16,
    /// `containerPort`.
    pub container_port: u16,
}

impl HostPort {
    fn frontends(self, node: &[IpAddr]) -> impl Iterator<Item = (Frontend, u16)> {
        let of_node = move |address: &IpAddr| match self.address {
            None => true,
            Some(own) => own.is_unspecified() && own.is_ipv4() == address.is_ipv4(),
        };
        let own = self.address.filter(|own| !own.is_unspecified());
        let addresses = node.iter().copied().filter(of_node).chain(own);
        let (port, protocol) = (self.port, self.protocol.number());
        addresses.map(move |address| (Frontend { place: Place::Address(address), port, protocol }, self.container_port))
    }
}

/// A container port with a name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NamedPort {
    /// The name.
    pub name: Arc<str>,
    /// The protocol it is for.
    pub protocol: Protocol,
    /// The number.
    pub port: u16,
}
