//! The status of an agent.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::{GateStatus, Pending};

/// The status of an agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// The agent's version.
    pub version: String,
    /// The node's name.
    pub node: String,
    /// The source of the objects.
    pub source: String,
    /// Whether all policies that existed when the agent started are enforced.
    pub ready: bool,
    /// The last batch of changes that was received.
    pub generation_received: u64,
    /// The last batch such that it and all batches before it are enforced.
    pub generation: u64,
    /// When the last batch was received: RFC 3339, UTC; `None` before the first.
    pub last_change_time: Option<String>,
    /// Pods of this node that are not correctly enforced yet.
    pub pending: Vec<Pending>,
    /// All interfaces with an endpoint.
    pub endpoints: Vec<Endpoint>,
    /// Policies that are only partly enforced, because the memory for policies is used up.
    #[serde(default)]
    pub partial_policies: Vec<PartialPolicy>,
    /// The start gate.
    #[serde(default)]
    pub gate: GateStatus,
    /// What keeps the agent from doing all that it was configured for, and the next step.
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// A policy that is only partly enforced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PartialPolicy {
    /// The policy, `namespace/name`.
    pub policy: String,
    /// Number of `ipBlock` peers that are not enforced.
    pub omitted_blocks: usize,
    /// Number of items of `ports` that are not enforced.
    pub omitted_ports: usize,
    /// Number of `ipBlock` peers and items of `ports` of the policy.
    pub total: usize,
    /// Number of missing map entries for the policy's selectors and ports.
    #[serde(default)]
    pub missing_entries: usize,
}

/// A pod interface that is enforced, or will be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Endpoint {
    /// The interface index.
    pub ifindex: u32,
    /// The interface name.
    pub interface: String,
    /// The pod, `namespace/name`; `None` if no known pod has this interface.
    pub pod: Option<String>,
    /// The pod's addresses.
    pub addresses: Vec<IpAddr>,
    /// Whether the programs are attached.
    pub attached: bool,
    /// Whether the pod was deleted. Its last policies are enforced until the interface is removed.
    pub orphaned: bool,
    /// Why the interface is not enforced as the pod with its address: another interface is bound to that pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conflict: Option<String>,
    /// Addresses of its pod that the pod's object does not list: what is sent from them is dropped as spoofed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unlisted_addresses: Vec<IpAddr>,
    /// The policies that isolate the pod.
    pub policies: Directions,
}

/// Policies by direction, `namespace/name`. If a list is empty, the pod is not isolated in that direction.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Directions {
    /// Policies for traffic to the pod.
    pub ingress: Vec<String>,
    /// Policies for traffic from the pod.
    pub egress: Vec<String>,
}
