//! Types and a client for the agent's API on a node: HTTP/1.1 and JSON on a Unix socket.
//!
//! An agent receives changes of objects in batches. A **generation** is the number of a batch: the first batch after
//! the start of the agent has generation 1.
//!
//! | path | response |
//! |---|---|
//! | `/v1/status` | [`Status`] |
//! | `/v1/flows?follow=true&since=5m&last=100&…` | [`Record`]s, one JSON object a line (NDJSON); parameters: [`FlowQuery`] |
//! | `/v1/endpoints` | [`List`] of [`Endpoint`] |
//! | `/v1/policies` | [`PolicyList`] |
//! | `/v1/pods` | [`List`] of [`PodStatus`], the pods of this node |
//! | `/v1/explain?from=NS/POD&to=NS/POD&port=443/TCP` | [`ExplainResponse`]; `from` and `to` as in `netpol explain`: `NS/POD`, `service/NS/NAME`, or an address |
//! | `/v1/shadow?since=1h` | [`ShadowReport`] |
//! | `/v1/generations` | [`List`] of [`GenerationStatus`], the latest first |
//! | `/v1/conflicts` | [`List`] of [`ConflictStatus`]: software or settings of the node that conflict with netpol |
//! | `/v1/maps` | [`List`] of [`MapStatus`] |
//! | `/v1/wait?for=CONDITION&timeout=30s` | [`WaitResponse`]; `for` can be repeated |
//! | `POST /v1/pods/start` with a [`PodStart`] | [`PodStarted`], as soon as the pod's policies are enforced: the start gate delays the pod until then |
//! | `POST /v1/pods/stop` with a [`PodStop`] | `null` |
//! | `/metrics`, `/healthz`, `/readyz` | the same as on the agent's `--metrics` address |
//! | `/openapi.json` | the description of this API (`OpenAPI` 3.1), docs/api/openapi.json |
//!
//! Responses with a status other than 200 have an [`ErrorResponse`] as their body, except those of `/metrics`,
//! `/healthz` and `/readyz`, which are text.

#[cfg(feature = "client")]
mod client;
mod condition;
mod duration;
mod explain;
#[cfg(feature = "client")]
mod query;
mod record;
mod resources;
mod shadow;
mod start;
mod status;
mod wait;

#[cfg(feature = "client")]
pub use client::{Client, ClientError};
pub use condition::{Condition, ConditionError, Target, TargetKind};
pub use duration::{format_duration, parse_duration};
pub use explain::{ExplainResponse, TableVerdict};
#[cfg(feature = "client")]
pub use query::{EndFilter, FlowQuery, PortFilter, boolean, parameters};
pub use record::{
    Fix, FlowDirection, FlowEnd, FlowEndReason, FlowRecord, FlowRule, FlowSide, FlowTotalsRecord, FlowVerdict,
    IntervalCounts, LostRecord, MulticastRecord, RECORD_SCHEMA, RateLimitedRecord, Record, RecordHeader, RevokedBy,
    TrafficCounts, Workload,
};
pub use resources::{
    ConflictStatus, GenerationStatus, List, MapStatus, PodStatus, PolicyList, PolicyMode, PolicyStatus, RuleStatus,
};
pub use shadow::{ShadowDenial, ShadowPolicy, ShadowReport, WorkloadEnd};
pub use start::{EXEMPT_NAMESPACE, GateStatus, PodStart, PodStarted, PodStop, RecentStart, StartOutcome};
pub use status::{Directions, Endpoint, FlowCounts, PartialPolicy, Status, Suspension};
pub use wait::{ConditionResult, ErrorResponse, Pending, WaitOutcome, WaitResponse};

/// The default socket of an agent.
pub const DEFAULT_SOCKET: &str = "/run/netpol/agent.sock";

/// The maximum `timeout` of `/v1/wait`.
pub const MAX_WAIT: std::time::Duration = std::time::Duration::from_hours(1);

/// The default value of boolean fields that agents of earlier versions do not write.
const fn default_true() -> bool {
    true
}
