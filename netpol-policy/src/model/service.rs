//! Services, `EndpointSlices` with their backends, and frontends (the addresses and ports at which clients connect).

use std::net::IpAddr;
use std::sync::Arc;

use netpol_common::{FrontendKey, frontend_scope};

use super::{Labels, Pod, Protocol, ServiceKey, SliceKey};

/// A Service. Session affinity, traffic policies and topology are omitted: they only affect which backend kube-proxy
/// selects.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Service {
    /// Namespace and name.
    pub key: ServiceKey,
    /// Cluster IPs, `externalIPs` and load balancer addresses that kube-proxy translates (`ipMode` is not `Proxy`);
    /// sorted and unique. Empty for headless Services and `ExternalName`.
    pub addresses: Vec<IpAddr>,
    /// Ports.
    pub ports: Vec<ServicePort>,
    /// `spec.selector`, which determines the backends if the Service has no slices. Empty for a Service without
    /// a selector (another component writes its slices), and for `ExternalName`. Also empty for objects from an API
    /// server, because the API server has the slices.
    pub selector: Labels,
    /// Set if the Service has no cluster IP yet but will get one, as in manifests that were never applied.
    pub requested_families: Option<RequestedFamilies>,
}

/// The address families of the cluster IPs that a Service requests. If none is set, the Service gets the default family
/// of the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RequestedFamilies {
    /// IPv4.
    pub v4: bool,
    /// IPv6.
    pub v6: bool,
}

impl Service {
    /// Returns whether the selector matches a pod. A Service without a selector matches none.
    pub fn selects(&self, pod: &Pod) -> bool {
        let mut labels = self.selector.iter();
        pod.key.namespace == self.key.namespace
            && !self.selector.is_empty()
            && labels.all(|(key, value)| pod.labels.get(key) == Some(value))
    }

    /// Returns the frontends of the Service, each with its port. A nodePort has one frontend for each address family of
    /// the Service. This frontend stands for the addresses of all nodes.
    pub fn frontends(&self) -> impl Iterator<Item = (Frontend, &ServicePort)> {
        let has_address = |is_ipv4: bool| self.addresses.iter().any(|address| address.is_ipv4() == is_ipv4);
        let any_node =
            [(FrontendAddress::AnyNodeV4, has_address(true)), (FrontendAddress::AnyNodeV6, has_address(false))];
        self.ports.iter().flat_map(move |port| {
            let frontend =
                move |address, number| (Frontend { address, port: number, protocol: port.protocol.number() }, port);
            let addresses =
                self.addresses.iter().map(move |address| frontend(FrontendAddress::Address(*address), port.port));
            let nodes = any_node.into_iter().filter(|(_, has_family)| *has_family);
            addresses.chain(nodes.filter_map(move |(address, _)| Some(frontend(address, port.node_port?))))
        })
    }
}

/// A port of a Service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServicePort {
    /// Name, by which `EndpointSlices` refer to the port; empty if the port has none.
    pub name: Arc<str>,
    /// The protocol.
    pub protocol: Protocol,
    /// Port at the Service's addresses.
    pub port: u16,
    /// Port at all nodes' addresses.
    pub node_port: Option<u16>,
    /// `targetPort`: the port of the selected pods.
    pub target: TargetPort,
}

/// The target port of a Service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TargetPort {
    /// A port number.
    Number(u16),
    /// A port name, resolved on each pod for the port's protocol.
    Name(Arc<str>),
}

/// Some backends of a Service.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct EndpointSlice {
    /// Namespace and name.
    pub key: SliceKey,
    /// Name of the Service in the same namespace, from the label `kubernetes.io/service-name`.
    pub service: Option<Arc<str>>,
    /// Ports of each endpoint.
    pub ports: Vec<SlicePort>,
    /// Endpoints.
    pub endpoints: Vec<SliceEndpoint>,
}

impl EndpointSlice {
    /// Returns the key of the Service that the slice belongs to.
    pub fn service_key(&self) -> Option<ServiceKey> {
        Some(ServiceKey { namespace: self.key.namespace.clone(), name: self.service.clone()? })
    }
}

/// A port of the endpoints in a slice.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlicePort {
    /// Name of the Service's port; empty if it has none.
    pub name: Arc<str>,
    /// The protocol.
    pub protocol: Protocol,
    /// Target port.
    pub port: u16,
}

impl SlicePort {
    /// Returns whether this is the target of a Service's port.
    pub fn is_target_of(&self, port: &ServicePort) -> bool {
        self.name == port.name && self.protocol == port.protocol
    }
}

/// An endpoint in a slice: the address of a backend.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SliceEndpoint {
    /// Address.
    pub address: IpAddr,
    /// Whether the endpoint accepts new connections: `conditions.ready`, true if absent. If the Service has
    /// `publishNotReadyAddresses`, `ready` is true for all endpoints.
    pub ready: bool,
    /// Whether the endpoint is terminating but still serving: `conditions.terminating` is true, and
    /// `conditions.serving` is true or absent. kube-proxy selects such an endpoint only if no endpoint is ready.
    pub draining: bool,
}

/// The destination of connections to a Service or a hostPort.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Frontend {
    /// Address.
    pub address: FrontendAddress,
    /// Port.
    pub port: u16,
    /// IP protocol number.
    pub protocol: u8,
}

/// The address of a [`Frontend`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FrontendAddress {
    /// A single address.
    Address(IpAddr),
    /// All IPv4 addresses of nodes.
    AnyNodeV4,
    /// All IPv6 addresses of nodes.
    AnyNodeV6,
}

impl FrontendAddress {
    /// Returns the variant for all nodes' addresses of the same family as `address`.
    pub const fn any_node(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::AnyNodeV4 } else { Self::AnyNodeV6 }
    }
}

impl Frontend {
    /// Returns whether the frontend is IPv4.
    pub const fn is_ipv4(&self) -> bool {
        match self.address {
            FrontendAddress::Address(address) => address.is_ipv4(),
            FrontendAddress::AnyNodeV4 => true,
            FrontendAddress::AnyNodeV6 => false,
        }
    }

    /// Returns the key in the BPF map `SERVICES_V4`; `None` for IPv6.
    pub fn v4_key(&self) -> Option<FrontendKey<[u8; 4]>> {
        let (address, scope) = match self.address {
            FrontendAddress::Address(IpAddr::V4(address)) => (address.octets(), frontend_scope::ADDRESS),
            FrontendAddress::AnyNodeV4 => ([0; 4], frontend_scope::NODE),
            FrontendAddress::Address(IpAddr::V6(_)) | FrontendAddress::AnyNodeV6 => return None,
        };
        Some(FrontendKey { address, port: self.port.to_be_bytes(), protocol: self.protocol, scope })
    }

    /// Returns the key in the BPF map `SERVICES_V6`; `None` for IPv4.
    pub fn v6_key(&self) -> Option<FrontendKey<[u8; 16]>> {
        let (address, scope) = match self.address {
            FrontendAddress::Address(IpAddr::V6(address)) => (address.octets(), frontend_scope::ADDRESS),
            FrontendAddress::AnyNodeV6 => ([0; 16], frontend_scope::NODE),
            FrontendAddress::Address(IpAddr::V4(_)) | FrontendAddress::AnyNodeV4 => return None,
        };
        Some(FrontendKey { address, port: self.port.to_be_bytes(), protocol: self.protocol, scope })
    }

    /// Returns the frontend of a map key; `None` for an unknown scope.
    pub fn of_key<A: Copy + Into<IpAddr>>(key: &FrontendKey<A>) -> Option<Self> {
        let address: IpAddr = key.address.into();
        let address = match key.scope {
            frontend_scope::ADDRESS => FrontendAddress::Address(address),
            frontend_scope::NODE if address.is_ipv4() => FrontendAddress::AnyNodeV4,
            frontend_scope::NODE => FrontendAddress::AnyNodeV6,
            _ => return None,
        };
        Some(Self { address, port: u16::from_be_bytes(key.port), protocol: key.protocol })
    }
}

/// A backend of a [`Frontend`]: an address and a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Backend {
    /// The address.
    pub address: IpAddr,
    /// The port.
    pub port: u16,
}
