//! The agent as a library, so that tests and benchmarks can use its parts.
//!
//! ```text
//! API objects (netpol-source) ─┬─► reconcile ─► netpol-dataplane ─► BPF maps, programs
//! interfaces (netpol-node) ────┘       │
//!                                      └─ names of pods and policies ─► events ◄─ BPF ring buffer
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
