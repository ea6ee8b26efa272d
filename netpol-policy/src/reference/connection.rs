//! Evaluates connections: egress at the source and ingress at the destination. Numbers in comments are items of
//! `docs/semantics.md`.

use std::fmt;
use std::net::IpAddr;

use netpol_common::{Direction, Reason};

use super::{Evaluation, Packet, evaluate};
use crate::cluster_state::ClusterState;
use crate::model::{Backend, Pod, PodKey, Protocol, ServiceKey};

/// One end of a connection.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum End {
    /// A pod.
    Pod(PodKey),
    /// An address. The address of a pod stands for that pod.
    Address(IpAddr),
    /// A Service, which stands for its first address of each address family. A Service cannot be the source.
    Service(ServiceKey),
}

/// `namespace/name`, `service/namespace/name`, or the address.
impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pod(key) => key.fmt(f),
            Self::Address(address) => address.fmt(f),
            Self::Service(key) => write!(f, "service/{key}"),
        }
    }
}

/// An error that makes a connection impossible.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnectionError {
    /// The pod is not in the input.
    #[error("{} not found in the input; check its namespace and name", .0.title())]
    NoSuchPod(PodKey),
    /// The pod has finished, and another pod may have its address.
    #[error("pod {0} has finished (phase Succeeded or Failed) and no longer has an address; use a running pod")]
    Finished(PodKey),
    /// The pod has no address yet.
    #[error("{} has no address; add `status.podIPs`", .0.title())]
    NoAddress(PodKey),
    /// The Service is not in the input.
    #[error("Service {0} not found in the input; check its namespace and name")]
    NoSuchService(ServiceKey),
    /// The Service has no address of its own.
    #[error(
        "Service {0} has no cluster IP (headless or ExternalName): its DNS name resolves to other addresses; use one of these \
         addresses, or a pod"
    )]
    NoServiceAddress(ServiceKey),
    /// The Service does not have this port; the last field lists its ports.
    #[error("Service {0} has no port {1}; it has {2}")]
    NoServicePort(ServiceKey, String, String),
    /// A Service is not a source of connections.
    #[error("Service {0} cannot be a source of connections; use a pod that it selects")]
    FromService(ServiceKey),
    /// One end has only IPv4, the other only IPv6.
    #[error("{0} and {1} have no address family in common")]
    NoCommonFamily(End, End),
}

/// The evaluation of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// The packet and its evaluation at the source pod. If the packet is denied only at the device through which it
    /// leaves the node, this is the evaluation at that device. `None` if the source is not a pod.
    pub egress: Option<(Packet, Evaluation)>,
    /// The packet and its evaluation at the destination pod; `None` if the destination is not a pod.
    pub ingress: Option<(Packet, Evaluation)>,
    /// If the destination is a frontend: the evaluation for each backend.
    pub backends: Vec<BackendConnection>,
}

/// A connection through a Service to one backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendConnection {
    /// The backend.
    pub backend: Backend,
    /// The packet post-DNAT; `None` if the source is not a pod.
    pub egress: Option<(Packet, Evaluation)>,
    /// The packet at the backend; `None` if the backend is not a pod.
    pub ingress: Option<(Packet, Evaluation)>,
}

impl BackendConnection {
    /// Returns whether both directions allow the connection.
    pub fn allowed(&self) -> bool {
        both_allow(self.egress.as_ref(), self.ingress.as_ref())
    }
}

fn both_allow(egress: Option<&(Packet, Evaluation)>, ingress: Option<&(Packet, Evaluation)>) -> bool {
    [egress, ingress].into_iter().flatten().all(|(_, evaluation)| evaluation.reason.allows())
}

impl Connection {
    /// Returns whether both directions allow the connection. If there are backends, both directions must also allow the
    /// connection to at least one of them.
    pub fn allowed(&self) -> bool {
        let some_allowed = self.backends.is_empty() || self.backends.iter().any(BackendConnection::allowed);
        both_allow(self.egress.as_ref(), self.ingress.as_ref()) && some_allowed
    }
}

/// Evaluates a connection at both ends. If both ends have addresses of both families, uses the family of the
/// destination's first address, as resolvers commonly do.
///
/// # Errors
/// If an end is not in the cluster state, has finished, has no address, or shares no address family with the other end.
pub fn connection(
    cluster_state: &ClusterState,
    from: &End,
    to: &End,
    protocol: u8,
    port: u16,
) -> Result<Connection, ConnectionError> {
    let mut all = connections(cluster_state, from, to, protocol, port)?;
    Ok(all.swap_remove(0))
}

/// Evaluates a connection at both ends in each common address family, because a client may use either family. The
/// result is never empty.
///
/// # Errors
/// As [`connection`].
pub fn connections(
    cluster_state: &ClusterState,
    from: &End,
    to: &End,
    protocol: u8,
    port: u16,
) -> Result<Vec<Connection>, ConnectionError> {
    if let End::Service(key) = from {
        return Err(ConnectionError::FromService(key.clone()));
    }
    let (sources, source_pod) = resolve(cluster_state, from)?;
    let (destinations, destination_pod) = resolve(cluster_state, to)?;
    if let End::Service(key) = to {
        require_port(cluster_state, key, protocol, port)?;
    }
    // One pair of a source and a destination for each common address family.
    let mut pairs: Vec<(IpAddr, IpAddr)> = Vec::new();
    for destination in destinations {
        let Some(source) = sources.iter().find(|source| source.is_ipv4() == destination.is_ipv4()) else { continue };
        if pairs.iter().all(|(_, other)| other.is_ipv4() != destination.is_ipv4()) {
            pairs.push((*source, destination));
        }
    }
    if pairs.is_empty() {
        return Err(ConnectionError::NoCommonFamily(from.clone(), to.clone()));
    }
    let ends = (source_pod, destination_pod);
    Ok(pairs
        .into_iter()
        .map(|(source, destination)| connection_between(cluster_state, ends, source, destination, protocol, port))
        .collect())
}

fn connection_between(
    cluster_state: &ClusterState,
    (source_pod, destination_pod): (Option<&Pod>, Option<&Pod>),
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    port: u16,
) -> Connection {
    let evaluated_at = |pod: &Pod, direction, remote, port, post_dnat| {
        let is_hairpin = direction == Direction::Ingress && source_pod.is_some_and(|source| source.key == pod.key);
        let packet =
            Packet { pod: pod.key.clone(), direction, remote, protocol, port, from_node: false, is_hairpin, post_dnat };
        let evaluation = evaluate(cluster_state, &packet);
        (packet, evaluation)
    };
    let frontend = cluster_state.frontend_at(destination, protocol, port);
    let backends = frontend.map(|frontend| cluster_state.backends(&frontend)).unwrap_or_default();
    let backends = backends.into_iter().map(|backend| BackendConnection {
        backend,
        egress: source_pod.map(|pod| evaluated_at(pod, Direction::Egress, backend.address, backend.port, true)),
        ingress: cluster_state
            .peer_at(backend.address)
            .map(|pod| evaluated_at(pod, Direction::Ingress, source, backend.port, false)),
    });
    // 22: a packet to an address of another node, for example to a NodePort, leaves the pod's node before it is
    // translated. At the device through which it leaves, it is evaluated again: all backends must be allowed.
    let leaves_node = |pod: &Pod| cluster_state.is_node(destination) && !is_pods_node(cluster_state, pod, destination);
    let egress = |pod: &Pod| {
        let leaving = leaves_node(pod).then(|| evaluated_at(pod, Direction::Egress, destination, port, true));
        let denied = leaving.filter(|(_, evaluation)| evaluation.reason == Reason::NotAllBackendsAllowed);
        denied.unwrap_or_else(|| evaluated_at(pod, Direction::Egress, destination, port, false))
    };
    Connection {
        source,
        destination,
        egress: source_pod.map(egress),
        ingress: destination_pod.map(|pod| evaluated_at(pod, Direction::Ingress, source, port, false)),
        backends: backends.collect(),
    }
}

/// Returns the addresses of an end. If the end is a pod, or an address of a pod, also returns the pod.
fn resolve<'w>(cluster_state: &'w ClusterState, end: &End) -> Result<(Vec<IpAddr>, Option<&'w Pod>), ConnectionError> {
    match end {
        End::Pod(key) => {
            let pod = cluster_state.pods.get(key).ok_or_else(|| ConnectionError::NoSuchPod(key.clone()))?;
            if pod.finished {
                return Err(ConnectionError::Finished(key.clone()));
            }
            if pod.addresses.is_empty() {
                return Err(ConnectionError::NoAddress(key.clone()));
            }
            Ok((pod.addresses.clone(), Some(pod)))
        }
        End::Address(address) => {
            let address = address.to_canonical();
            Ok((vec![address], cluster_state.peer_at(address)))
        }
        End::Service(key) => {
            let service = cluster_state.services.get(key).ok_or_else(|| ConnectionError::NoSuchService(key.clone()))?;
            if service.addresses.is_empty() {
                return Err(ConnectionError::NoServiceAddress(key.clone()));
            }
            Ok((service.addresses.clone(), None))
        }
    }
}

/// Returns whether the address belongs to the node on which the pod runs.
fn is_pods_node(cluster_state: &ClusterState, pod: &Pod, address: IpAddr) -> bool {
    let node = pod.node.as_ref().and_then(|name| cluster_state.nodes.get(name));
    node.is_some_and(|node| node.addresses.contains(&address))
}

/// Returns an error if a Service does not have a port.
fn require_port(
    cluster_state: &ClusterState,
    key: &ServiceKey,
    protocol: u8,
    port: u16,
) -> Result<(), ConnectionError> {
    let ports = cluster_state.services.get(key).map(|service| service.ports.as_slice()).unwrap_or_default();
    if ports.iter().any(|item| item.protocol.number() == protocol && item.port == port) {
        return Ok(());
    }
    let port_name = |port: u16, protocol: Protocol| format!("{port}/{}", protocol.name());
    let wanted = Protocol::from_number(protocol).map_or_else(|| port.to_string(), |protocol| port_name(port, protocol));
    let ports: Vec<_> = ports.iter().map(|item| port_name(item.port, item.protocol)).collect();
    let ports = if ports.is_empty() { "none".into() } else { ports.join(", ") };
    Err(ConnectionError::NoServicePort(key.clone(), wanted, ports))
}
