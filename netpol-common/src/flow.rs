//! Flows: connections that have a verdict already.

use core::mem::size_of;

use bytemuck::{Pod, Zeroable};

use crate::{Generation, IfIndex, protocol};

/// Key of `FLOWS_V4`, `FLOWS_V6` and the flow tables of endpoints. `A` is the address, of 4 or 16 bytes. The key is
/// from the pod's point of view, so that both directions of a flow have the same key.
///
/// For protocols without ports, both ports are zero. ICMP echo has its identifier as `pod_port`, and its `remote_port`
/// is 0 if the pod sends the requests, and 1 if the remote does; so a reply never admits a request. Other ICMP messages
/// have no flows.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct FlowKey<A> {
    /// The pod's veth interface. A flow of one pod never admits a packet at another pod.
    pub ifindex: IfIndex,
    /// The pod's address.
    pub pod_address: A,
    /// The remote address.
    pub remote_address: A,
    /// In network byte order.
    pub pod_port: [u8; 2],
    /// In network byte order.
    pub remote_port: [u8; 2],
    /// IP protocol number.
    pub protocol: u8,
    /// Always zero.
    pub zero: [u8; 3],
}

const _: () = assert!(size_of::<FlowKey<[u8; 4]>>() == 20 && size_of::<FlowKey<[u8; 16]>>() == 44);

/// Value of `FLOWS_V4`, `FLOWS_V6` and the flow tables of endpoints.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct FlowEntry {
    /// The endpoint's generation when the flow was evaluated.
    pub generation: Generation,
    /// The kernel's jiffies at the last packet, low 32 bits. Written at most once a second, so it can be a second late.
    pub last_used: u32,
    /// The direction of the packet that initiated the flow: a [`crate::Direction`] code.
    pub initiator: u8,
    /// State bits, see [`flow_state`].
    pub state: u8,
    /// The source endpoint ID of the remote's packets, if the remote is another pod of this node. 0 if there was none
    /// yet. [`ANY_REMOTE`] if the remote is a Service address, whose packets come from any of its backends.
    pub remote_endpoint: u16,
}

const _: () = assert!(size_of::<FlowEntry>() == 12);

/// The [`FlowEntry::remote_endpoint`] of a flow to a Service address. No endpoint has this ID.
pub const ANY_REMOTE: u16 = u16::MAX;

/// Bits of [`FlowEntry::state`].
pub mod flow_state {
    /// The other side has replied.
    pub const REPLIED: u8 = 1 << 0;
    /// TCP: the initiator sent FIN. For this and the next two, see [`super::looks_closed`].
    pub const INITIATOR_FIN: u8 = 1 << 1;
    /// TCP: the other side sent FIN.
    pub const REPLIER_FIN: u8 = 1 << 2;
    /// TCP: either side sent RST.
    pub const RESET: u8 = 1 << 3;
    /// The remote initiated the flow, and the local node sent the packet itself: [`crate::Attempt::ingress_ifindex`]
    /// was 0. Stored, because a reply that is evaluated again does not show this.
    pub const FROM_NODE: u8 = 1 << 4;
    /// The pod itself initiated the flow (hairpin): [`crate::Attempt::source_endpoint`] was its own endpoint ID.
    pub const HAIRPIN: u8 = 1 << 5;
    /// The pod initiated the flow to an address that is translated, or was when the flow started. Each packet is
    /// rechecked post-DNAT.
    pub const RECHECK: u8 = 1 << 6;
}

/// Idle timeouts of flows, in seconds. Linux conntrack keeps most flows as long or longer. A flow that outlives its
/// entry is evaluated again, in the direction of its next packet.
///
/// FIN and RST do not shorten the timeout: an endpoint ignores those outside its window (RFC 5961), and the window is
/// not known here.
pub mod flow_timeout {
    use super::flow_state;
    use crate::protocol;

    /// TCP, with replies.
    pub const TCP_ESTABLISHED: u32 = 24 * 3600;
    /// TCP, without a reply yet.
    pub const TCP_UNREPLIED: u32 = 60;
    /// UDP, with packets from both sides.
    pub const UDP_REPLIED: u32 = 180;
    /// UDP, with packets from one side.
    pub const UDP_UNREPLIED: u32 = 60;
    /// ICMP echo.
    pub const ICMP: u32 = 30;
    /// SCTP, which sends heartbeats, and all other protocols.
    pub const OTHER: u32 = 600;
    /// Seconds without an allowed packet after which the side that did not initiate a revoked flow can start one with
    /// the same addresses and ports, if the protocol does not show which packet starts a flow. After this time its
    /// packets are not replies to anything that was allowed before: QUIC connections and one-sided UDP flows in
    /// conntrack do not last longer.
    pub const REVERSAL: u32 = 30;
    /// The shortest timeout.
    pub const SHORTEST: u32 = ICMP;

    /// Returns the timeout of a flow in this state.
    #[inline(always)]
    pub const fn of(protocol: u8, state: u8) -> u32 {
        let answered = state & flow_state::REPLIED != 0;
        match protocol {
            protocol::TCP if answered => TCP_ESTABLISHED,
            protocol::TCP => TCP_UNREPLIED,
            protocol::UDP if answered => UDP_REPLIED,
            protocol::UDP => UDP_UNREPLIED,
            protocol::ICMP | protocol::ICMPV6 => ICMP,
            _ => OTHER,
        }
    }

    /// TCP: both sides sent FIN, or one sent RST.
    pub const TCP_CLOSED: u32 = 60;
    /// TCP: one side sent FIN.
    pub const TCP_HALF_CLOSED: u32 = 3600;

    /// Returns the seconds without a packet after which the flow table need not keep room for a flow in this state. The
    /// flow stays known longer if there is room.
    pub const fn of_room(protocol: u8, state: u8) -> u32 {
        if super::looks_closed(protocol, state) {
            TCP_CLOSED
        } else if protocol == protocol::TCP && state & (flow_state::INITIATOR_FIN | flow_state::REPLIER_FIN) != 0 {
            TCP_HALF_CLOSED
        } else {
            of(protocol, state)
        }
    }
}

/// Returns whether a connection looks closed: both sides sent FIN, or one sent RST. No verdict depends on it, because
/// these packets may be forged.
pub const fn looks_closed(protocol: u8, state: u8) -> bool {
    const BOTH: u8 = flow_state::INITIATOR_FIN | flow_state::REPLIER_FIN;
    protocol == protocol::TCP && (state & BOTH == BOTH || state & flow_state::RESET != 0)
}

/// Key of `FRAGMENTS_V4` and `FRAGMENTS_V6`: the fields that all fragments of a datagram have in common.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct FragmentKey<A> {
    /// The pod's veth interface.
    pub ifindex: IfIndex,
    /// The IP identification, in the packet's byte order.
    pub identification: u32,
    /// Source address of the packet.
    pub source: A,
    /// Destination address of the packet.
    pub destination: A,
    /// IP protocol number. Always 44 for IPv6, which identifies datagrams without it (RFC 8200, 4.5).
    pub protocol: u8,
    /// A [`crate::Direction`] code.
    pub direction: u8,
    /// Always zero.
    pub zero: [u8; 2],
}

const _: () = assert!(size_of::<FragmentKey<[u8; 4]>>() == 20 && size_of::<FragmentKey<[u8; 16]>>() == 44);

/// Value of `FRAGMENTS_V4` and `FRAGMENTS_V6`: the fields that only the first fragment has.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct FragmentEntry {
    /// In network byte order.
    pub source_port: [u8; 2],
    /// In network byte order.
    pub destination_port: [u8; 2],
    /// The kernel's jiffies at the first fragment, low 32 bits.
    pub seen: u32,
    /// IP protocol number, which later IPv6 fragments need not have.
    pub protocol: u8,
    /// Always zero.
    pub zero: [u8; 3],
}

const _: () = assert!(size_of::<FragmentEntry>() == 12);

macro_rules! pod_by_family {
    ($($name:ident),*) => {$(
        // SAFETY: `repr(C)`, all fields are `Pod`, and the sizes asserted above leave no room for padding.
        unsafe impl Zeroable for $name<[u8; 4]> {}
        // SAFETY: as above.
        unsafe impl Zeroable for $name<[u8; 16]> {}
        // SAFETY: as above.
        unsafe impl Pod for $name<[u8; 4]> {}
        // SAFETY: as above.
        unsafe impl Pod for $name<[u8; 16]> {}
    )*};
}
pod_by_family!(FlowKey, FragmentKey);
