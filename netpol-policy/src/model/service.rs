//! Services, the slices that name their backends, and frontends: where connections to them go in.

use std::net::IpAddr;
use std::sync::Arc;

use netpol_common::{FrontendKey, frontend_scope};

use super::{Labels, Protocol, ServiceKey, SliceKey};

/// A Service. What only says how kube-proxy chooses among backends (session affinity, traffic policies) is left out: a connection
/// is judged by the backend it goes to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Service {
    /// Its namespace and name.
    pub key: ServiceKey,
    /// Cluster IPs, `externalIPs` and the addresses of its load balancer that kube-proxy translates (`ipMode` is not `Proxy`); sorted, each
    /// once. None where it is headless or a name.
    pub addresses: Vec<IpAddr>,
    /// Its ports.
    pub ports: Vec<ServicePort>,
    /// `spec.selector`, by which its backends are found where there are no slices of it. Empty: somebody else writes the slices. Objects
    /// of an API server come without, as it has the slices.
    pub selector: Labels,
    /// It has no cluster IP yet, and will be assigned one: as in files that were never in a cluster.
    pub unassigned: Option<Unassigned>,
}

/// The address families of the cluster IPs that a Service asks for; neither: the cluster's first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Unassigned {
    /// IPv4.
    pub v4: bool,
    /// IPv6.
    pub v6: bool,
}

impl Service {
    /// Where connections to it go in, and to which of its ports. A nodePort is at nodes' addresses of the families that the
    /// Service has addresses of.
    pub fn frontends(&self) -> impl Iterator<Item = (Frontend, &ServicePort)> {
        let has = |is_ipv4: bool| self.addresses.iter().any(|address| address.is_ipv4() == is_ipv4);
        let any_node = [(Place::AnyNodeV4, has(true)), (Place::AnyNodeV6, has(false))];
        self.ports.iter().flat_map(move |port| {
            let frontend =
                move |place, number| (Frontend { place, port: number, protocol: port.protocol.number() }, port);
            let addresses = self.addresses.iter().map(move |address| frontend(Place::Address(*address), port.port));
            let nodes = any_node.into_iter().filter(|(_, there)| *there);
            addresses.chain(nodes.filter_map(move |(place, _)| Some(frontend(place, port.node_port?))))
        })
    }
}

/// A port of a Service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServicePort {
    /// Its name, by which slices name it too; empty where it has none.
    pub name: Arc<str>,
    /// The protocol.
    pub protocol: Protocol,
    /// At the Service's addresses.
    pub port: u16,
    /// At every node's addresses.
    pub node_port: Option<u16>,
    /// `targetPort`: the port of the pods that its selector selects.
    pub target: TargetPort,
}

/// A port of the pods that a Service selects.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TargetPort {
    /// This one.
    Number(u16),
    /// The one that each pod has by this name and the port's protocol.
    Name(Arc<str>),
}

/// Some of a Service's backends.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct EndpointSlice {
    /// Its namespace and name.
    pub key: SliceKey,
    /// The Service of the same namespace: label `kubernetes.io/service-name`.
    pub service: Option<Arc<str>>,
    /// The ports of each of its endpoints.
    pub ports: Vec<SlicePort>,
    /// Where they are.
    pub endpoints: Vec<SliceEndpoint>,
}

impl EndpointSlice {
    /// The Service whose backends these are.
    pub fn service_key(&self) -> Option<ServiceKey> {
        Some(ServiceKey { namespace: self.key.namespace.clone(), name: self.service.clone()? })
    }
}

/// A port of a slice's endpoints.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlicePort {
    /// The name of the Service's port; empty where it has none.
    pub name: Arc<str>,
    /// The protocol.
    pub protocol: Protocol,
    /// The target port.
    pub port: u16,
}

impl SlicePort {
    /// Whether it is the target of a Service's port.
    pub fn is_of(&self, port: &ServicePort) -> bool {
        self.name == port.name && self.protocol == port.protocol
    }
}

/// An endpoint in a slice.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SliceEndpoint {
    /// Its address.
    pub address: IpAddr,
    /// Takes new connections: `conditions.ready`, absent is true. `publishNotReadyAddresses` has the slice's writer say so of all.
    pub ready: bool,
    /// Terminates, but still answers: `conditions.terminating` and `conditions.serving`, absent is true. Chosen where no other can
    /// be.
    pub draining: bool,
}

/// Where connections to a Service, or to a hostPort, go in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Frontend {
    /// The address.
    pub place: Place,
    /// The port there.
    pub port: u16,
    /// IP protocol number.
    pub protocol: u8,
}

/// The address of a [`Frontend`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// This one.
    Address(IpAddr),
    /// Every node's of IPv4.
    AnyNodeV4,
    /// Every node's of IPv6.
    AnyNodeV6,
}

impl Place {
    /// Every node's address of this one's family.
    pub const fn any_node(like: IpAddr) -> Self {
        if like.is_ipv4() { Self::AnyNodeV4 } else { Self::AnyNodeV6 }
    }
}

impl Frontend {
    /// Whether connections go in there by IPv4.
    pub const fn is_ipv4(&self) -> bool {
        match self.place {
            Place::Address(address) => address.is_ipv4(),
            Place::AnyNodeV4 => true,
            Place::AnyNodeV6 => false,
        }
    }

    /// As the key of `SERVICES_V4`; `None` for IPv6.
    pub fn v4_key(&self) -> Option<FrontendKey<[u8; 4]>> {
        let (address, scope) = match self.place {
            Place::Address(IpAddr::V4(address)) => (address.octets(), frontend_scope::ADDRESS),
            Place::AnyNodeV4 => ([0; 4], frontend_scope::NODE),
            Place::Address(IpAddr::V6(_)) | Place::AnyNodeV6 => return None,
        };
        Some(FrontendKey { address, port: self.port.to_be_bytes(), protocol: self.protocol, scope })
    }

    /// As the key of `SERVICES_V6`; `None` for IPv4.
    pub fn v6_key(&self) -> Option<FrontendKey<[u8; 16]>> {
        let (address, scope) = match self.place {
            Place::Address(IpAddr::V6(address)) => (address.octets(), frontend_scope::ADDRESS),
            Place::AnyNodeV6 => ([0; 16], frontend_scope::NODE),
            Place::Address(IpAddr::V4(_)) | Place::AnyNodeV4 => return None,
        };
        Some(FrontendKey { address, port: self.port.to_be_bytes(), protocol: self.protocol, scope })
    }

    /// The frontend of a map's key; `None` for a scope that is none.
    pub fn of_key<A: Copy + Into<IpAddr>>(key: &FrontendKey<A>) -> Option<Self> {
        let address: IpAddr = key.address.into();
        let place = match key.scope {
            frontend_scope::ADDRESS => Place::Address(address),
            frontend_scope::NODE if address.is_ipv4() => Place::AnyNodeV4,
            frontend_scope::NODE => Place::AnyNodeV6,
            _ => return None,
        };
        Some(Self { place, port: u16::from_be_bytes(key.port), protocol: key.protocol })
    }
}

/// Who may be behind a [`Frontend`]: an address, and the port it is reached at there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Backend {
    /// The address.
    pub address: IpAddr,
    /// The port.
    pub port: u16,
}
