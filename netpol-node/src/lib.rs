//! Reads the veths of the node and, for each veth, the addresses in the network namespace of its other end. By these
//! addresses, the agent finds the pod of the veth: the API objects have the pods' addresses, too.
//!
//! Like a Kubernetes controller, the agent is level-triggered here: an event only names what has changed, and then the
//! agent reads the current state. So the result is the same if events are merged. If events were lost, the agent
//! reads everything. It also does this every 10 seconds.

mod clsact;
mod interface_watcher;
mod interfaces;
mod link_cache;
mod monitor;
mod namespaces;
mod netlink;
mod pod_addresses;
mod routes;
mod tunnels;
pub mod worker;

pub use clsact::{BpfFilter, Hook};
pub use interface_watcher::InterfaceWatcher;
pub use interfaces::{CacheUse, InterfaceReader, InterfaceSnapshot, KnownVeths, PodEnd};
pub use monitor::{Changed, Monitor};
pub use netlink::{Device, Link, Netlink, NetlinkError, Veth, is_link_local};
pub use pod_addresses::PodAddressMonitor;
pub use tunnels::TunnelEndpoints;
