//! The parts of Kubernetes objects that netpol uses, parsed once. An invalid or unsupported part matches nothing and
//! allows nothing, and is reported as a [`Diagnostic`]. Exception: an invalid `spec.podSelector` isolates all pods of
//! the namespace.

mod diagnostic;
mod key;
mod labels;
mod mode;
pub(crate) mod names;
mod node;
mod parse;
mod pod;
mod policy;
mod selector;
mod selector_text;
mod service;
mod timestamp;
mod uid;
mod unevaluated;
mod workload;

pub use diagnostic::{Diagnostic, Severity};
pub use key::{NamespaceName, ObjectKey, PodKey, PolicyKey, ServiceKey, SliceKey};
pub use labels::Labels;
pub use mode::{
    MODE_ANNOTATION, Mode, NamespaceModes, SUSPEND_CLUSTER_ANNOTATION, SUSPENDED_REASON_ANNOTATION,
    SUSPENDED_UNTIL_ANNOTATION, Suspension,
};
pub use node::Node;
pub use pod::{HostPort, HostPorts, NAMESPACE_NAME_LABEL, NamedPort, Namespace, Pod, PodWorkload};
pub use policy::{IpBlock, Peer, Peers, Policy, PortMatch, PortRange, Ports, Protocol, Rule};
pub use selector::{Requirement, Selector};
pub use service::{
    Backend, EndpointSlice, Frontend, FrontendAddress, RequestedFamilies, Service, ServicePort, SliceEndpoint,
    SlicePort, TargetPort,
};
pub use timestamp::Timestamp;
pub use uid::{MIRROR_ANNOTATION, Uid};
pub use unevaluated::{PolicyScope, UnevaluatedKind, content_hash};
pub use workload::{MAX_ALL_ORDINALS, MAX_ORDINALS, Workload, WorkloadKey, WorkloadKind};

/// An object of the cluster state, of any kind.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Object {
    /// A namespace.
    Namespace(Namespace),
    /// A pod.
    Pod(Pod),
    /// A node.
    Node(Node),
    /// A network policy.
    Policy(Policy),
    /// A Service.
    Service(Service),
    /// An `EndpointSlice`.
    Slice(EndpointSlice),
}

impl Object {
    /// Returns the object's key.
    pub fn key(&self) -> ObjectKey {
        match self {
            Self::Namespace(namespace) => ObjectKey::Namespace(namespace.name.clone()),
            Self::Pod(pod) => ObjectKey::Pod(pod.key.clone()),
            Self::Node(node) => ObjectKey::Node(node.name.clone()),
            Self::Policy(policy) => ObjectKey::Policy(policy.key.clone()),
            Self::Service(service) => ObjectKey::Service(service.key.clone()),
            Self::Slice(slice) => ObjectKey::Slice(slice.key.clone()),
        }
    }
}
