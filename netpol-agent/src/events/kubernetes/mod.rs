//! Kubernetes Events for denied traffic and policy diagnostics, shown by `kubectl describe` and `kubectl events`. Off
//! by default.
//!
//! ```text
//! Reporter ──► Sink ═ bounded, never waits ═► Aggregator ──► Writer ──► API server
//!                                         on its own thread from here on
//! ```
//!
//! * topic: what the packets of one Event have in common (peer, port, reason)
//! * series: the Event of one topic, with the number of packets
//! * publication: one write to the API server: a new Event, an update of a series, or a diagnostic
//!
//! All state is bounded: Events of a pod, tokens of a pod and of the node, and memory. While the API server is unavailable,
//! counting continues; the counts are written when it is available again.

mod aggregate;
mod diagnostics;
mod limit;
mod object;
mod reporters;
mod sink;
mod thread;
mod topic;
mod writer;

pub use aggregate::{Aggregator, Publication};
pub use diagnostics::PolicyDiagnostic;
pub use sink::{Denied, Dropped, Numbers, Sink};
pub use thread::{FINISH_TIMEOUT, Handle, start};
pub use topic::Topic;
