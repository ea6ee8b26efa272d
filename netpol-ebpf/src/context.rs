//! The environment of the engine: the packet, the tables, the clock, and the output of events.

use netpol_common::{
    Address, DenialSet, DenyEvent, Direction, Endpoint, EventBudget, FlowEntry, FlowKey, FragmentEntry, FragmentKey,
    MAX_ENDPOINT_ID, NeighborBudget, RECHECK, Reason, Tables,
};

use crate::case::Case;
use crate::slow_path::{self, FrameKind, Quoted};
use crate::{Bytes, Slot, Window, denied, guard, packet, process};

/// A packet at an interface, with everything that is looked up or recorded for it.
///
/// Methods with a default body call a function of the engine. The kernel overrides them with separate BPF functions,
/// which the verifier checks once.
pub trait Context: Family<[u8; 4]> + Family<[u8; 16]> + Copy {
    /// Returns the first `N` bytes of the frame, if they can be read directly. If not, [`Self::load`] may still read
    /// them.
    fn window<const N: usize>(&self) -> Option<Window<'_, N>>;
    /// Loads `N` bytes from any offset of the frame; `None` if the frame is too short.
    fn load<const N: usize>(&self, offset: u32) -> Option<Bytes<N>>;
    /// Returns the length of the frame in bytes.
    fn length(&self) -> u32;
    /// Returns the interface of the endpoint that is evaluated.
    fn ifindex(&self) -> u32;
    /// Returns the interface by which the packet came into the node; 0 if this node sent it.
    fn ingress_ifindex(&self) -> u32;
    /// Returns `skb->tc_index`: the source endpoint ID and [`RECHECK`].
    fn tc_index(&self) -> u32;
    /// Sets `skb->tc_index`.
    fn set_tc_index(&self, word: u32);
    /// Returns the source endpoint ID: the [`Endpoint::id`] of the pod of this node that sent the packet; 0 if there is
    /// none.
    #[inline(always)]
    fn source_endpoint(&self) -> u32 {
        self.tc_index() & MAX_ENDPOINT_ID
    }
    /// Returns whether the packet has to be rechecked post-DNAT.
    #[inline(always)]
    fn wants_recheck(&self) -> bool {
        self.tc_index() & RECHECK != 0
    }
    /// Returns the Ethernet type of a packet without a link header, as on tunnel devices; `None` if it has one.
    fn l3_type(&self) -> Option<u16> {
        None
    }
    /// Returns whether the packet is post-DNAT, rather than at the sender's veth. [`Self::ifindex`] is the sender's in
    /// both cases.
    fn is_post_dnat(&self) -> bool;
    /// Returns the endpoint at [`Self::ifindex`].
    fn endpoint(&self) -> Option<&Endpoint>;
    /// Returns the endpoint with this ID.
    fn endpoint_by_id(&self, id: u32) -> Option<&Endpoint>;
    /// Returns the rate limit of an endpoint's neighbor discovery.
    fn neighbor_budget(&self, endpoint: u32) -> Option<Slot<'_, NeighborBudget>>;
    /// Returns the low 32 bits of jiffies.
    fn now(&self) -> u32;
    /// Returns the jiffies per second.
    fn hz(&self) -> u32;
    /// Returns the nanoseconds since boot, for events.
    fn boot_ns(&self) -> u64;
    /// Counts the packet.
    fn count(&self, endpoint: u32, direction: Direction, reason: Reason);
    /// Returns the set of slots for a denied flow; any index is valid.
    fn denials(&self, index: u32) -> Option<Slot<'_, DenialSet>>;
    /// Returns an event budget, by the index from [`netpol_common::event_budget`].
    fn event_budget(&self, index: u32) -> Option<Slot<'_, EventBudget>>;
    /// Returns a word of the random key for hashing denied flows. The index is below
    /// [`netpol_common::DENIAL_KEY_WORDS`].
    fn denial_key(&self, word: usize) -> u32;
    /// Returns whether the frame is for an Ethernet group address: multicast or broadcast.
    fn is_group(&self) -> bool;
    /// Sends a deny event, or counts it as lost.
    fn emit(&self, event: &DenyEvent);
    /// Reports a denied packet, see `denied::report`.
    #[inline(always)]
    fn report(self, direction: Direction, reason: Reason) {
        denied::report(self, direction, reason);
    }
    /// Decides whether a denied packet causes an event, see `denied::limit`.
    #[inline(always)]
    fn limit(self, hash: u64, budget: u32) -> u64 {
        denied::limit(self, hash, budget)
    }
    /// Determines the kind of a frame, see `slow_path::find`.
    #[inline(always)]
    fn find(self, direction: Direction) -> FrameKind {
        slow_path::find(self, direction)
    }
    /// Post-DNAT: returns whether a plain packet belongs to a flow that was allowed there. Not used for other packets.
    #[inline(always)]
    fn is_known_flow(self) -> bool {
        process::is_known_flow(self)
    }
    /// Reads IPv6 extension headers, see `packet::walk`.
    #[inline(always)]
    fn walk(self, start: u32, first: u8) -> u64 {
        packet::walk(&self, start, first)
    }
    /// Checks an ARP packet from a pod, see [`guard::arp`]. Returns the reason's code.
    #[inline(always)]
    fn check_arp(self, start: u32) -> u32 {
        guard::arp(&self, start) as u32
    }
    /// Checks a neighbor discovery message from a pod, see [`guard::discovery`]. Returns the reason's code.
    #[inline(always)]
    fn check_discovery(self, start: u32, payload: u32) -> u32 {
        guard::discovery(&self, start, payload) as u32
    }
    /// Returns whether a frame to a pod is for another host, see [`guard::is_for_other_host`].
    #[inline(always)]
    fn is_for_other_host(self) -> bool {
        self.endpoint().is_some_and(|endpoint| guard::is_for_other_host(&self, endpoint))
    }
    /// Returns whether a packet that left its pod has an unverified source address, see [`guard::is_unverified`].
    #[inline(always)]
    fn is_unverified(self) -> bool {
        guard::is_unverified(&self)
    }
    /// Reads a transport header, see `packet::read_packed`.
    #[inline(always)]
    fn transport(self, offset: u32, protocol: u8, quoted: bool) -> u64 {
        packet::read_packed(&self, offset, protocol, quoted)
    }
    /// Returns the value itself, but hides it from the verifier, which then knows only the mask. Where code paths join
    /// that differ only in this value, the verifier then checks the code that follows once and not once for each value.
    #[inline(always)]
    fn barrier_within<const MASK: i32>(&self, value: u8) -> u8 {
        value
    }
}

/// The tables and the functions of one address family.
pub trait Family<A>: Tables<A> {
    /// Evaluates the IP packet at an offset of the frame. `None`: it is an ICMP error, and the flow that it quotes was
    /// not looked up yet.
    fn evaluate_ip(self, direction: Direction, start: u32, quoted: Quoted) -> Option<Reason>;
    /// Evaluates the ICMP error in the IP packet at an offset of the frame, by the flow that it quotes.
    fn evaluate_quoted(self, direction: Direction, start: u32) -> Quoted;
    /// Returns the verdict of the packet's flow, or how to check its source address if it has none. `ports` are as in
    /// the flow's key, and `bits` are those of the case from the protocol on. The result is packed by
    /// `slow_path::lookup_flow`.
    fn lookup_flow(self, direction: Direction, start: u32, ports: u32, bits: u32) -> u64;
    /// Evaluates a known flow again, in its initiator's direction, and returns whether it is still allowed. The
    /// packet's IP header is at an offset of the frame, `ports` are as in its key, and `word` is packed by
    /// `verdict::Recheck`.
    #[expect(clippy::wrong_self_convention, reason = "a context is a few words that are passed by value")]
    fn is_still_allowed(self, start: u32, ports: u32, word: u32) -> bool;
    /// Decides a case, and counts the packet.
    fn decide(self, direction: Direction, case: Case) -> Reason;
    /// Returns the protocol and ports of a fragment, see `fragment::resolve`.
    fn resolve(self, direction: Direction, start: u32, identification: u32, info: u64, first: bool) -> u64;
    /// Records an allowed first fragment, see `fragment::record`.
    fn record(self, direction: Direction, start: u32, identification: u32, info: u64);
    /// Returns a flow of this endpoint.
    fn flow(&self, endpoint: &Endpoint, key: &FlowKey<A>) -> Option<Slot<'_, FlowEntry>>;
    /// Records a flow of this endpoint, and returns whether it was recorded. An existing flow is overwritten only if
    /// `replaces` is set.
    fn insert_flow(&self, endpoint: &Endpoint, key: &FlowKey<A>, entry: &FlowEntry, replaces: bool) -> bool;
    /// Returns the fields of a datagram's first fragment.
    fn fragment(&self, key: &FragmentKey<A>) -> Option<FragmentEntry>;
    /// Records a first fragment, if there is room.
    fn insert_fragment(&self, key: &FragmentKey<A>, entry: &FragmentEntry);
}

/// An address, with the operations that the engine needs.
pub(crate) trait PacketAddress: Address {
    /// The IP version: 4 or 6.
    const FAMILY: u8;
    /// Returns whether it is an address of the endpoint. The unspecified address is not.
    fn belongs_to(&self, endpoint: &Endpoint) -> bool;
    /// Returns the address in the format of events.
    fn widen(&self) -> [u8; 16];
    /// Returns its words from the first byte on, for hashing; unused words are zero.
    fn words(&self) -> [u32; 4];
    /// Returns a flow's key, built from whole words, because the compiler would write single fields byte by byte.
    /// `ports` are both ports as in the key.
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

/// Computes one round of a multiplicative hash: it spreads every bit upwards and folds the top back down.
#[inline(always)]
pub(crate) const fn mix(bits: u64) -> u64 {
    let spread = bits.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    spread ^ (spread >> 32)
}
