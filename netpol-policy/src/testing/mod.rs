//! Random objects, events and packets for property tests, and large clusters for benchmarks. Random objects have only a
//! few different names, labels, ports and addresses, so that they often match each other and the packets.

#![allow(clippy::missing_panics_doc, reason = "panics only if a literal of this module does not parse")]

mod cluster;
mod expect;
mod generate;
mod probe;
mod services;

pub use cluster::{cluster, local_node};
pub use expect::{expected, expected_shadow, has_local_backend};
pub use generate::{endpoint_slice, event, object, pod, policy, service};
pub use probe::{Probe, evaluate_in, probes};
pub use services::cluster_with_services;
