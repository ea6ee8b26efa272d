//! What the engine needs around it: the packet, the tables, a clock, and someone to tell.

use netpol_common::{
    Address, Denial, DenyEvent, Direction, Endpoint, FlowEntry, FlowKey, FragmentEntry, FragmentKey, Reason, Tables,
};

use crate::{Slot, Window};

/// One packet at one interface, and everything that is looked up or recorded for it.
pub trait Surroundings: Family<[u8; 4]> + Family<[u8; 16]> {
    /// The first `N` bytes of the frame, where they lie at hand. `None` says nothing: [`Self::load`] may still find them.
    fn window<const N: usize>(&self) -> Option<Window<'_, N>>;
    /// `N` bytes from any offset of the frame; `None` where it ends before.
    fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]>;
    /// Length of the frame in bytes.
    fn length(&self) -> u32;
    /// The interface this packet is at.
    fn ifindex(&self) -> u32;
    /// The interface it came in by; 0: this node originated it.
    fn ingress_ifindex(&self) -> u32;
    /// The endpoint at [`Self::ifindex`].
    fn endpoint(&self) -> Option<&Endpoint>;
    /// Low 32 bits of jiffies.
    fn now(&self) -> u32;
    /// Jiffies per second.
    fn hz(&self) -> u32;
    /// Nanoseconds since boot, for people.
    fn boot_ns(&self) -> u64;
    /// Counts the packet.
    fn count(&self, endpoint: u32, direction: Direction, reason: Reason);
    /// The slot that remembers a denied flow.
    fn denial(&self, fingerprint: u64) -> Option<Slot<'_, Denial>>;
    /// Tells of a denied packet, or counts that it could not.
    fn emit(&self, event: &DenyEvent);
    /// The value itself, but to the verifier anything within the mask: where paths meet again that differ only in it, the
    /// verifier then looks at the rest once and not once for each.
    #[inline(always)]
    fn blur<const MASK: i32>(&self, value: u8) -> u8 {
        value
    }
}

/// The tables of one address family.
pub trait Family<A>: Tables<A> {
    /// What is known of a flow.
    fn flow(&self, key: &FlowKey<A>) -> Option<Slot<'_, FlowEntry>>;
    /// Records a flow; whether there was room.
    fn insert_flow(&self, key: &FlowKey<A>, entry: &FlowEntry) -> bool;
    /// What a datagram's first fragment said.
    fn fragment(&self, key: &FragmentKey<A>) -> Option<FragmentEntry>;
    /// Records a first fragment, where there is room.
    fn insert_fragment(&self, key: &FragmentKey<A>, entry: &FragmentEntry);
}

/// An address as the engine compares and reports it.
pub(crate) trait PacketAddress: Address {
    /// 4 or 6.
    const FAMILY: u8;
    /// Whether the endpoint may send from it, unspecified addresses aside.
    fn belongs_to(&self, endpoint: &Endpoint) -> bool;
    /// As events carry it.
    fn widen(&self) -> [u8; 16];
    /// Its words, for hashing.
    fn fold(&self, seed: u64) -> u64;
}

impl PacketAddress for [u8; 4] {
    const FAMILY: u8 = 4;

    #[inline(always)]
    fn belongs_to(&self, endpoint: &Endpoint) -> bool {
        !self.is_zero() && u32::from_ne_bytes(*self) == u32::from_ne_bytes(endpoint.address_v4)
    }

    #[inline(always)]
    fn widen(&self) -> [u8; 16] {
        let mut wide = [0; 16];
        wide[..4].copy_from_slice(self);
        wide
    }

    #[inline(always)]
    fn fold(&self, seed: u64) -> u64 {
        mix(seed ^ u64::from(u32::from_ne_bytes(*self)))
    }
}

impl PacketAddress for [u8; 16] {
    const FAMILY: u8 = 6;

    #[inline(always)]
    fn belongs_to(&self, endpoint: &Endpoint) -> bool {
        let own = u128::from_ne_bytes(*self);
        own != 0 && (own == u128::from_ne_bytes(endpoint.address_v6) || own == u128::from_ne_bytes(endpoint.link_local))
    }

    #[inline(always)]
    fn widen(&self) -> [u8; 16] {
        *self
    }

    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "the two halves")]
    fn fold(&self, seed: u64) -> u64 {
        let bits = u128::from_ne_bytes(*self);
        mix(mix(seed ^ bits as u64) ^ (bits >> 64) as u64)
    }
}

/// One round of a multiplicative hash: spreads every bit upwards and folds the top back down.
#[inline(always)]
pub(crate) const fn mix(bits: u64) -> u64 {
    let spread = bits.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    spread ^ (spread >> 32)
}
