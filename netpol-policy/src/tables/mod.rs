//! The expected content of the BPF maps, and the changes from one content to the next. ARCHITECTURE.md describes the
//! maps, and what rule sets, classes and port sets are.

mod memory;
mod verdict;

use std::net::IpAddr;

use ipnet::IpNet;
use netpol_common::{AddressEntry, AllowEntry, AllowKey, ClassId, DirectionPolicy, PortEntry, PortKey, RuleSetId};

pub use memory::{MissingEntry, Tables, prefixes_of};

use crate::model::{Frontend, PodKey};

/// The compiled policy of a pod. When the agent writes the endpoint (a map entry), it adds the pod's interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndpointPolicy {
    /// Policy for traffic to the pod.
    pub ingress: DirectionPolicy,
    /// Policy for traffic from the pod.
    pub egress: DirectionPolicy,
    /// The policy that would apply to traffic to the pod if policies in shadow mode were enforced, see
    /// [`netpol_common::Endpoint::shadow_ingress`].
    pub shadow_ingress: DirectionPolicy,
    /// The same for traffic from the pod.
    pub shadow_egress: DirectionPolicy,
    /// Whether parts of the policies are omitted because of the memory limit. If so, the endpoint allows less than the
    /// policies do.
    pub incomplete: bool,
}

/// A change of one map entry. Changes are applied in order: new entries first, then endpoints, then deletions of unused
/// entries. After each change, every endpoint has the verdicts of either the old or the new policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Writes an entry of `PORTS`.
    PutPort {
        /// Number of significant bits of `key`.
        prefix_len: u32,
        /// Port set, protocol and port.
        key: PortKey,
        /// The entry.
        entry: PortEntry,
    },
    /// Deletes an entry of `PORTS`.
    DeletePort {
        /// Number of significant bits of `key`.
        prefix_len: u32,
        /// Port set, protocol and port.
        key: PortKey,
    },
    /// Writes an entry of `ALLOW`.
    PutAllow(AllowKey, AllowEntry),
    /// Deletes an entry of `ALLOW`.
    DeleteAllow(AllowKey),
    /// Writes an entry of `ADDRESSES_V4` or `ADDRESSES_V6`.
    PutAddress(IpAddr, AddressEntry),
    /// Deletes an entry of `ADDRESSES_V4` or `ADDRESSES_V6`.
    DeleteAddress(IpAddr),
    /// Writes an entry of `PREFIXES_V4` or `PREFIXES_V6`.
    PutPrefix(IpNet, ClassId),
    /// Deletes an entry of `PREFIXES_V4` or `PREFIXES_V6`.
    DeletePrefix(IpNet),
    /// Writes an entry of `SERVICES_V4` or `SERVICES_V6`.
    PutFrontend(Frontend, ClassId),
    /// Deletes an entry of `SERVICES_V4` or `SERVICES_V6`.
    DeleteFrontend(Frontend),
    /// Sets the policy of a pod on this node. Its flows are re-evaluated.
    PutEndpoint(PodKey, EndpointPolicy),
    /// Deletes the endpoint of a pod on this node.
    DeleteEndpoint(PodKey),
    /// Re-evaluates the flows of endpoints with these rule sets, because the rule sets allow less to some address now.
    Reevaluate(Vec<RuleSetId>),
}
