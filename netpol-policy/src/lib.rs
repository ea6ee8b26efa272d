//! From Kubernetes objects to the tables the kernel judges by, and back to words a person can act on.
//!
//! ```text
//! manifest ─► model ─► World ─► compile::Engine ─► Change, Change, … ─► Tables (in memory, or the kernel's maps)
//!                        │
//!                        ├────► reference: the verdict as the standard is written, object by object
//!                        └────► explain:   the same in words, with the nearest rule and what it lacked
//! ```
//!
//! Pure: nothing here does I/O, spawns, sleeps or knows aya. The three verdicts (reference, tables, loaded program) agree,
//! always; property tests say so.

pub mod compile;
pub mod derived;
pub mod explain;
pub mod manifest;
pub mod model;
pub mod reference;
pub mod tables;
#[cfg(feature = "testing")]
pub mod testing;
pub mod text;
pub mod world;
