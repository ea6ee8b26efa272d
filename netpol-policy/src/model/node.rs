//! Nodes.

use std::net::IpAddr;
use std::sync::Arc;

/// A node, as the API server tells of it. The agent learns its own node's further addresses (bridge gateways, …) from
/// the kernel.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Node {
    /// `metadata.name`.
    pub name: Arc<str>,
    /// `status.addresses` of types `InternalIP` and `ExternalIP`.
    pub addresses: Vec<IpAddr>,
}
