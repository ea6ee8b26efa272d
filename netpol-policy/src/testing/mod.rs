//! Worlds, events and packets made at random, for property tests here and against the loaded program; and big clusters for
//! benchmarks. Few names, labels, ports and addresses, so that things meet.

#![allow(clippy::missing_panics_doc, reason = "only where a literal of this module does not parse")]

mod cluster;
mod expect;
mod generate;
mod probe;
mod services;

pub use cluster::{cluster, local_node};
pub use expect::{expected, is_among_backends};
pub use generate::{event, object, pod, policy, service, slice};
pub use probe::{Probe, judge_in, probes};
pub use services::cluster_with_services;
