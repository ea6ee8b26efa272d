//! Nodes.

use std::net::IpAddr;
use std::sync::Arc;

/// A node as the API server reports it. The agent reads further addresses of the local node, such as those of bridges,
/// from the kernel.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Node {
    /// `metadata.name`.
    pub name: Arc<str>,
    /// `status.addresses` of types `InternalIP` and `ExternalIP`.
    pub addresses: Vec<IpAddr>,
}
