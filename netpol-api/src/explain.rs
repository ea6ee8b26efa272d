//! The verdict on a connection, according to the agent of a node.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::{FlowDirection, FlowVerdict};

/// The verdict on a connection: as evaluated from the objects that the agent has received, and as evaluated from the
/// tables into which the agent has compiled these objects for its node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExplainResponse {
    /// The node of the agent.
    pub node: String,
    /// The generation (the number) of the last batch of changes that is fully enforced.
    pub generation: u64,
    /// The generation of the last batch of changes that was received.
    pub generation_received: u64,
    /// The explanation, evaluated from the objects, in the format of `netpol explain -o json`.
    pub explanation: serde_json::Value,
    /// The verdicts of the tables, for ends that are pods of this node. Egress: one verdict at the source for each
    /// address family; if the destination is a Service, also one for each backend. Ingress: one verdict at the
    /// destination for each address family; if it is a Service, one at each backend.
    pub tables: Vec<TableVerdict>,
    /// Whether a verdict of the tables differs from the verdict evaluated from the objects. If `generation` is lower
    /// than `generationReceived`, the likely cause is that changes are not enforced yet.
    pub differs: bool,
}

/// The verdict of the tables of a node, at one end of a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TableVerdict {
    /// The pod at this end, `namespace/name`.
    pub pod: String,
    /// `egress` if the pod is the source.
    pub direction: FlowDirection,
    /// The other end's address.
    pub remote: IpAddr,
    /// The destination port. If `backend` is set, this is the port of the backend (post-DNAT).
    pub port: u16,
    /// Whether the connection is to a Service, and was evaluated with a backend of the Service as its destination.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub backend: bool,
    /// The verdict of the tables.
    pub verdict: FlowVerdict,
    /// The reason of this verdict, see docs/reasons.md.
    pub reason: String,
    /// The verdict that is evaluated from the objects, for the same packet.
    pub expected: FlowVerdict,
}
