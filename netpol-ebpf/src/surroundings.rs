//! What the engine needs around it: the packet, the tables, a clock, and someone to tell.

use netpol_common::{
    Address, DenialSet, DenyEvent, Direction, Endpoint, EventBudget, FlowEntry, FlowKey, FragmentEntry, FragmentKey,
    MAX_ENDPOINT_ID, NeighborBudget, RECHECK, Reason, Tables,
};

use crate::case::Case;
use crate::detour::{self, Content, Quoted};
use crate::{Bytes, Slot, Window, denied, guard, packet, process};

/// One packet at one interface, and everything that is looked up or recorded for it.
pub trait Surroundings: Family<[u8; 4]> + Family<[u8; 16]> + Copy {
    /// The first `N` bytes of the frame, where they lie at hand. `None` says nothing: [`Self::load`] may still find them.
    fn window<const N: usize>(&self) -> Option<Window<'_, N>>;
    /// `N` bytes from any offset of the frame; `None` where it ends before.
    fn load<const N: usize>(&self, offset: u32) -> Option<Bytes<N>>;
    /// Length of the frame in bytes.
    fn length(&self) -> u32;
    /// The interface this packet is judged for.
    fn ifindex(&self) -> u32;
    /// The interface it came in by; 0: this node originated it.
    fn ingress_ifindex(&self) -> u32;
    /// What the packet carries: a source endpoint ID, and [`RECHECK`].
    fn carried(&self) -> u32;
    /// Has the packet carry that.
    fn carry(&self, word: u32);
    /// Its source endpoint ID: [`Endpoint::id`] of the pod of this node that sent it; 0: none.
    #[inline(always)]
    fn sender(&self) -> u32 {
        self.carried() & MAX_ENDPOINT_ID
    }
    /// Whether it is to be evaluated again after address translation.
    #[inline(always)]
    fn wants_recheck(&self) -> bool {
        self.carried() & RECHECK != 0
    }
    /// The Ethernet type of a packet that has no link header, as on tunnels; `None`: it has one.
    fn bare_type(&self) -> Option<u16> {
        None
    }
    /// Whether this is past the place where Services send packets on, rather than at the sender's veth. [`Self::ifindex`] is
    /// the sender's all the same.
    fn is_behind(&self) -> bool;
    /// The endpoint at [`Self::ifindex`].
    fn endpoint(&self) -> Option<&Endpoint>;
    /// The endpoint with this ID.
    fn endpoint_of(&self, id: u32) -> Option<&Endpoint>;
    /// The state that bounds an endpoint's neighbor discovery.
    fn neighbor_budget(&self, endpoint: u32) -> Option<Slot<'_, NeighborBudget>>;
    /// Low 32 bits of jiffies.
    fn now(&self) -> u32;
    /// Jiffies per second.
    fn hz(&self) -> u32;
    /// Nanoseconds since boot, for people.
    fn boot_ns(&self) -> u64;
    /// Counts the packet.
    fn count(&self, endpoint: u32, direction: Direction, reason: Reason);
    /// The places that a denied flow can have; any index is one.
    fn denials(&self, index: u32) -> Option<Slot<'_, DenialSet>>;
    /// What [`netpol_common::event_budget`] numbers.
    fn event_budget(&self, index: u32) -> Option<Slot<'_, EventBudget>>;
    /// A word of the random key that denied flows are hashed with, below [`netpol_common::DENIAL_KEY_WORDS`].
    fn denial_key(&self, word: usize) -> u32;
    /// Whether the frame is for an Ethernet group address: multicast or broadcast.
    fn is_group(&self) -> bool;
    /// Reports a denied packet, or counts that it could not.
    fn emit(&self, event: &DenyEvent);
    /// `denied::report`, or where that is a function of its own, that; so with the next.
    #[inline(always)]
    fn report(self, direction: Direction, reason: Reason) {
        denied::report(self, direction, reason);
    }
    /// Whether a denied packet makes an event, and how many of its flow made none.
    #[inline(always)]
    fn limit(self, hash: u64, budget: u32) -> u64 {
        denied::limit(self, hash, budget)
    }
    /// `detour::find`, or where that is a function of its own, that; so with the next three, and with the first two of
    /// [`Family`].
    #[inline(always)]
    fn find(self, direction: Direction) -> Content {
        detour::find(self, direction)
    }
    /// Behind: whether a plain packet belongs to a flow that was judged where it goes. Of all others that says nothing.
    #[inline(always)]
    fn is_known(self) -> bool {
        process::is_known(self)
    }
    /// Walks IPv6 extension headers.
    #[inline(always)]
    fn walk(self, start: u32, first: u8) -> u64 {
        packet::walk(&self, start, first)
    }
    /// Checks an ARP packet from a pod, see [`guard::arp`]; returns the reason's code.
    #[inline(always)]
    fn check_arp(self, start: u32) -> u32 {
        guard::arp(&self, start) as u32
    }
    /// Checks a message of neighbor discovery from a pod, see [`guard::discovery`]; returns the reason's code.
    #[inline(always)]
    fn check_discovery(self, start: u32, payload: u32) -> u32 {
        guard::discovery(&self, start, payload) as u32
    }
    /// Whether a frame towards a pod is for another host, see [`guard::is_for_another`].
    #[inline(always)]
    fn is_for_another(self) -> bool {
        self.endpoint().is_some_and(|endpoint| guard::is_for_another(&self, endpoint))
    }
    /// Whether the source address of a packet that left its pod is spoofed, see [`guard::is_spoofed`].
    #[inline(always)]
    fn is_spoofed(self) -> bool {
        guard::is_spoofed(&self)
    }
    /// Reads a transport header.
    #[inline(always)]
    fn transport(self, offset: u32, protocol: u8, quoted: bool) -> u64 {
        packet::read_packed(&self, offset, protocol, quoted)
    }
    /// The value itself, but to the verifier anything within the mask: where paths meet again that differ only in it, the
    /// verifier then looks at the rest once and not once for each.
    #[inline(always)]
    fn blur<const MASK: i32>(&self, value: u8) -> u8 {
        value
    }
}

/// The tables of one address family.
pub trait Family<A>: Tables<A> {
    /// Judges the IP packet at an offset of the frame. `None`: it is an ICMP error, and it was not asked
    /// yet what it quotes.
    fn judge_ip(self, direction: Direction, start: u32, quoted: Quoted) -> Option<Reason>;
    /// Judges the ICMP error in the IP packet at an offset of the frame by the flow that it quotes a packet of.
    fn judge_quoted(self, direction: Direction, start: u32) -> Quoted;
    /// The verdict of the flow that the packet belongs to; where it belongs to none, how its source address is checked. Ports are
    /// as in the flow's key, bits are those of the case from the protocol on. Packed by `detour::recall`.
    fn recall(self, direction: Direction, start: u32, ports: u32, bits: u32) -> u64;
    /// Evaluates a known flow again, in its opener's direction; whether it is still allowed. Its packet's IP header is at an offset of the
    /// frame; ports are as in its key, and the word is packed by `verdict::Recheck`.
    fn is_still_allowed(self, start: u32, ports: u32, word: u32) -> bool;
    /// Decides a case, counts it, and tells if it is denied.
    fn settle(self, direction: Direction, case: Case) -> Reason;
    /// What holds for a fragment.
    fn resolve(self, direction: Direction, start: u32, identification: u32, said: u64, first: bool) -> u64;
    /// Remembers an allowed first fragment.
    fn record(self, direction: Direction, start: u32, identification: u32, said: u64);
    /// What is known of a flow of this endpoint.
    fn flow(&self, endpoint: &Endpoint, key: &FlowKey<A>) -> Option<Slot<'_, FlowEntry>>;
    /// Records a flow of this endpoint, in place of one that is there where it `replaces`; whether it is recorded.
    fn insert_flow(&self, endpoint: &Endpoint, key: &FlowKey<A>, entry: &FlowEntry, replaces: bool) -> bool;
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
    /// Its words from the first byte on, for hashing; zeros after the last.
    fn words(&self) -> [u32; 4];
    /// A flow's key, put together from whole words: field by field, the compiler would write it byte by byte. `ports` is as
    /// both lie in the key.
    fn flow_key(ifindex: u32, pod: Self, remote: Self, ports: u32, protocol: u8) -> FlowKey<Self>;
}

impl PacketAddress for [u8; 4] {
    const FAMILY: u8 = 4;

    #[inline(always)]
    fn belongs_to(&self, endpoint: &Endpoint) -> bool {
        !self.is_zero() && u32::from_ne_bytes(*self) == u32::from_ne_bytes(endpoint.address_v4)
    }

    #[inline(always)]
    fn widen(&self) -> [u8; 16] {
        bytemuck::cast([u32::from_ne_bytes(*self), 0, 0, 0])
    }

    #[inline(always)]
    fn words(&self) -> [u32; 4] {
        [u32::from_ne_bytes(*self), 0, 0, 0]
    }

    #[inline(always)]
    fn flow_key(ifindex: u32, pod: Self, remote: Self, ports: u32, protocol: u8) -> FlowKey<Self> {
        let (pod, remote) = (u32::from_ne_bytes(pod), u32::from_ne_bytes(remote));
        bytemuck::cast([ifindex, pod, remote, ports, u32::from(protocol).to_le()])
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
    fn words(&self) -> [u32; 4] {
        bytemuck::cast(*self)
    }

    #[inline(always)]
    fn flow_key(ifindex: u32, pod: Self, remote: Self, ports: u32, protocol: u8) -> FlowKey<Self> {
        let (pod, remote): ([u32; 4], [u32; 4]) = (bytemuck::cast(pod), bytemuck::cast(remote));
        let protocol = u32::from(protocol).to_le();
        bytemuck::cast([
            ifindex, pod[0], pod[1], pod[2], pod[3], remote[0], remote[1], remote[2], remote[3], ports, protocol,
        ])
    }
}

/// One round of a multiplicative hash: spreads every bit upwards and folds the top back down.
#[inline(always)]
pub(crate) const fn mix(bits: u64) -> u64 {
    let spread = bits.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    spread ^ (spread >> 32)
}
