//! An endpoint: one pod's veth.

use core::mem::{offset_of, size_of};

use bytemuck::{Pod, Zeroable};

use crate::{Direction, Generation, IfIndex, PortSetId, RuleSetId};

/// What holds for one direction of an endpoint.
///
/// Eight bytes, eight-byte aligned inside [`Endpoint`], so that a rule set and what it allows to anyone are replaced
/// together.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct DirectionPolicy {
    /// The policies that isolate this direction, or [`RuleSetId::NONE`].
    pub rule_set: RuleSetId,
    /// The ports that the rule set allows to every peer, addresses of class [`crate::ClassId::NOBODY`] included.
    pub any: PortSetId,
}

impl DirectionPolicy {
    /// Not isolated: everything is allowed.
    pub const OPEN: Self = Self { rule_set: RuleSetId::NONE, any: PortSetId::ALL };

    /// Whether some policy isolates this direction.
    #[inline(always)]
    pub const fn isolated(&self) -> bool {
        self.rule_set.0 != RuleSetId::NONE.0
    }
}

/// The highest [`Endpoint::id`]: 15 bits of `skb->tc_index` carry it.
pub const MAX_ENDPOINT_ID: u32 = 0x7fff;
/// The bit of `skb->tc_index` above the source endpoint ID: the packet is to be evaluated again after address translation.
pub const RECHECK: u32 = 0x8000;

/// Value of `ENDPOINTS`: an array indexed by `ifindex & mask`, or, for interfaces whose slot another one holds, by the number that
/// `ENDPOINTS_OVERFLOW` has for the ifindex.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Endpoint {
    /// Whose slot this is; another value than the packet's interface means: look in `ENDPOINTS_OVERFLOW`.
    pub ifindex: IfIndex,
    /// Raised, after everything else is written, by each change that touches this endpoint. Never reused for another
    /// endpoint, so that flows of an earlier interface of the same index are not taken over.
    pub generation: Generation,
    /// What may reach the pod.
    pub ingress: DirectionPolicy,
    /// What the pod may reach.
    pub egress: DirectionPolicy,
    /// See [`endpoint_flags`].
    pub flags: u32,
    /// Dense number of this endpoint, from 1; `COUNTERS` is indexed by `id * 2 + direction`. Number 0 counts packets at
    /// interfaces that have no endpoint. Packets from the pod carry it as source endpoint ID in the low 15 bits of
    /// `skb->tc_index`, so it is at most [`MAX_ENDPOINT_ID`]: see `SENDERS`.
    pub id: u32,
    /// The MAC address of the pod's end of the veth; zeros: not known, and MAC addresses are not checked.
    pub mac: [u8; 6],
    /// Always zeros.
    pub zero: [u8; 6],
    /// The pod's IPv4 address, or zeros.
    pub address_v4: [u8; 4],
    /// The pod's IPv6 address, or zeros.
    pub address_v6: [u8; 16],
    /// The pod's IPv6 link-local address on this interface, or zeros.
    pub link_local: [u8; 16],
}

const _: () = assert!(size_of::<Endpoint>() == 80);
const _: () = assert!(offset_of!(Endpoint, mac) % 4 == 0 && offset_of!(Endpoint, address_v4) % 4 == 0);
const _: () = assert!(offset_of!(Endpoint, ingress) == 8 && offset_of!(Endpoint, egress) == 16);

impl Endpoint {
    /// The policy of one direction.
    #[inline(always)]
    pub const fn policy(&self, direction: Direction) -> DirectionPolicy {
        match direction {
            Direction::Ingress => self.ingress,
            Direction::Egress => self.egress,
        }
    }

    /// Whether all of `flags` are set.
    #[inline(always)]
    pub const fn has(&self, flags: u32) -> bool {
        self.flags & flags == flags
    }
}

/// Bits of [`Endpoint::flags`].
pub mod endpoint_flags {
    /// Packets from the pod must carry its own addresses: IP source, Ethernet source, and the fields of ARP and neighbor
    /// discovery. Packets to other pods of this node that carry a source endpoint ID are checked against this endpoint.
    pub const SOURCE_GUARD: u32 = 1 << 0;
    /// The interface belongs to no known pod, and unknown pods are denied.
    pub const UNKNOWN: u32 = 1 << 1;
    /// Some table this endpoint needs could not be written in full (a full map): what no entry allows is dropped with
    /// a reason of its own.
    pub const INCOMPLETE: u32 = 1 << 2;
}
