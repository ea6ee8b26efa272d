//! Would-be denials: allowed flows that policies in shadow mode would have denied.

use serde::{Deserialize, Serialize};

use crate::{FlowDirection, Workload};

/// The would-be denials on a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ShadowReport {
    /// The node of the agent.
    pub node: String,
    /// The generation (the number) of a batch of object changes. All batches up to this one are enforced.
    pub generation: u64,
    /// The start of the reported period: RFC 3339, UTC.
    pub since: String,
    /// When the agent started to count would-be denials. If this is later than `since`, the report is not complete.
    pub collected_since: String,
    /// Whether the agent runs with `--observe`. If so, nothing is enforced on this node, and every policy is treated as
    /// if it were in shadow mode.
    pub observe: bool,
    /// Policies in shadow mode that select pods of this node.
    pub policies: Vec<ShadowPolicy>,
    /// The number of would-be denials that are not in `items`, because a pod had too many events (rate limit), or
    /// because there were too many different denials.
    pub unlisted_flows: u64,
    /// The would-be denials. Each flow is counted in only one item. If several policies in shadow mode would deny the
    /// flow, [`ShadowDenial::policies`] of this item lists these policies.
    pub items: Vec<ShadowDenial>,
}

/// A policy in shadow mode.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ShadowPolicy {
    /// The policy, `namespace/name`.
    pub policy: String,
    /// The number of this node's pods that the policy selects.
    pub pods: usize,
    /// When the policy was put into shadow mode. If this was before the agent started, the time of the agent's start.
    pub since: String,
    /// Whether the policy is now evaluated for all pods of this node that it selects. If not, the report lacks flows
    /// that the policy would deny.
    #[serde(default = "crate::default_true")]
    pub evaluated: bool,
    /// Why `evaluated` is false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_evaluated_because: Option<String>,
    /// Like [`ShadowReport::unlisted_flows`], but only the flows that policies of this policy's namespace may deny.
    /// This policy may be the cause of some of them.
    #[serde(default)]
    pub unlisted_flows: u64,
}

/// Flows that policies in shadow mode would deny, between two workloads, to one port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ShadowDenial {
    /// The policies that would isolate the pod at which the flows would be denied: `namespace/name`, at most 16, those
    /// in shadow mode first.
    pub policies: Vec<String>,
    /// `ingress` if the pod at which the flows would be denied is the receiver, `egress` if it is the sender.
    pub direction: FlowDirection,
    /// The source.
    pub from: WorkloadEnd,
    /// The destination.
    pub to: WorkloadEnd,
    /// `TCP`, `UDP`, `SCTP`, `ICMP`, `ICMPv6`, or a number.
    pub protocol: String,
    /// The destination port, if the protocol has ports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// The reason with which the flows would be denied.
    pub reason: String,
    /// The number of flows in the reported period. The start of the period is rounded down to a whole minute.
    pub flows: u64,
    /// The time of the first such flow since the agent started to count. It can be before the reported period.
    pub first: String,
    /// The time of the last of these flows.
    pub last: String,
}

/// One end of flows that are counted together: a workload, a pod without a workload, a node, or an address.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadEnd {
    /// The namespace of a workload or pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// The workload.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workload: Option<Workload>,
    /// The pod, if no object controls it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// The node, if the address of this end belongs to a node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// The address, if no pod and no node has it. For traffic to a Service: the address before translation (DNAT).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<std::net::IpAddr>,
    /// If this end is the destination: the Services that have its address and port, as `namespace/name`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub services: Vec<String>,
}
