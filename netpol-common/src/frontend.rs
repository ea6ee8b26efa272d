//! Frontends: addresses and ports of Services and hostPorts. For a connection to a frontend, kube-proxy or another
//! component selects the backend.

use core::mem::size_of;

use bytemuck::{Pod, Zeroable};

use crate::ClassId;

/// Key of the maps `SERVICES_V4` and `SERVICES_V6` (hashes): a frontend, which is one port of a Service at one address,
/// or a hostPort.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FrontendKey<A> {
    /// The address. Zero if the scope is [`frontend_scope::NODE`].
    pub address: A,
    /// Port in network byte order.
    pub port: [u8; 2],
    /// IP protocol number.
    pub protocol: u8,
    /// At which addresses the frontend is, one of [`frontend_scope`].
    pub scope: u8,
}

const _: () = assert!(size_of::<FrontendKey<[u8; 4]>>() == 8 && size_of::<FrontendKey<[u8; 16]>>() == 20);

// SAFETY: `repr(C)`, all fields are `Pod`, and the sizes asserted above leave no room for padding.
unsafe impl Zeroable for FrontendKey<[u8; 4]> {}
// SAFETY: as above.
unsafe impl Zeroable for FrontendKey<[u8; 16]> {}
// SAFETY: as above.
unsafe impl Pod for FrontendKey<[u8; 4]> {}
// SAFETY: as above.
unsafe impl Pod for FrontendKey<[u8; 16]> {}

/// Values of [`FrontendKey::scope`].
pub mod frontend_scope {
    /// The frontend is at the key's address. This scope is for cluster IPs, external IPs, load balancer addresses and
    /// hostPorts.
    pub const ADDRESS: u8 = 0;
    /// The frontend is at every address of every other node. This scope is for `NodePorts`. At addresses of the local
    /// node, traffic is evaluated post-DNAT.
    pub const NODE: u8 = 1;
}

/// Value of the maps `SERVICES_V4` and `SERVICES_V6`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct FrontendEntry {
    /// The class that represents the backend set (the backends of the frontend). Each backend set has its own class,
    /// and frontends with the same backend set share this class. The `ALLOW` entry of a rule set and this class has the
    /// port set [`crate::PortSetId::ALL`] if the rule set allows all backends, and [`crate::PortSetId::SOME`] if it
    /// allows some. Without an entry, the rule set allows no backend.
    pub class: ClassId,
}
