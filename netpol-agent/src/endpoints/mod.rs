//! Which veth is which pod's. The kernel tells the addresses behind each veth, the objects tell the pods' addresses.
//!
//! Level-triggered: every hint (a link changed, a pod changed, time has passed) leads to one look at everything, which
//! yields the same answer however the hints were lost or merged.

mod clsact;
mod elsewhere;
mod lookout;
mod netlink;
mod routes;
mod survey;
mod tunnels;

pub use clsact::{BpfFilter, Hook};
pub use elsewhere::Elsewhere;
pub use lookout::Lookout;
pub use netlink::{Device, Links, Monitor, Netlink, NetlinkError, Veth, is_link_local};
pub use survey::{Known, PodSide, Survey, Surveyor};
pub use tunnels::TunnelEndpoints;
