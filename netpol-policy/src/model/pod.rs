//! Pods and namespaces.

use std::net::IpAddr;
use std::sync::Arc;

use super::{Labels, NamespaceName, PodKey, Protocol};

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
}

impl Pod {
    /// Whether policies can select it and peers can name it: alive, with a network of its own.
    pub fn participates(&self) -> bool {
        !self.host_network && !self.finished
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
