//! How an agent is.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::Pending;

/// What an agent says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The agent's version.
    pub version: String,
    /// Its node.
    pub node: String,
    /// Where its objects come from.
    pub source: String,
    /// Everything known at the start is enforced.
    pub ready: bool,
    /// The last batch of changes that was taken in.
    pub generation_received: u64,
    /// The last that is enforced, nothing of it or before it missing.
    pub generation: u64,
    /// When the last batch was taken in, in milliseconds since 1970; none before the first.
    pub last_change_ms: Option<u64>,
    /// Pods of this node that are not enforced as they should be.
    pub pending: Vec<Pending>,
    /// Every interface with an endpoint.
    pub endpoints: Vec<Endpoint>,
    /// Policies that are enforced in part, for lack of memory for policies.
    #[serde(default)]
    pub left_out: Vec<LeftOut>,
    /// What keeps the agent from doing all that it was configured for, and the next step.
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// What is left out of a policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOut {
    /// The policy, `namespace/name`.
    pub policy: String,
    /// `ipBlock` peers that are not enforced.
    pub blocks: usize,
    /// Items of `ports` that are not enforced.
    pub ports: usize,
    /// All `ipBlock` peers and items of `ports` of the policy.
    pub total: usize,
    /// Map entries that are missing for what its selectors and ports come to.
    #[serde(default)]
    pub entries: usize,
}

/// An interface that is enforced, or is to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// Its index.
    pub ifindex: u32,
    /// Its name.
    pub interface: String,
    /// Whose it is, `namespace/name`; none: nobody's that is known.
    pub pod: Option<String>,
    /// The pod's addresses.
    pub addresses: Vec<IpAddr>,
    /// Whether the programs are on it.
    pub attached: bool,
    /// Its pod is gone: what held for it is enforced until the interface goes too.
    pub orphaned: bool,
    /// Why it is not enforced as the pod it has an address of: another interface is bound to that pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conflict: Option<String>,
    /// Addresses of its pod that the pod's object does not list: what is sent from them is dropped as spoofed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unlisted: Vec<IpAddr>,
    /// The policies that isolate it.
    pub policies: Directions,
}

/// Policies by direction, `namespace/name`. An empty list: not isolated.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Directions {
    /// For what reaches the pod.
    pub ingress: Vec<String>,
    /// For what the pod sends.
    pub egress: Vec<String>,
}
