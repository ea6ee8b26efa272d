//! The allow maps: who an address is, what a rule set allows to whom, and the ports in it.

use core::mem::{offset_of, size_of};

use bytemuck::{Pod, Zeroable};

use crate::{ClassId, PortSetId, RuleId, RuleSetId};

/// Value of `ADDRESSES_V4` and `ADDRESSES_V6` (hashes by address): pods of the cluster, addresses of nodes and of Services.
///
/// Values of `PREFIXES_V4` and `PREFIXES_V6` (LPM tries) are of this type too; `flags` and `endpoint` are 0 there.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct AddressEntry {
    /// The class of the address, CIDR blocks that cover it included.
    pub class: ClassId,
    /// See [`address_flags`].
    pub flags: u16,
    /// The [`crate::Endpoint::id`] of the pod of this node that has the address, while its programs are attached; otherwise 0.
    /// At other pods, the address is then accepted as a source only from that endpoint.
    pub endpoint: u16,
}

const _: () = assert!(size_of::<AddressEntry>() == 8);

/// Bits of [`AddressEntry::flags`].
pub mod address_flags {
    /// An address of the node this endpoint runs on.
    pub const OWN_NODE: u16 = 1 << 0;
    /// Some Service has a port at this address: see [`frontend_scope::ADDRESS`](crate::frontend_scope::ADDRESS).
    pub const SERVICE: u16 = 1 << 1;
    /// An address of another node, where every `NodePort` is: see [`frontend_scope::NODE`](crate::frontend_scope::NODE).
    pub const NODE: u16 = 1 << 2;
}

/// Key of `ALLOW` (a hash).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
pub struct AllowKey {
    /// The policies on the pod's side.
    pub rule_set: RuleSetId,
    /// The address on the other side.
    pub class: ClassId,
}

/// Value of `ALLOW`. There is no entry where a rule set allows a class no more than it allows anyone
/// ([`crate::DirectionPolicy::any`]); where there is one, it includes that.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct AllowEntry {
    /// The allowed ports; [`PortSetId::ALL`]: everything.
    pub port_set: PortSetId,
    /// With [`PortSetId::ALL`]: the first rule that allows everything. Otherwise [`RuleId::NONE`]; the port set names
    /// the rules.
    pub rule: RuleId,
}

/// Data of the LPM key of `PORTS`, most significant part first: set, protocol, port. A range of ports is stored as
/// the prefixes that make it up. Lookups use [`PORT_PREFIX_EXACT`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
pub struct PortKey {
    /// The set.
    pub set: PortSetId,
    /// IP protocol number.
    pub protocol: u8,
    /// Always 0.
    pub zero: u8,
    /// Destination port, network byte order.
    pub port: [u8; 2],
}

const _: () = assert!(size_of::<PortKey>() == 8 && offset_of!(PortKey, port) == 6);

/// Prefix length, in bits, of a [`PortKey`] that stands for every port of its protocol. A port prefix of `n` bits has
/// `PORT_PREFIX_PROTOCOL + n`.
pub const PORT_PREFIX_PROTOCOL: u32 = 48;
/// Prefix length, in bits, of a [`PortKey`] that stands for one port.
pub const PORT_PREFIX_EXACT: u32 = 64;

/// Value of `PORTS`. A verdict rather than mere presence, so that ordered tiers can be flattened into the same table.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct PortEntry {
    /// One of [`port_verdict`].
    pub verdict: u32,
    /// The first rule that allows this port.
    pub rule: RuleId,
}

/// Values of [`PortEntry::verdict`].
pub mod port_verdict {
    /// The port is allowed.
    pub const ALLOW: u32 = 1;
}
