//! Finds the pod of each veth. The kernel reports the addresses in the network namespace of each veth's peer; the API
//! objects have the pods' addresses.
//!
//! Like a Kubernetes controller, the agent is level-triggered here: every event (a link changed, a pod changed, time
//! has passed) leads to a reading of all interfaces. So lost or merged events do not change the result.

mod clsact;
mod interface_watcher;
mod interfaces;
mod namespaces;
mod netlink;
mod pod_addresses;
mod routes;
mod tunnels;
pub mod worker;

pub use clsact::{BpfFilter, Hook};
pub use interface_watcher::InterfaceWatcher;
pub use interfaces::{CacheUse, InterfaceReader, InterfaceSnapshot, KnownVeths, PodEnd};
pub use netlink::{Device, Links, Monitor, Netlink, NetlinkError, Veth, is_link_local};
pub use pod_addresses::PodAddressMonitor;
pub use tunnels::TunnelEndpoints;
