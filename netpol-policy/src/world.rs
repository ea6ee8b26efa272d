//! All objects netpol knows of, by key. Three verbs change it: apply, delete, reset.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use crate::model::{Namespace, NamespaceName, Node, Object, ObjectKey, Pod, PodKey, Policy, PolicyKey};

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// An object is there, new or changed.
    Apply(Object),
    /// An object is gone.
    Delete(ObjectKey),
    /// These are all the objects there are; others are gone.
    Reset(Vec<Object>),
    /// These are all the addresses this node has now (bridge gateways included), as the kernel tells.
    OwnAddresses(Vec<IpAddr>),
}

/// The objects as they are now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct World {
    /// Namespaces by name.
    pub namespaces: BTreeMap<NamespaceName, Namespace>,
    /// Pods.
    pub pods: BTreeMap<PodKey, Pod>,
    /// Nodes by name.
    pub nodes: BTreeMap<Arc<str>, Node>,
    /// Policies.
    pub policies: BTreeMap<PolicyKey, Policy>,
    /// Addresses of this node, sorted; empty offline, where no end is "the own node".
    pub own_addresses: Vec<IpAddr>,
}
