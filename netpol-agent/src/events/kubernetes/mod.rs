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
//! `kube_runtime::events::Recorder` (version 5.0) is not used, for these reasons:
//!
//! * Each call is one request, and the number of a series counts calls. Here it counts packets, and one update stands for all
//!   packets of its interval.
//! * It combines all Events of a pod with the same reason and action. The first peer and port would stand for all, because
//!   the API server rejects changes of a note.
//! * It names Events after the time. Agents could not use one Event for a diagnostic of a policy, and a request
//!   repeated after its response was lost would create another Event.
//! * If the API server has deleted an Event, all updates of its series fail until the Event is removed from the cache.
//! * The cache has no limit, and there are no rate limits.
//!
//! All state is bounded: Events of a pod, tokens of a pod and of the node, and memory. While the API server is unavailable,
//! counting continues; the counts are written when it is available again.

mod aggregate;
mod limit;
mod notice;
mod object;
mod reporters;
mod sink;
mod thread;
mod topic;
mod writer;

pub use aggregate::{Aggregator, Publication};
pub use notice::Notice;
pub use sink::{Denied, DropReason, EventCounters, Sink};
pub use thread::{FINISH_TIMEOUT, Handle, start};
pub use topic::Topic;
