//! The policy maps: the class of an address, what a rule set allows to a class, and port sets.

use core::mem::{offset_of, size_of};

use bytemuck::{Pod, Zeroable};

use crate::{ClassId, PortSetId, RuleId, RuleSetId};

/// Value of `ADDRESSES_V4` and `ADDRESSES_V6` (hash maps). The keys are addresses of pods, nodes and Services.
///
/// `AddressEntry` is also the value of `PREFIXES_V4` and `PREFIXES_V6` (LPM tries), where `flags` and `endpoint` are 0.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct AddressEntry {
    /// The class of the address. The class includes the CIDR blocks that contain the address, so the address needs no
    /// lookup in `PREFIXES_V4` or `PREFIXES_V6`.
    pub class: ClassId,
    /// Flags, see [`address_flags`].
    pub flags: u16,
    /// The [`crate::Endpoint::id`] of the pod that has the address. At other pods, packets with this source address are
    /// accepted only if this endpoint sent them. 0 if no pod of this node has the address, or if the pod's
    /// programs are not attached.
    pub endpoint: u16,
}

const _: () = assert!(size_of::<AddressEntry>() == 8);

/// Bits of [`AddressEntry::flags`].
pub mod address_flags {
    /// An address of the local node.
    pub const LOCAL_NODE: u16 = 1 << 0;
    /// A Service has a frontend at this address, see [`frontend_scope::ADDRESS`](crate::frontend_scope::ADDRESS).
    pub const SERVICE: u16 = 1 << 1;
    /// An address of another node (never of the local node). Every `NodePort` has a frontend at this address, see
    /// [`frontend_scope::NODE`](crate::frontend_scope::NODE).
    pub const NODE: u16 = 1 << 2;
}

/// Key of `ALLOW` (a hash).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
pub struct AllowKey {
    /// The rule set of the pod.
    pub rule_set: RuleSetId,
    /// The class of the remote address.
    pub class: ClassId,
}

/// Value of `ALLOW`: what a rule set allows to a class. It includes what the rule set allows to every address
/// ([`crate::DirectionPolicy::any`]). Without an entry, the rule set allows to the class only what it allows to every
/// address.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct AllowEntry {
    /// The allowed ports, or [`PortSetId::ALL`] for everything.
    pub port_set: PortSetId,
    /// The first rule that allows everything, if the port set is [`PortSetId::ALL`]. Otherwise [`RuleId::NONE`],
    /// because the rules are in the entries of the port set.
    pub rule: RuleId,
}

/// Data of the LPM key of `PORTS`, most significant part first: set, protocol, port. A port range is stored as
/// prefixes. Lookups use [`PORT_PREFIX_EXACT`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
pub struct PortKey {
    /// The port set.
    pub set: PortSetId,
    /// IP protocol number.
    pub protocol: u8,
    /// Always 0.
    pub zero: u8,
    /// Destination port in network byte order.
    pub port: [u8; 2],
}

const _: () = assert!(size_of::<PortKey>() == 8 && offset_of!(PortKey, port) == 6);

/// Prefix length, in bits, of a [`PortKey`] for all ports of a protocol. A key for a port prefix of `n` bits has the
/// prefix length `PORT_PREFIX_PROTOCOL + n`.
pub const PORT_PREFIX_PROTOCOL: u32 = 48;
/// Prefix length, in bits, of a [`PortKey`] for one port.
pub const PORT_PREFIX_EXACT: u32 = 64;

/// Value of `PORTS`. It has a verdict, so that `AdminNetworkPolicy`, which has priorities and rules that deny, can use
/// the same layout later.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct PortEntry {
    /// The verdict, one of [`port_verdict`].
    pub verdict: u32,
    /// The first rule that allows this port.
    pub rule: RuleId,
}

/// Values of [`PortEntry::verdict`].
pub mod port_verdict {
    /// The port is allowed.
    pub const ALLOW: u32 = 1;
}
