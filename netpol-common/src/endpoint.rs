//! Endpoints: pods' network interfaces on which policies are enforced.

use core::mem::{offset_of, size_of};

use bytemuck::{Pod, Zeroable};

use crate::{Direction, EndpointVersion, IfIndex, PortSetId, RuleSetId};

/// The policy of an endpoint in one direction.
///
/// This value has eight bytes and is eight-byte aligned in [`Endpoint`], so that one write replaces both fields.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct DirectionPolicy {
    /// The rule set of the policies that isolate this direction, or [`RuleSetId::NONE`].
    pub rule_set: RuleSetId,
    /// The ports that the rule set allows to every address, including addresses that match no peer selector
    /// ([`crate::ClassId::NONE`]).
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

/// The highest [`Endpoint::id`]. An ID must fit into 15 bits of `skb->tc_index`.
pub const MAX_ENDPOINT_ID: u32 = 0x7fff;
/// The recheck mark: the bit of `skb->tc_index` above the source endpoint ID (the ID of the endpoint that sent the
/// packet). A packet with this mark is evaluated again post-DNAT.
pub const RECHECK: u32 = 0x8000;

/// An endpoint, as stored in a slot of the array `ENDPOINTS`. The endpoint is in the first half of the array, in the
/// slot with the index `ifindex & ENDPOINT_MASK`. If another interface uses this slot already, the endpoint is in the
/// second half of the array, and `ENDPOINTS_OVERFLOW` contains the index of its slot.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Endpoint {
    /// The interface of the endpoint in this slot. If it is not the packet's interface, the slot of the packet's
    /// endpoint is looked up in `ENDPOINTS_OVERFLOW`.
    pub ifindex: IfIndex,
    /// Increases with each change to this endpoint. It is written after all other fields and map entries of the change.
    /// No two endpoints ever have the same version, so flows of an earlier interface with the same index are not valid
    /// for this endpoint.
    pub version: EndpointVersion,
    /// The policy for packets to the pod.
    pub ingress: DirectionPolicy,
    /// The policy for packets from the pod.
    pub egress: DirectionPolicy,
    /// Flags, see [`endpoint_flags`].
    pub flags: u32,
    /// The endpoint ID, from 1 to [`MAX_ENDPOINT_ID`]. `COUNTERS` is indexed by `id * 2 + direction`; its entries for
    /// ID 0 are for packets at interfaces that have no entry in `ENDPOINTS`, and for packets with the reason
    /// `source-endpoint-gone`. Packets from the pod carry the ID as source endpoint ID in the low 15 bits of
    /// `skb->tc_index`. `ENDPOINT_IDS` contains the interface of each ID.
    pub id: u32,
    /// The MAC address of the pod's end of the veth. Zero if it is not known; then MAC addresses are not checked.
    pub mac: [u8; 6],
    /// Always zero.
    pub zero: [u8; 6],
    /// The pod's IPv4 address, or zero.
    pub address_v4: [u8; 4],
    /// The pod's IPv6 address, or zero.
    pub address_v6: [u8; 16],
    /// The pod's IPv6 link-local address on this interface, or zero.
    pub link_local: [u8; 16],
    /// The policy that would apply to packets to the pod if policies in shadow mode were enforced. (Policies in shadow
    /// mode are only evaluated and reported.) If no policy in shadow mode isolates this direction, the value is
    /// [`DirectionPolicy::OPEN`].
    pub shadow_ingress: DirectionPolicy,
    /// The same for packets from the pod.
    pub shadow_egress: DirectionPolicy,
}

const _: () = assert!(size_of::<Endpoint>() == 96);
const _: () = assert!(offset_of!(Endpoint, shadow_ingress) == 80 && offset_of!(Endpoint, shadow_egress) == 88);
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

    /// Returns the policy that would apply in a direction if policies in shadow mode were enforced.
    #[inline(always)]
    pub const fn shadow_policy(&self, direction: Direction) -> DirectionPolicy {
        match direction {
            Direction::Ingress => self.shadow_ingress,
            Direction::Egress => self.shadow_egress,
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
    /// Anti-spoofing: packets from the pod must have the pod's addresses (IP source, Ethernet source, the fields of ARP
    /// and neighbor discovery). If a packet from the pod arrives at another pod of this node, its source address is
    /// checked there, too.
    pub const ANTI_SPOOFING: u32 = 1 << 0;
    /// All traffic is dropped. Causes: no known pod has this interface, and the agent runs with
    /// `--unknown-pods deny`; or the interface is in conflict with another interface.
    pub const UNKNOWN: u32 = 1 << 1;
    /// Some entries of this endpoint are missing: they did not fit into a map, or the pod's policies are still being
    /// compiled. A packet that no entry allows is dropped with the reason `tables-incomplete`.
    pub const INCOMPLETE: u32 = 1 << 2;
}
