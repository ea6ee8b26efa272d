//! Flows: what was judged once and need not be judged again.

use core::mem::size_of;

use bytemuck::{Pod, Zeroable};

use crate::{Generation, IfIndex, protocol};

/// Key of `FLOWS_V4`, `FLOWS_V6` and the flow tables of endpoints; `A` is the address, 4 or 16 bytes. Seen from the pod, so that both directions of
/// a flow have the same key.
///
/// Protocols without ports have zeros for ports. ICMP echo has its identifier as `pod_port`, and as `remote_port` who
/// asks: 0 the pod, 1 the remote; so an answer never admits a question. Other ICMP makes no flows.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct FlowKey<A> {
    /// The pod's veth. What one pod opened never admits a packet at another.
    pub ifindex: IfIndex,
    /// The pod's address.
    pub pod_address: A,
    /// The other end's address.
    pub remote_address: A,
    /// Network byte order.
    pub pod_port: [u8; 2],
    /// Network byte order.
    pub remote_port: [u8; 2],
    /// IP protocol number.
    pub protocol: u8,
    /// Always zeros.
    pub zero: [u8; 3],
}

const _: () = assert!(size_of::<FlowKey<[u8; 4]>>() == 20 && size_of::<FlowKey<[u8; 16]>>() == 44);

/// Value of `FLOWS_V4`, `FLOWS_V6` and the flow tables of endpoints.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct FlowEntry {
    /// The endpoint's generation when the flow was judged.
    pub generation: Generation,
    /// Low 32 bits of the kernel's jiffies at the last packet, give or take a second: written at most once per second.
    pub last_used: u32,
    /// The direction of the packet that opened it: a [`crate::Direction`] code.
    pub opener: u8,
    /// See [`flow_state`].
    pub state: u8,
    /// The source endpoint ID that the remote's packets carry: that of another pod of this node. 0: none so far;
    /// [`ANY_REMOTE`]: the remote is a Service's address, whose packets come from any of its backends.
    pub remote_endpoint: u16,
}

const _: () = assert!(size_of::<FlowEntry>() == 12);

/// [`FlowEntry::remote_endpoint`] of a flow to a Service's address. No endpoint has this ID.
pub const ANY_REMOTE: u16 = u16::MAX;

/// Bits of [`FlowEntry::state`].
pub mod flow_state {
    /// The other side has answered.
    pub const ANSWERED: u8 = 1 << 0;
    /// TCP: the opener sent FIN. This and the next two say how a flow looks, see [`super::looks_closed`].
    pub const OPENER_FIN: u8 = 1 << 1;
    /// TCP: the other side sent FIN.
    pub const ANSWERER_FIN: u8 = 1 << 2;
    /// TCP: either side sent RST.
    pub const RESET: u8 = 1 << 3;
    /// The remote opened it, and its packet was this node's own: [`crate::Attempt::ingress_ifindex`] was 0. Kept, because
    /// an answer that has to be judged again does not tell.
    pub const FROM_NODE: u8 = 1 << 4;
    /// The pod itself opened it: [`crate::Attempt::sender`] was its own number.
    pub const FROM_ITSELF: u8 = 1 << 5;
    /// The pod opened it to where others may be behind, or may have been then: each packet is judged again by where it goes then.
    pub const JUDGED_BEHIND: u8 = 1 << 6;
}

/// Seconds without a packet after which a flow is no longer known. Linux' conntrack keeps most for the same time or
/// longer; a flow that outlives its entry is evaluated again, in the direction of its next packet.
///
/// FIN and RST do not shorten it: an endpoint ignores those outside its window (RFC 5961), and nothing here knows which they are.
pub mod flow_timeout {
    use super::flow_state;
    use crate::protocol;

    /// TCP: answered.
    pub const TCP_OPEN: u32 = 24 * 3600;
    /// TCP: not answered yet.
    pub const TCP_UNANSWERED: u32 = 60;
    /// UDP: both sides spoke.
    pub const UDP_ANSWERED: u32 = 180;
    /// UDP: one side spoke.
    pub const UDP_UNANSWERED: u32 = 60;
    /// ICMP echo.
    pub const ICMP: u32 = 30;
    /// SCTP, whose peers send heartbeats, and all others.
    pub const OTHER: u32 = 600;
    /// Seconds without an allowed packet after which the side that did not open a revoked flow may open one with the same addresses and
    /// ports, where the protocol does not show which packet starts a flow. Long enough that what it sends then answers nothing that was
    /// allowed before: QUIC connections and conntrack's one-sided UDP flows do not last longer.
    pub const REVERSAL: u32 = 30;
    /// The shortest of them.
    pub const SHORTEST: u32 = ICMP;

    /// The timeout of a flow in this state.
    #[inline(always)]
    pub const fn of(protocol: u8, state: u8) -> u32 {
        let answered = state & flow_state::ANSWERED != 0;
        match protocol {
            protocol::TCP if answered => TCP_OPEN,
            protocol::TCP => TCP_UNANSWERED,
            protocol::UDP if answered => UDP_ANSWERED,
            protocol::UDP => UDP_UNANSWERED,
            protocol::ICMP | protocol::ICMPV6 => ICMP,
            _ => OTHER,
        }
    }

    /// TCP: both sides sent FIN, or one sent RST.
    pub const TCP_CLOSED: u32 = 60;
    /// TCP: one side sent FIN.
    pub const TCP_HALF_CLOSED: u32 = 3600;

    /// Seconds without a packet after which no room has to be kept for a flow in this state. It is known for longer where there is.
    pub const fn of_room(protocol: u8, state: u8) -> u32 {
        if super::looks_closed(protocol, state) {
            TCP_CLOSED
        } else if protocol == protocol::TCP && state & (flow_state::OPENER_FIN | flow_state::ANSWERER_FIN) != 0 {
            TCP_HALF_CLOSED
        } else {
            of(protocol, state)
        }
    }
}

/// Whether a connection looks closed: both sides sent FIN, or one sent RST. Packets of others may have been forged, so no verdict depends
/// on it.
pub const fn looks_closed(protocol: u8, state: u8) -> bool {
    const BOTH: u8 = flow_state::OPENER_FIN | flow_state::ANSWERER_FIN;
    protocol == protocol::TCP && (state & BOTH == BOTH || state & flow_state::RESET != 0)
}

/// Key of `FRAGMENTS_V4` and `FRAGMENTS_V6`: what the fragments of one datagram have in common.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct FragmentKey<A> {
    /// The pod's veth.
    pub ifindex: IfIndex,
    /// The IP identification, in the packet's byte order.
    pub identification: u32,
    /// Source address of the packet.
    pub source: A,
    /// Destination address of the packet.
    pub destination: A,
    /// IP protocol number. Always 44 for IPv6, whose datagrams are told apart without it (RFC 8200, 4.5).
    pub protocol: u8,
    /// A [`crate::Direction`] code.
    pub direction: u8,
    /// Always zeros.
    pub zero: [u8; 2],
}

const _: () = assert!(size_of::<FragmentKey<[u8; 4]>>() == 20 && size_of::<FragmentKey<[u8; 16]>>() == 44);

/// Value of `FRAGMENTS_V4` and `FRAGMENTS_V6`: what only the first fragment carries.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct FragmentEntry {
    /// Network byte order.
    pub source_port: [u8; 2],
    /// Network byte order.
    pub destination_port: [u8; 2],
    /// Low 32 bits of the kernel's jiffies at the first fragment.
    pub seen: u32,
    /// IP protocol number. IPv6 fragments other than the first need not tell it.
    pub protocol: u8,
    /// Always zeros.
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
