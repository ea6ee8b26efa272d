//! Compiles Kubernetes objects to the tables that the eBPF programs read, and explains verdicts as text.
//!
//! ```text
//! manifest ─► model ─► ClusterState ─► compile::Engine ─► Change, Change, … ─► Tables (in memory, or the kernel's maps)
//!                        │
//!                        ├────► reference: evaluates packets from the objects
//!                        ├────► explain:   explains verdicts as text
//!                        └────► lint:      finds mistakes in policies
//! ```
//!
//! This crate does no I/O, starts no threads and does not depend on aya. Property tests check that the reference, the
//! tables and the loaded eBPF programs give the same verdicts.

pub mod cluster_state;
pub mod compile;
pub mod derived;
pub mod explain;
mod index;
pub mod lint;
pub mod manifest;
pub mod model;
pub mod offline;
pub mod record;
pub mod reference;
pub mod tables;
#[cfg(feature = "testing")]
pub mod testing;
pub mod text;
