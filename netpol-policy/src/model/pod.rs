//! Pods and namespaces.

use std::net::IpAddr;
use std::sync::Arc;

use super::{Frontend, FrontendAddress, Labels, NamespaceModes, NamespaceName, PodKey, Protocol, Uid};

/// The label with a namespace's own name, which the API server sets on every namespace.
pub const NAMESPACE_NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// A namespace.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Namespace {
    /// `metadata.name`.
    pub name: NamespaceName,
    /// Labels, always with `kubernetes.io/metadata.name`.
    pub labels: Labels,
    /// The annotations for shadow mode and suspension of enforcement.
    pub modes: NamespaceModes,
}

impl Namespace {
    /// Returns a namespace that other objects refer to but that has no Namespace object. Its only label is
    /// [`NAMESPACE_NAME_LABEL`].
    pub fn implicit(name: NamespaceName) -> Self {
        let labels = Labels::from([(NAMESPACE_NAME_LABEL.into(), name.clone())]);
        Self { name, labels, modes: NamespaceModes::default() }
    }
}

/// The workload of a pod: the object that controls the pod, in the pod's namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodWorkload {
    /// The kind of the object, such as `Deployment`. Any kind of object can control pods.
    pub kind: Arc<str>,
    /// The name of the object.
    pub name: Arc<str>,
}

/// A pod.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Pod {
    /// Namespace and name.
    pub key: PodKey,
    /// The UID that the container runtime uses; `None` in manifests without a UID.
    pub uid: Option<Uid>,
    /// `spec.nodeName`, once scheduled.
    pub node: Option<Arc<str>>,
    /// `spec.hostNetwork`: the pod has the node's addresses. No policy and no peer selects it.
    pub host_network: bool,
    /// Phase Succeeded or Failed: no policy and no peer selects the pod, and its addresses may belong to another pod.
    pub finished: bool,
    /// Whether `metadata.deletionTimestamp` is set.
    pub deleting: bool,
    /// `metadata.creationTimestamp` in seconds since 1970. If several pods have the same address in their status, the
    /// address belongs to the youngest of them that is not being deleted.
    pub created: i64,
    /// Labels.
    pub labels: Labels,
    /// `status.podIPs` (or `status.podIP`): at most one per family.
    pub addresses: Vec<IpAddr>,
    /// Named ports of containers and sidecars (init containers with `restartPolicy: Always`).
    pub ports: Vec<NamedPort>,
    /// The object that controls the pod, if any.
    pub workload: Option<PodWorkload>,
    /// hostPorts. Boxed, because few pods have any.
    pub host_ports: Option<Box<HostPorts>>,
}

impl Pod {
    /// Returns whether policies and peers can select the pod: it is not finished and has its own network namespace.
    pub fn is_selectable(&self) -> bool {
        !self.host_network && !self.finished
    }

    /// Returns the frontends of the pod's hostPorts (node address, hostPort and protocol), each with the container
    /// port.
    pub fn host_frontends(&self) -> impl Iterator<Item = (Frontend, u16)> {
        let host_ports = self.host_ports.iter().filter(|_| self.is_selectable());
        host_ports.flat_map(|host_ports| host_ports.ports.iter().flat_map(|port| port.frontends(&host_ports.addresses)))
    }
}

/// The hostPorts of a pod, and the addresses of its node. The pod is not in the host network.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HostPorts {
    /// `status.hostIPs` (or `status.hostIP`).
    pub addresses: Vec<IpAddr>,
    /// The ports; never empty.
    pub ports: Vec<HostPort>,
}

/// A port of the node that is forwarded to a port of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostPort {
    /// `hostIP`: the address of the frontend. `0.0.0.0` and `::` mean all node addresses of this family; `None` means
    /// all node addresses.
    pub address: Option<IpAddr>,
    /// The protocol.
    pub protocol: Protocol,
    /// `hostPort`.
    pub port: u16,
    /// `containerPort`.
    pub container_port: u16,
}

impl HostPort {
    fn frontends(self, node_addresses: &[IpAddr]) -> impl Iterator<Item = (Frontend, u16)> {
        let is_included = move |address: &IpAddr| match self.address {
            None => true,
            Some(host_ip) => host_ip.is_unspecified() && host_ip.is_ipv4() == address.is_ipv4(),
        };
        let host_ip = self.address.filter(|host_ip| !host_ip.is_unspecified());
        let addresses = node_addresses.iter().copied().filter(is_included).chain(host_ip);
        let (port, protocol) = (self.port, self.protocol.number());
        addresses.map(move |address| {
            (Frontend { address: FrontendAddress::Address(address), port, protocol }, self.container_port)
        })
    }
}

/// A container port with a name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NamedPort {
    /// Name.
    pub name: Arc<str>,
    /// Protocol.
    pub protocol: Protocol,
    /// Port number.
    pub port: u16,
}
