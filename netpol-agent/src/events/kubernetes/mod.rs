//! Denied traffic and misunderstood policies as Events of the API server, where `kubectl describe` and `kubectl events`
//! show them. Off unless asked for.
//!
//! ```text
//! Reporter ──► Sink ═ bounded, never waits ═► Aggregator ──► Desk ──► API server
//!                                         its own thread from here on
//! ```
//!
//! An Event says what happened once; how often is its series. Everything is bounded: Events of a pod, tokens of a pod and of
//! the node, and what is remembered. While the API server is away counts go on, and are told once it is back.

mod aggregate;
mod desk;
mod limit;
mod object;
mod policies;
mod sink;
mod speaker;
mod thread;
mod topic;

pub use aggregate::{Aggregator, Publication};
pub use policies::Misunderstood;
pub use sink::{Denied, Dropped, Numbers, Sink};
pub use thread::{Handle, start};
pub use topic::Topic;
