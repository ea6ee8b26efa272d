//! Types and a client for the agent's API on a node: HTTP/1.1 and JSON on a Unix socket.
//!
//! | path | response |
//! |---|---|
//! | `/v1/status` | [`Status`] |
//! | `/v1/wait?for=CONDITION&timeout=30s` | [`WaitResponse`]; `for` can be repeated |
//! | `POST /v1/pods/start` with a [`PodStart`] | [`PodStarted`], once the pod's policies are enforced |
//! | `POST /v1/pods/stop` with a [`PodStop`] | `null` |
//! | `/metrics`, `/healthz`, `/readyz` | the same as on the agent's `--metrics` address |
//!
//! Every status except 200 has a [`ErrorResponse`] as its body.

#[cfg(feature = "client")]
mod client;
mod condition;
mod duration;
mod record;
mod start;
mod status;
mod wait;

#[cfg(feature = "client")]
pub use client::{Client, ClientError};
pub use condition::{Condition, ConditionError, Target, TargetKind};
pub use duration::{format_duration, parse_duration};
pub use record::{
    Fix, FlowDirection, FlowEnd, FlowRecord, FlowRule, FlowSide, FlowVerdict, LostRecord, MulticastRecord,
    RECORD_SCHEMA, RateLimitedRecord, Record, RecordHeader, RevokedBy, Workload,
};
pub use start::{EXEMPT_NAMESPACE, GateStatus, PodStart, PodStarted, PodStop, RecentStart, StartOutcome};
pub use status::{Directions, Endpoint, PartialPolicy, Status};
pub use wait::{ConditionResult, ErrorResponse, Pending, WaitOutcome, WaitResponse};

/// The default socket of an agent.
pub const DEFAULT_SOCKET: &str = "/run/netpol/agent.sock";

/// The longest wait that an agent accepts.
pub const MAX_WAIT: std::time::Duration = std::time::Duration::from_hours(1);
