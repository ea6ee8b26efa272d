//! The desired content of the kernel's maps, and the steps from one content to the next.

mod memory;
mod verdict;

use std::net::IpAddr;

use ipnet::IpNet;
use netpol_common::{AddressEntry, AllowEntry, AllowKey, ClassId, DirectionPolicy, PortEntry, PortKey, RuleSetId};

pub use memory::{NoSuchEntry, Tables, prefixes_of};

use crate::model::{Frontend, PodKey};

/// What holds for a pod's endpoint; the agent adds its interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndpointPolicy {
    /// What may reach the pod.
    pub ingress: DirectionPolicy,
    /// What the pod may reach.
    pub egress: DirectionPolicy,
    /// Whether parts of its policies are left out for lack of memory: less is allowed than they say.
    pub incomplete: bool,
}

/// One write. A list of them is applied in order: what is new comes first, endpoints flip to it, what is unused goes
/// last, so that after every single step each endpoint is judged by the old policy or by the new one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Write an entry of `PORTS`; `prefix_len` in bits over the whole key.
    PutPort {
        /// Significant bits of `key`.
        prefix_len: u32,
        /// Set, protocol and port.
        key: PortKey,
        /// What holds for them.
        entry: PortEntry,
    },
    /// Remove an entry of `PORTS`.
    DeletePort {
        /// Significant bits of `key`.
        prefix_len: u32,
        /// Set, protocol and port.
        key: PortKey,
    },
    /// Write an entry of `ALLOW`.
    PutAllow(AllowKey, AllowEntry),
    /// Remove an entry of `ALLOW`.
    DeleteAllow(AllowKey),
    /// Write an entry of `ADDRESSES_V4` or `ADDRESSES_V6`.
    PutAddress(IpAddr, AddressEntry),
    /// Remove an entry of `ADDRESSES_V4` or `ADDRESSES_V6`.
    DeleteAddress(IpAddr),
    /// Write an entry of `PREFIXES_V4` or `PREFIXES_V6`.
    PutPrefix(IpNet, ClassId),
    /// Remove an entry of `PREFIXES_V4` or `PREFIXES_V6`.
    DeletePrefix(IpNet),
    /// Write an entry of `SERVICES_V4` or `SERVICES_V6`.
    PutFrontend(Frontend, ClassId),
    /// Remove an entry of `SERVICES_V4` or `SERVICES_V6`.
    DeleteFrontend(Frontend),
    /// A pod of this node has this policy from now on; its flows are judged again.
    PutEndpoint(PodKey, EndpointPolicy),
    /// A pod of this node is gone.
    DeleteEndpoint(PodKey),
    /// What these rule sets allow has changed for some address: flows of their endpoints are judged again.
    Rejudge(Vec<RuleSetId>),
}
