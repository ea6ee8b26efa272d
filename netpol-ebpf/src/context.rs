//! What the packet programs use: the packet, the maps, the clocks, and the output of events. In the kernel, these are
//! an skb, BPF maps and BPF helpers. Unit tests use values in memory.

use netpol_common::{
    Address, Direction, Endpoint, EventBudget, EventLimitSet, FlowEntry, FlowEvent, FlowKey, FragmentEntry,
    FragmentKey, MAX_ENDPOINT_ID, NeighborBudget, Reason, Tables,
};

use crate::barrier;
use crate::slot::Slot;
use crate::window::{Bytes, Window};

/// The part of the context that does not depend on the packet: the clocks, and the limits of events. A [`Slot`]
/// gives access to a value in a map.
pub(crate) trait NodeContext: Copy {
    /// Returns the low 32 bits of jiffies.
    fn now(&self) -> u32;
    /// Returns the jiffies per second.
    fn hz(&self) -> u32;
    /// Returns the nanoseconds since boot, for events.
    fn boot_ns(&self) -> u64;
    /// Returns the entry of `DENIALS` that limits the events of a denied flow. `index` is a hash of the flow; only
    /// the low bits of the hash are used. An entry is a set: it has room for several flows with the same index.
    fn denied_event_limits(&self, index: u32) -> Option<Slot<'_, EventLimitSet>>;
    /// Returns the entry of `ALLOWED_FLOWS` that limits the events of an allowed flow, in the same way.
    fn allowed_event_limits(&self, index: u32) -> Option<Slot<'_, EventLimitSet>>;
    /// Returns whether more than half of the ring buffer is filled with events that the agent has not read yet.
    fn is_ring_half_full(&self) -> bool;
    /// Returns the budget at the index from [`netpol_common::event_budget`]. A budget limits the events of an endpoint.
    fn event_budget(&self, index: u32) -> Option<Slot<'_, EventBudget>>;
}

/// A packet at an interface, and access to the maps in which it is looked up or recorded.
pub(crate) trait Context: NodeContext + Family<[u8; 4]> + Family<[u8; 16]> {
    /// Returns the first `N` bytes of the frame, if they can be read directly. If not, [`Self::load`] may still read
    /// them.
    fn window<const N: usize>(&self) -> Option<Window<'_, N>>;
    /// Loads `N` bytes from any offset of the frame; `None` if the frame is too short.
    fn load<const N: usize>(&self, offset: u32) -> Option<Bytes<N>>;
    /// Returns the length of the frame in bytes.
    fn length(&self) -> u32;
    /// Returns the index of an endpoint's interface. The packet is evaluated by the policies of this endpoint.
    fn ifindex(&self) -> u32;
    /// Returns the index of the interface through which the packet came to this node; 0 if this node sent it.
    fn ingress_ifindex(&self) -> u32;
    /// Returns `skb->tc_index`: the source endpoint ID and the recheck mark, [`RECHECK`](netpol_common::RECHECK).
    fn tc_index(&self) -> u32;
    /// Sets `skb->tc_index`.
    fn set_tc_index(&self, word: u32);
    /// Returns the source endpoint ID: the [`Endpoint::id`] of the pod that sent the packet. If no pod of this node
    /// sent the packet, the ID is 0.
    #[inline(always)]
    fn source_endpoint(&self) -> u32 {
        self.tc_index() & MAX_ENDPOINT_ID
    }
    /// Returns the Ethernet type of a packet without a link header, as on tunnel devices. `None`: the packet has a link
    /// header.
    fn l3_type(&self) -> Option<u16> {
        None
    }
    /// Returns whether this is a recheck: a packet from a pod is evaluated again, post-DNAT, by the sender's egress
    /// policy. In a recheck, [`Self::ifindex`] is the sender's interface.
    fn is_post_dnat(&self) -> bool;
    /// Returns the endpoint of the interface [`Self::ifindex`].
    fn endpoint(&self) -> Option<&Endpoint>;
    /// Returns the endpoint with this ID.
    fn endpoint_by_id(&self, id: u32) -> Option<&Endpoint>;
    /// Returns the token bucket that limits an endpoint's ARP, neighbor discovery, multicast listener discovery and
    /// IGMP. `endpoint`: the endpoint ID.
    fn neighbor_budget(&self, endpoint: u32) -> Option<Slot<'_, NeighborBudget>>;
    /// Counts the packet for an endpoint ID.
    fn count(&self, endpoint: u32, direction: Direction, reason: Reason);
    /// Counts, for an endpoint ID, an allowed flow that policies in shadow mode would deny.
    fn count_shadow_denied(&self, endpoint: u32, direction: Direction);
    /// Returns whether allowed flows are reported.
    fn records_allowed(&self) -> bool;
    /// Returns whether nothing is enforced (`--observe`): every packet passes, whatever its verdict is.
    fn observes(&self) -> bool;
    /// Returns whether the packets and bytes of flows are counted.
    fn counts_traffic(&self) -> bool;
    /// Returns the number of segments of a packet with segmentation offload (GSO). Returns 0 for a packet without GSO,
    /// or if the kernel does not know the number of segments.
    fn segments(&self) -> u32;
    /// Returns a word of the random key for hashing flows. `word`: the index of the word, below
    /// [`netpol_common::EVENT_KEY_WORDS`].
    fn event_key(&self, word: usize) -> u32;
    /// Returns whether the frame is for an Ethernet group address: multicast or broadcast.
    fn is_group(&self) -> bool;
    /// Sends an event, or counts it as lost.
    fn emit(&self, event: &FlowEvent);
    /// Returns the value unchanged, but hides it from the verifier, which then assumes any value within the mask. If
    /// several code paths that differ only in this value join here, the verifier checks the code that follows once and
    /// not once for each value.
    #[inline(always)]
    fn barrier_within<const MASK: i32>(&self, value: u8) -> u8 {
        barrier::within::<MASK>(value, self.length())
    }
}

/// The maps of one address family.
pub(crate) trait Family<A>: Tables<A> {
    /// Returns a flow of this endpoint.
    fn flow(&self, endpoint: &Endpoint, key: &FlowKey<A>) -> Option<Slot<'_, FlowEntry>>;
    /// Records a flow of this endpoint, and returns whether it was recorded. An existing flow is overwritten only if
    /// `replaces` is set.
    fn insert_flow(&self, endpoint: &Endpoint, key: &FlowKey<A>, entry: &FlowEntry, replaces: bool) -> bool;
    /// Returns the fields that only the first fragment of a datagram has, such as the ports.
    fn fragment(&self, key: &FragmentKey<A>) -> Option<FragmentEntry>;
    /// Records the fields that only the first fragment of a datagram has, if there is room.
    fn insert_fragment(&self, key: &FragmentKey<A>, entry: &FragmentEntry);
}

/// An address, with the operations that the packet programs need.
pub(crate) trait PacketAddress: Address {
    /// The IP version: 4 or 6.
    const FAMILY: u8;
    /// Returns whether this is an address of the endpoint. Returns false for the unspecified address: in the endpoint,
    /// it stands for a missing address.
    fn belongs_to(&self, endpoint: &Endpoint) -> bool;
    /// Returns the address in the format of events, with zeros after an IPv4 address.
    fn widen(&self) -> [u8; 16];
    /// Returns the words of the address from the first byte on, for hashing. Unused words are zero.
    fn words(&self) -> [u32; 4];
    /// Returns a flow's key. The key is built from whole words, because the compiler would write single fields byte by
    /// byte. `ports` is from [`flow::ports`](crate::flow::ports).
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
        let address = u128::from_ne_bytes(*self);
        address != 0
            && (address == u128::from_ne_bytes(endpoint.address_v6)
                || address == u128::from_ne_bytes(endpoint.link_local))
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
