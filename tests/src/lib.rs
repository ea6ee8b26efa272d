//! A small cluster of network namespaces: nodes, pods on a bridge or routed, a host outside; the agent on it, real
//! sockets to probe with, and raw packets where sockets cannot.
//!
//! ```text
//!  pod ns ─eth0──veth─┐
//!  pod ns ─eth0──veth─┤ node ns ─uplink──┐
//!                                        ├ fabric ns (a switch) ── outside ns
//!                       node ns ─uplink──┘
//! ```
//!
//! Namespaces have no names and are held by file descriptors only: when the process ends, however it ends, the kernel
//! takes them down with every link in them. What outlives a process (pins on bpffs, directories) is named after the
//! process and removed by guards, on an interrupt, or by the next run.

pub mod agent;
pub mod answers;
pub mod berth;
pub mod cleanup;
pub mod cluster;
pub mod examples;
pub mod flow;
pub mod kubectl;
pub mod lab;
pub mod load;
pub mod manifests;
pub mod matrix;
pub mod netns;
pub mod objects;
pub mod packet;
pub mod pinned;
pub mod port;
pub mod probe;
pub mod program;
pub mod proxy;
pub mod raw;
pub mod runs;
pub mod serve;
pub mod service;
pub mod traffic;

pub use agent::{Agent, AgentOptions, Denied};
pub use berth::Berths;
pub use cluster::{Between, Cluster, ClusterBuilder, Families, Host, PodSpec, Topology};
pub use lab::{Lab, deny_all, policy};
pub use matrix::{Cell, Matrix};
pub use netns::Netns;
pub use netpol_policy::model::Protocol;
pub use probe::{Outcome, Probe};
pub use proxy::{KubeProxy, Mode};
pub use service::Service;
