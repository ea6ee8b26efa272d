//! Records of flows, and summaries. Each record is one JSON object. The agent's API, its output and its files use the
//! same format.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// The version of the schema. It changes if a field is removed or gets another meaning; new fields do not change it.
pub const RECORD_SCHEMA: &str = "netpol.io/v1";

/// A record. The field `type` contains its kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase")]
pub enum Record {
    /// A flow.
    Flow(Box<FlowRecord>),
    /// Packets and bytes of a flow.
    FlowTotals(Box<FlowTotalsRecord>),
    /// Denied packets to a multicast or broadcast group.
    Multicast(Box<MulticastRecord>),
    /// The number of a pod's packets or flows that have no record, because the pod had too many events (rate limit).
    RateLimited(RateLimitedRecord),
    /// The number of records that this client did not receive, because the client read too slowly.
    Lost(LostRecord),
}

/// The fields that each record has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RecordHeader {
    /// [`RECORD_SCHEMA`].
    pub schema: String,
    /// The time of the event: RFC 3339, UTC, with milliseconds.
    pub time: String,
    /// The node of the agent.
    pub node: String,
}

/// The verdict of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum FlowVerdict {
    /// Allowed.
    Allowed,
    /// Denied.
    Denied,
    /// Allowed, but policies in shadow mode would deny it. If the agent runs with `--observe`: allowed, but the
    /// policies deny it.
    Shadow,
}

impl FlowVerdict {
    /// All verdicts.
    pub const ALL: [Self; 3] = [Self::Allowed, Self::Denied, Self::Shadow];

    /// Returns the name, as in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Denied => "denied",
            Self::Shadow => "shadow",
        }
    }

    /// Parses a name.
    ///
    /// # Errors
    /// If there is no verdict of this name.
    pub fn parse(name: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|verdict| verdict.name() == name);
        found.ok_or_else(|| format!("`{name}` is not a verdict; use allowed, denied or shadow"))
    }
}

/// At which end a flow was evaluated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum FlowDirection {
    /// At the receiver.
    Ingress,
    /// At the sender.
    Egress,
}

impl FlowDirection {
    /// Returns the name, as in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }
}

/// A flow that starts, or a denied packet. The flow was evaluated at the interface of one pod: the pod of this record,
/// which is the source or the destination.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FlowRecord {
    /// Schema, time and node.
    #[serde(flatten)]
    pub header: RecordHeader,
    /// The verdict at the pod of this record.
    pub verdict: FlowVerdict,
    /// Whether the pod of this record is the receiver (`ingress`) or the sender (`egress`).
    pub direction: FlowDirection,
    /// The reason of the verdict, see docs/reasons.md. With [`FlowVerdict::Shadow`]: the reason with which the flow
    /// would be denied.
    pub reason: String,
    /// The source.
    pub from: FlowEnd,
    /// The destination. For a Service, its address before translation.
    pub to: FlowEnd,
    /// `TCP`, `UDP`, `SCTP`, `ICMP`, `ICMPv6`, or a number.
    pub protocol: String,
    /// The destination port, if the protocol has ports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// The evaluation of the sender's policies. `None` if the sender is not a pod, or if only the other end was
    /// evaluated, see `unexplained`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress: Option<FlowSide>,
    /// The evaluation of the receiver's policies. `None` if the receiver is not a pod, or if only the other end was
    /// evaluated, see `unexplained`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ingress: Option<FlowSide>,
    /// Why the agent could not explain the flow. If set, the record has only the evaluation at the pod of this record,
    /// without rules and without a fix. Causes: the agent had no time for an explanation, policies have changed since
    /// the packet was evaluated, the pod was deleted, or the reference evaluator has another verdict, which is a bug.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unexplained: Option<String>,
    /// With the reason `revoked`: the change that revoked the flow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked_by: Option<RevokedBy>,
    /// The local pod that sent the packet, `namespace/name`, if the source address is not that pod's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sender: Option<String>,
    /// Hints on frequent causes, such as a missing rule for DNS.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hints: Vec<String>,
    /// For a denied packet: the number of packets of this flow that were not recorded since the previous record of the
    /// flow. For an allowed flow: the number of flows between the same addresses and to the same port that were not
    /// recorded since the previous record of such a flow.
    pub suppressed: u32,
    /// Length of the packet in bytes, from its IP header on.
    pub length: u32,
}

impl FlowRecord {
    /// Returns the number of flows that the record stands for: its own, and those without a record because of the rate
    /// limit. For a denied packet, this is 1, because `suppressed` counts further packets of the same flow.
    pub fn flow_count(&self) -> u64 {
        if self.verdict == FlowVerdict::Denied { 1 } else { 1 + u64::from(self.suppressed) }
    }

    /// Returns the evaluation at the pod of this record.
    pub const fn own_side(&self) -> Option<&FlowSide> {
        match self.direction {
            FlowDirection::Ingress => self.ingress.as_ref(),
            FlowDirection::Egress => self.egress.as_ref(),
        }
    }

    /// Returns the evaluation at the pod of this record, to change it.
    pub const fn own_side_mut(&mut self) -> &mut Option<FlowSide> {
        match self.direction {
            FlowDirection::Ingress => &mut self.ingress,
            FlowDirection::Egress => &mut self.egress,
        }
    }
}

/// Packets and bytes of an allowed flow. This record is written when the flow ends and, if requested, once a minute.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FlowTotalsRecord {
    /// Schema, time and node.
    #[serde(flatten)]
    pub header: RecordHeader,
    /// Whether the pod at which the packets were counted is the receiver of the flow's first packet (`ingress`), or its
    /// sender (`egress`).
    pub direction: FlowDirection,
    /// The source of the first packet.
    pub from: FlowEnd,
    /// The destination of the first packet. For a Service, its address before translation.
    pub to: FlowEnd,
    /// `TCP`, `UDP`, `SCTP`, `ICMP`, `ICMPv6`, or a number.
    pub protocol: String,
    /// The destination port, if the protocol has ports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// When the flow started: RFC 3339, UTC, with milliseconds.
    pub started: String,
    /// When the last packet of the flow arrived, with a precision of two seconds.
    pub last_seen: String,
    /// Packets and bytes since the start of the flow.
    #[serde(flatten)]
    pub total: TrafficCounts,
    /// Packets and bytes since the previous record of this flow, if a record is written once a minute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval: Option<IntervalCounts>,
    /// Why the flow has ended; `None` if it has not ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<FlowEndReason>,
}

/// Allowed packets of a flow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TrafficCounts {
    /// Packets from `from` to `to`.
    pub packets: u64,
    /// Bytes of these packets, from their IP headers on.
    pub bytes: u64,
    /// Packets from `to` to `from`.
    pub reply_packets: u64,
    /// Bytes of these packets.
    pub reply_bytes: u64,
}

/// Allowed packets of a flow since an earlier record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IntervalCounts {
    /// The time of the previous record of this flow. If there is no such record: the time when the flow or the agent
    /// started, whichever is later.
    pub since: String,
    /// The packets since then.
    #[serde(flatten)]
    pub counts: TrafficCounts,
}

/// Why a flow has ended, like `flowEndReason` in IPFIX (RFC 5102, 5.11.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum FlowEndReason {
    /// TCP: FIN from both sides, RST, or a new connection between the same ports.
    Closed,
    /// No packets for longer than the timeout.
    Timeout,
    /// The pod's flow table was full.
    Evicted,
    /// Policies changed, and a packet was denied.
    Revoked,
    /// The pod was deleted.
    PodDeleted,
}

impl FlowEndReason {
    /// Returns the name, as in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Timeout => "timeout",
            Self::Evicted => "evicted",
            Self::Revoked => "revoked",
            Self::PodDeleted => "podDeleted",
        }
    }
}

/// One end of a flow: the source or the destination.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FlowEnd {
    /// The pod's namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// The pod's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// The object that controls the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workload: Option<Workload>,
    /// The pod's labels, if the client requested them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<std::collections::BTreeMap<String, String>>,
    /// The pod's node, or the node with this address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Whether the node has replaced the sender's address with its own (masquerading).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub masqueraded: bool,
    /// The address, if the packet has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<IpAddr>,
    /// The port, if the protocol has ports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// The Services that have this address and port, as `namespace/name`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub services: Vec<String>,
    /// Set if this end is a backend and the reason is `backend-denied`: the Services that have this backend. The packet
    /// may have been sent to one of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub via_services: Vec<String>,
    /// Set if the address belongs to no pod and no node: those `ipBlock` peers in the policies of the record's pod that
    /// contain the address. An example is `10.0.0.0/8 (shop/web spec.egress[0].to[1])`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub blocks: Vec<String>,
}

impl FlowEnd {
    /// Returns the pod, `namespace/name`.
    pub fn pod_name(&self) -> Option<String> {
        let (namespace, pod) = self.namespace.as_ref().zip(self.pod.as_ref())?;
        Some(format!("{namespace}/{pod}"))
    }
}

/// The object that controls a pod. If a Deployment controls the pod's `ReplicaSet`, this is the Deployment; if a
/// `CronJob` controls the pod's Job, this is the `CronJob`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Workload {
    /// The kind, such as `Deployment`.
    pub kind: String,
    /// The name of the object, in the pod's namespace.
    pub name: String,
}

/// The evaluation of one end's policies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FlowSide {
    /// The verdict of this end's policies.
    pub verdict: FlowVerdict,
    /// The reason of this verdict, see docs/reasons.md.
    pub reason: String,
    /// The policies that isolate this end in this direction, `namespace/name`: at most 16. If the verdict is `shadow`,
    /// policies in shadow mode are included.
    pub policies: Vec<String>,
    /// The number of these policies, if `policies` does not list all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy_count: Option<usize>,
    /// The rule that allows the flow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<FlowRule>,
    /// If no rule allows the flow: the rule with the fewest unmet conditions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nearest: Option<FlowRule>,
    /// If no rule allows the flow: a change of a policy that would allow it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fix: Option<Fix>,
    /// Whether there is a fix that is too large for a record.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub fix_omitted: bool,
}

/// A rule of a policy.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FlowRule {
    /// The policy, `namespace/name`.
    pub policy: String,
    /// The rule's path in the policy, such as `spec.ingress[0]`.
    pub path: String,
    /// The conditions that the flow does not meet, each as `field: text`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unmet_conditions: Vec<String>,
}

/// A change that allows a flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Fix {
    /// The policy to change, `namespace/name`.
    pub policy: String,
    /// Where the change belongs, such as `spec.egress`.
    pub path: String,
    /// YAML to add there.
    pub yaml: String,
}

/// The change that revoked a flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RevokedBy {
    /// The changed objects, such as `NetworkPolicy shop/web`. If a batch changed many objects, only the first ones.
    pub objects: Vec<String>,
    /// The number of changed objects.
    pub object_count: usize,
    /// The generation (number) of the batch of changes.
    pub generation: u64,
    /// When the batch was received.
    pub time: String,
}

/// Denied packets to a multicast or broadcast group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MulticastRecord {
    /// Schema, time and node.
    #[serde(flatten)]
    pub header: RecordHeader,
    /// [`FlowVerdict::Denied`] or [`FlowVerdict::Shadow`].
    pub verdict: FlowVerdict,
    /// At which end the packets were evaluated.
    pub direction: FlowDirection,
    /// The reason of the verdict, see docs/reasons.md.
    pub reason: String,
    /// The multicast or broadcast address.
    pub to: FlowEnd,
    /// The protocol, as in [`FlowRecord`].
    pub protocol: String,
    /// The destination port, if the protocol has ports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Packets since the previous record with the same verdict, direction, reason, protocol and destination. A packet
    /// that several pods receive is counted once.
    pub packets: u64,
    /// The senders. If there are many, only the first ones in alphabetical order.
    pub senders: Vec<String>,
    /// The number of senders.
    pub sender_count: usize,
}

/// The number of packets or flows of a pod that were not recorded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RateLimitedRecord {
    /// Schema, time and node.
    #[serde(flatten)]
    pub header: RecordHeader,
    /// What was not recorded: denied packets, allowed flows, or flows that policies in shadow mode would deny.
    pub verdict: FlowVerdict,
    /// `egress`: packets that the pod sent, even if they were evaluated at another pod of this node. `ingress`: packets
    /// to the pod, except those from pods of this node.
    pub direction: FlowDirection,
    /// The pod, `namespace/name`.
    pub pod: String,
    /// Packets or flows since the previous record of this type for the same pod, verdict and direction.
    pub suppressed: u64,
}

/// Records that a client did not receive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LostRecord {
    /// Schema, time and node.
    #[serde(flatten)]
    pub header: RecordHeader,
    /// The number of records.
    pub records: u64,
}
