//! The agent as a library, so that tests and benchmarks can use its parts.
//!
//! ```text
//! source ─► reconcile ─► dataplane ─► maps, links
//! endpoints ─┘   ▲
//!                └ names ─ events ◄─ ring buffer
//! ```

pub mod api;
pub mod cli;
mod clock;
pub mod conflicts;
pub mod events;
pub mod export;
pub mod gate;
pub mod metrics;
pub mod reconcile;
