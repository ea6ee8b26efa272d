//! Test harness: clusters of network namespaces with nodes, pods (bridged or routed) and an external host. The harness
//! runs the agent on a node, probes connections with sockets, and sends raw packets that sockets cannot send.
//!
//! ```text
//!  pod ns ─eth0──veth─┐
//!  pod ns ─eth0──veth─┤ node ns ─uplink──┐
//!                                        ├ fabric ns (a switch) ── outside ns
//!                       node ns ─uplink──┘
//! ```
//!
//! Namespaces have no names. Only file descriptors refer to them, so that the kernel removes the namespaces and their
//! links when the process ends for any reason. BPF pins and temporary directories outlive the process. They are removed
//! by `Drop` implementations, by an interrupt handler, or by the next run, which finds the process ID in their names.

pub mod agent;
mod bpf_object;
pub mod cleanup;
pub mod cluster;
pub mod examples;
pub mod first_packets;
pub mod flow;
pub mod kubectl;
pub mod lab;
pub mod load;
pub mod manifests;
pub mod matrix;
pub mod netns;
pub mod objects;
pub mod openapi;
pub mod packet;
pub mod pinned;
pub mod pod_slots;
pub mod port;
pub mod probe;
pub mod program;
pub mod prometheus;
pub mod proxy;
pub mod raw;
pub mod responses;
pub mod runs;
pub mod serve;
pub mod service;
pub mod traffic;

pub use agent::{Agent, AgentOptions, Denied};
pub use cluster::{Cluster, ClusterBuilder, Families, Host, Interconnect, PodSpec, StartGate, Topology};
pub use lab::{Lab, deny_all, policy};
pub use matrix::{Cell, Matrix};
pub use netns::Netns;
pub use netpol_policy::model::Protocol;
pub use pod_slots::PodSlots;
pub use probe::{Probe, ProbeResult};
pub use proxy::{KubeProxy, Mode};
pub use service::Service;
