//! A connection: egress at its source and ingress at its destination.

use std::fmt;
use std::net::IpAddr;

use netpol_common::{Direction, Reason};

use super::{Evaluation, Packet, evaluate};
use crate::model::{Backend, Pod, PodKey, Protocol, ServiceKey};
use crate::world::World;

/// One end of a connection.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum End {
    /// A pod.
    Pod(PodKey),
    /// An address. One that a pod has means that pod.
    Address(IpAddr),
    /// A Service, at the first of its addresses that will do; nobody opens connections from there.
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

/// Why there can be no such connection.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnectionError {
    /// No such pod.
    #[error("there is no pod {0} among the objects; check its namespace and name")]
    NoSuchPod(PodKey),
    /// The pod has ended, and its address may be another one's by now.
    #[error(
        "pod {0} has finished (its phase is Succeeded or Failed), and has no address any more; ask about one that runs"
    )]
    Finished(PodKey),
    /// The pod has no address yet.
    #[error("pod {0} has no address: give it `status.podIPs`")]
    NoAddress(PodKey),
    /// No such Service.
    #[error("there is no Service {0} among the objects; check its namespace and name")]
    NoSuchService(ServiceKey),
    /// The Service has no address that leads to its backends.
    #[error(
        "Service {0} has no address of its own (it is headless, or a name): its name leads to other addresses; ask about one of \
         these, or about a pod"
    )]
    NoServiceAddress(ServiceKey),
    /// The Service has other ports.
    #[error("Service {0} has no port {1}; it has {2}")]
    NoServicePort(ServiceKey, String, String),
    /// Nobody connects from a Service's address.
    #[error("Service {0} opens no connections; ask about a pod behind it")]
    FromService(ServiceKey),
    /// One end has only IPv4, the other only IPv6.
    #[error("{0} and {1} have no address family in common")]
    NoCommonFamily(End, End),
}

/// What a connection meets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// The packet at the source pod and what becomes of it, or, where that denies it, where it leaves the node; `None` where the
    /// source is no pod.
    pub egress: Option<(Packet, Evaluation)>,
    /// The packet at the destination pod and what becomes of it; `None` where the destination is no pod.
    pub ingress: Option<(Packet, Evaluation)>,
    /// Where the destination is a Service's: what becomes of it at each backend that it may be sent to.
    pub reached: Vec<Reached>,
}

/// A connection through a Service, sent on to one backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reached {
    /// Where to.
    pub backend: Backend,
    /// The packet past the place where it is sent on; `None` where the source is no pod.
    pub egress: Option<(Packet, Evaluation)>,
    /// The packet at the backend; `None` where that is no pod.
    pub ingress: Option<(Packet, Evaluation)>,
}

impl Reached {
    /// Whether both directions allow it.
    pub fn allowed(&self) -> bool {
        both_allow(self.egress.as_ref(), self.ingress.as_ref())
    }
}

fn both_allow(egress: Option<&(Packet, Evaluation)>, ingress: Option<&(Packet, Evaluation)>) -> bool {
    [egress, ingress].into_iter().flatten().all(|(_, evaluation)| evaluation.reason.allows())
}

impl Connection {
    /// Whether both directions allow it; through a Service, to one of its backends at least.
    pub fn allowed(&self) -> bool {
        let some_reached = self.reached.is_empty() || self.reached.iter().any(Reached::allowed);
        both_allow(self.egress.as_ref(), self.ingress.as_ref()) && some_reached
    }
}

/// Evaluates a connection at both ends. Where both ends have two address families, the first of the destination's that the
/// source has too is used, as resolvers commonly do.
///
/// # Errors
/// When an end is no pod of the world, has finished, has no address, or shares no address family with the other.
pub fn connection(world: &World, from: &End, to: &End, protocol: u8, port: u16) -> Result<Connection, ConnectionError> {
    let mut all = connections(world, from, to, protocol, port)?;
    Ok(all.swap_remove(0))
}

/// Evaluates a connection at both ends in each address family that they have in common; never empty. A client may use either.
///
/// # Errors
/// As [`connection`].
pub fn connections(
    world: &World,
    from: &End,
    to: &End,
    protocol: u8,
    port: u16,
) -> Result<Vec<Connection>, ConnectionError> {
    if let End::Service(key) = from {
        return Err(ConnectionError::FromService(key.clone()));
    }
    let (sources, source_pod) = resolve(world, from)?;
    let (destinations, destination_pod) = resolve(world, to)?;
    if let End::Service(key) = to {
        has_port(world, key, protocol, port)?;
    }
    let mut pairs: Vec<(IpAddr, IpAddr)> = Vec::new();
    for destination in destinations {
        let Some(source) = sources.iter().find(|source| source.is_ipv4() == destination.is_ipv4()) else { continue };
        if pairs.iter().all(|(_, known)| known.is_ipv4() != destination.is_ipv4()) {
            pairs.push((*source, destination));
        }
    }
    if pairs.is_empty() {
        return Err(ConnectionError::NoCommonFamily(from.clone(), to.clone()));
    }
    let ends = (source_pod, destination_pod);
    Ok(pairs
        .into_iter()
        .map(|(source, destination)| between(world, ends, source, destination, protocol, port))
        .collect())
}

fn between(
    world: &World,
    (source_pod, destination_pod): (Option<&Pod>, Option<&Pod>),
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    port: u16,
) -> Connection {
    let judged = |pod: &Pod, direction, remote, port, behind| {
        let via_own = direction == Direction::Ingress && source_pod.is_some_and(|source| source.key == pod.key);
        let packet =
            Packet { pod: pod.key.clone(), direction, remote, protocol, port, from_node: false, via_own, behind };
        let evaluation = evaluate(world, &packet);
        (packet, evaluation)
    };
    let frontend = world.frontend_at(destination, protocol, port);
    let backends = frontend.map(|frontend| world.backends(&frontend)).unwrap_or_default();
    let reached = backends.into_iter().map(|backend| Reached {
        backend,
        egress: source_pod.map(|pod| judged(pod, Direction::Egress, backend.address, backend.port, true)),
        ingress: world.peer_at(backend.address).map(|pod| judged(pod, Direction::Ingress, source, backend.port, false)),
    });
    // 22: at another node's address it leaves this one still on its way to the Service.
    let leaves = |pod: &Pod| world.is_node(destination) && !is_at_home(world, pod, destination);
    let egress = |pod: &Pod| {
        let past = leaves(pod).then(|| judged(pod, Direction::Egress, destination, port, true));
        let denied = past.filter(|(_, evaluation)| evaluation.reason == Reason::SomeBackends);
        denied.unwrap_or_else(|| judged(pod, Direction::Egress, destination, port, false))
    };
    Connection {
        source,
        destination,
        egress: source_pod.map(egress),
        ingress: destination_pod.map(|pod| judged(pod, Direction::Ingress, source, port, false)),
        reached: reached.collect(),
    }
}

fn resolve<'w>(world: &'w World, end: &End) -> Result<(Vec<IpAddr>, Option<&'w Pod>), ConnectionError> {
    match end {
        End::Pod(key) => {
            let pod = world.pods.get(key).ok_or_else(|| ConnectionError::NoSuchPod(key.clone()))?;
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
            Ok((vec![address], world.peer_at(address)))
        }
        End::Service(key) => {
            let service = world.services.get(key).ok_or_else(|| ConnectionError::NoSuchService(key.clone()))?;
            if service.addresses.is_empty() {
                return Err(ConnectionError::NoServiceAddress(key.clone()));
            }
            Ok((service.addresses.clone(), None))
        }
    }
}

/// Whether it is an address of the node that the pod runs on, whichever this node is.
fn is_at_home(world: &World, pod: &Pod, address: IpAddr) -> bool {
    let node = pod.node.as_ref().and_then(|name| world.nodes.get(name));
    node.is_some_and(|node| node.addresses.contains(&address))
}

fn has_port(world: &World, key: &ServiceKey, protocol: u8, port: u16) -> Result<(), ConnectionError> {
    let ports = world.services.get(key).map(|service| service.ports.as_slice()).unwrap_or_default();
    if ports.iter().any(|own| own.protocol.number() == protocol && own.port == port) {
        return Ok(());
    }
    let text = |port: u16, protocol: Protocol| format!("{port}/{}", protocol.name());
    let asked = Protocol::from_number(protocol).map_or_else(|| port.to_string(), |protocol| text(port, protocol));
    let own: Vec<_> = ports.iter().map(|own| text(own.port, own.protocol)).collect();
    Err(ConnectionError::NoServicePort(key.clone(), asked, if own.is_empty() { "none".into() } else { own.join(", ") }))
}
