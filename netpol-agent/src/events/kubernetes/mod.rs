//! Kubernetes Events for denied traffic and policy diagnostics, shown by `kubectl describe` and `kubectl events`. Off
//! by default.
//!
//! ```text
//! Reporter ──► Sink ═ bounded, never waits ═► Aggregator ──► Writer ──► API server
//!                                         on its own thread from here on
//! ```
//!
//! An Event describes what happened, and its series counts how often. All state is bounded: Events of a pod, tokens of
//! a pod and of the node, and memory. While the API server is unavailable, counting continues; the counts are reported
//! when it is back.

mod aggregate;
mod limit;
mod object;
mod policies;
mod reporters;
mod sink;
mod thread;
mod topic;
mod writer;

pub use aggregate::{Aggregator, Publication};
pub use policies::PolicyDiagnostic;
pub use sink::{Denied, Dropped, Numbers, Sink};
pub use thread::{Handle, start};
pub use topic::Topic;
