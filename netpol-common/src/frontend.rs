//! Frontends: where connections to a Service go in. Who they reach is chosen elsewhere, by kube-proxy.

use core::mem::size_of;

use bytemuck::{Pod, Zeroable};

use crate::ClassId;

/// Key of `SERVICES_V4` and `SERVICES_V6` (hashes): one port of a Service at one address.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FrontendKey<A> {
    /// The address; zeros with [`frontend_scope::NODE`].
    pub address: A,
    /// Network byte order.
    pub port: [u8; 2],
    /// IP protocol number.
    pub protocol: u8,
    /// One of [`frontend_scope`].
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
    /// At this address: cluster IPs, external IPs, load balancers, hostPorts.
    pub const ADDRESS: u8 = 0;
    /// At every address of every node: `NodePorts`.
    pub const NODE: u8 = 1;
}

/// Value of `SERVICES_V4` and `SERVICES_V6`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct FrontendEntry {
    /// The class of all frontends whose backends are alike. What a rule set allows to it stands in `ALLOW`:
    /// [`crate::PortSetId::ALL`] if that holds for every backend, [`crate::PortSetId::SOME`] if for some, no entry if for none.
    pub class: ClassId,
}
