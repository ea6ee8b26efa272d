//! The status of an agent.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::{ConflictStatus, GateStatus, MapStatus, Pending};

/// The status of an agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// The agent's version.
    pub version: String,
    /// The node's name.
    pub node: String,
    /// The source of the objects: `kube` or `kube:KUBECONFIG` (the API server), or `dir:PATH` (a directory).
    pub source: String,
    /// Whether all policies that existed when the agent started are enforced.
    pub ready: bool,
    /// The generation (the number) of the last batch of object changes that was received.
    pub generation_received: u64,
    /// The generation of the last enforced batch. All earlier batches are enforced, too.
    pub generation: u64,
    /// When the last batch was applied (compiled and written): RFC 3339, UTC; `None` before the first batch.
    pub last_change_time: Option<String>,
    /// Pods of this node on which policies are not enforced yet, or not correctly.
    pub pending: Vec<Pending>,
    /// All endpoints of this node.
    pub endpoints: Vec<Endpoint>,
    /// Policies that are only partly enforced, because the memory for policies is used up.
    #[serde(default)]
    pub partial_policies: Vec<PartialPolicy>,
    /// The start gate.
    #[serde(default)]
    pub gate: GateStatus,
    /// Whether the agent runs with `--observe`, and so enforces nothing.
    #[serde(default)]
    pub observe: bool,
    /// The suspensions of enforcement that are in effect.
    #[serde(default)]
    pub suspensions: Vec<Suspension>,
    /// Numbers of packets and flow records.
    #[serde(default)]
    pub flows: FlowCounts,
    /// Software and settings on this node that conflict with netpol.
    #[serde(default)]
    pub conflicts: Vec<ConflictStatus>,
    /// The BPF maps.
    #[serde(default)]
    pub maps: Vec<MapStatus>,
    /// Why the agent does not do everything that it is configured to do: one message for each cause, with the next
    /// step.
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// A suspension of enforcement.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Suspension {
    /// The namespace; `None`: the whole cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// When the suspension ends: RFC 3339, UTC.
    pub until: String,
    /// The reason that was given with the suspension.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// Numbers of packets and flow records. Records are counted since the start of the agent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FlowCounts {
    /// Denied packets of the pods that are on this node now.
    pub denied_packets: u64,
    /// Packets of allowed flows, of the pods that are on this node now.
    pub allowed_packets: u64,
    /// Flow records: reports of denied packets and of allowed flows.
    pub records: u64,
    /// Denied packets and allowed flows without a record: their pods had too many events (rate limit).
    pub suppressed: u64,
    /// Events that did not fit into the ring buffer of the eBPF programs.
    pub lost_events: u64,
    /// Records that were not written to standard output, because it was read too slowly, or because there were too many
    /// records in one second.
    pub unwritten: u64,
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
    /// Number of `ipBlock` peers and items of `ports` that the policy has.
    pub policy_items: usize,
    /// Number of missing map entries of the rule sets that contain the policy.
    #[serde(default)]
    pub missing_entries: usize,
}

/// An endpoint: a pod interface on which policies are enforced, or will be enforced.
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
    /// The conflict of the interface with another interface or pod; `None` if there is none. For example, the interface
    /// has an address of a pod, but another interface is bound to this pod. The text contains the consequence: all
    /// traffic of the interface is dropped, or the policies of its pod stay enforced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conflict: Option<String>,
    /// Addresses of the interface that the pod's object does not list. Packets from these addresses are dropped as
    /// spoofed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unlisted_addresses: Vec<IpAddr>,
    /// The policies that isolate the pod. If a list is empty, the pod is not isolated in that direction.
    pub policies: Directions,
    /// The policies that would isolate the pod if policies in shadow mode were enforced, too. A list is empty if no
    /// policy in shadow mode applies to the pod in that direction, even if enforced policies isolate the pod.
    #[serde(default)]
    pub shadow_policies: Directions,
}

/// Policies by direction, `namespace/name`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Directions {
    /// Policies for traffic to the pod.
    pub ingress: Vec<String>,
    /// Policies for traffic from the pod.
    pub egress: Vec<String>,
}
