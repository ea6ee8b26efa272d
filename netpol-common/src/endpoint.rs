//! The endpoint of a pod's network interface.

use core::mem::{offset_of, size_of};

use bytemuck::{Pod, Zeroable};

use crate::{Direction, Generation, IfIndex, PortSetId, RuleSetId};

/// The policy of an endpoint in one direction.
///
/// It has eight bytes and is eight-byte aligned in [`Endpoint`], so that the rule set and `any` are replaced together.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct DirectionPolicy {
    /// The rule set of the policies that isolate this direction, or [`RuleSetId::NONE`].
    pub rule_set: RuleSetId,
    /// The ports that the rule set allows to every address, also to addresses of class [`crate::ClassId::NOBODY`].
    pub any: PortSetId,
}

impl DirectionPolicy {
    /// A direction that is not isolated: everything is allowed.
    pub const OPEN: Self = Self { rule_set: RuleSetId::NONE, any: PortSetId::ALL };

    /// Returns whether a policy isolates this direction.
    #[inline(always)]
    pub const fn isolated(&self) -> bool {
        self.rule_set.0 != RuleSetId::NONE.0
    }
}

/// The highest [`Endpoint::id`]. It has to fit into 15 bits of `skb->tc_index`.
pub const MAX_ENDPOINT_ID: u32 = 0x7fff;
/// The recheck mark: the bit of `skb->tc_index` above the source endpoint ID. The packet is evaluated again post-DNAT.
pub const RECHECK: u32 = 0x8000;

/// Value of `ENDPOINTS`, an array indexed by `ifindex & mask`. If another interface has that slot, `ENDPOINTS_OVERFLOW`
/// has the index for the ifindex.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Endpoint {
    /// The interface of this slot. If it differs from the packet's interface, the endpoint is looked up in
    /// `ENDPOINTS_OVERFLOW`.
    pub ifindex: IfIndex,
    /// Incremented by each change to this endpoint, after everything else is written. A value is never reused for
    /// another endpoint, so that flows of an earlier interface with the same index are not taken over.
    pub generation: Generation,
    /// The policy for packets to the pod.
    pub ingress: DirectionPolicy,
    /// The policy for packets from the pod.
    pub egress: DirectionPolicy,
    /// Flags, see [`endpoint_flags`].
    pub flags: u32,
    /// The endpoint ID, a small number from 1, at most [`MAX_ENDPOINT_ID`]. `COUNTERS` is indexed by `id * 2 +
    /// direction`; ID 0 counts packets at interfaces without an endpoint. Packets from the pod carry the ID as source
    /// endpoint ID in the low 15 bits of `skb->tc_index`, see `ENDPOINT_IDS`.
    pub id: u32,
    /// The MAC address of the pod's end of the veth. If it is zero, it is not known, and MAC addresses are not checked.
    pub mac: [u8; 6],
    /// Always zero.
    pub zero: [u8; 6],
    /// The pod's IPv4 address, or zero.
    pub address_v4: [u8; 4],
    /// The pod's IPv6 address, or zero.
    pub address_v6: [u8; 16],
    /// The pod's IPv6 link-local address on this interface, or zero.
    pub link_local: [u8; 16],
}

const _: () = assert!(size_of::<Endpoint>() == 80);
const _: () = assert!(offset_of!(Endpoint, mac) % 4 == 0 && offset_of!(Endpoint, address_v4) % 4 == 0);
const _: () = assert!(offset_of!(Endpoint, ingress) == 8 && offset_of!(Endpoint, egress) == 16);

impl Endpoint {
    /// Returns the policy of a direction.
    #[inline(always)]
    pub const fn policy(&self, direction: Direction) -> DirectionPolicy {
        match direction {
            Direction::Ingress => self.ingress,
            Direction::Egress => self.egress,
        }
    }

    /// Returns whether all of `flags` are set.
    #[inline(always)]
    pub const fn has(&self, flags: u32) -> bool {
        self.flags & flags == flags
    }
}

/// Bits of [`Endpoint::flags`].
pub mod endpoint_flags {
    /// Anti-spoofing: packets from the pod must have its own addresses (IP source, Ethernet source, the fields of ARP
    /// and neighbor discovery). Packets to other pods of this node that carry its source endpoint ID are checked
    /// against this endpoint.
    pub const SOURCE_GUARD: u32 = 1 << 0;
    /// The pod of the interface is not known, and unknown pods are denied.
    pub const UNKNOWN: u32 = 1 << 1;
    /// A map was full, and an entry that this endpoint needs could not be written. A packet that no entry allows is
    /// dropped with its own reason.
    pub const INCOMPLETE: u32 = 1 << 2;
}
