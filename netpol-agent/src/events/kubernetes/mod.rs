//! Kubernetes Events for denied traffic, policy diagnostics and suspensions of enforcement, shown by `kubectl describe`
//! and `kubectl events`. Off by default.
//!
//! ```text
//! Reporter ──► Sink ══ bounded queue ══► Aggregator ──► Writer ──► API server
//!                                        (these run on a separate thread)
//! ```
//!
//! * topic: what the packets of one Event have in common: for example, the reason, the peer (the other end of the
//!   connection) and the port
//! * series: the Event of one topic, with the number of packets
//! * notice: a diagnostic of a policy, or a suspension of enforcement
//! * publication: one write to the API server: a new Event of a topic, an update of its series, or a notice
//!
//! `kube_runtime::events::Recorder` (version 5.0) is not used, for these reasons:
//!
//! * Each call of the Recorder is one request, and the count of a series is the number of calls. Here, the count is the
//!   number of packets, and one update covers all packets of an interval.
//! * The Recorder combines all Events of a pod with the same reason and action. The `note` (the text of an Event) would
//!   name only the first peer and port, because the API server rejects changes of a `note`.
//! * The Recorder derives the name of an Event from the time. So several agents could not share one Event about a
//!   diagnostic of a policy. And if the response to a request was lost, the repeated request would create a second
//!   Event.
//! * If the API server has deleted an Event, all updates of its series fail until the Recorder removes the Event from
//!   its cache.
//! * The Recorder's cache has no limit, and there are no rate limits.
//!
//! All state is bounded: the number of Events of a pod, the rate of writes for a pod and for the node, and memory.
//! While the API server is unavailable, counting continues; the counts are written when it is available again.

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
