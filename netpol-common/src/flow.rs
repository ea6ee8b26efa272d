//! Flows: connections with a recorded verdict.

use core::mem::{offset_of, size_of};

use bytemuck::{Pod, Zeroable};

use crate::{EndpointVersion, IfIndex, protocol};

/// Key of `FLOWS_V4`, `FLOWS_V6` and the flow tables of endpoints. `A` is the address, of 4 or 16 bytes. The key is
/// from the pod's point of view, so that both directions of a flow have the same key.
///
/// For protocols without ports, both ports are zero. For ICMP echo, `pod_port` is the identifier. `remote_port` is 0 if
/// the pod sends the requests, and 1 if the remote side does. So pings in the two directions are separate flows, and an
/// allowed ping in one direction does not allow pings in the other. Other ICMP messages have no flows.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct FlowKey<A> {
    /// The pod's veth interface. A flow of one pod never allows a packet at another pod.
    pub ifindex: IfIndex,
    /// The pod's address.
    pub pod_address: A,
    /// The remote address.
    pub remote_address: A,
    /// The pod's port in network byte order.
    pub pod_port: [u8; 2],
    /// The remote port in network byte order.
    pub remote_port: [u8; 2],
    /// IP protocol number.
    pub protocol: u8,
    /// Always zero.
    pub zero: [u8; 3],
}

const _: () = assert!(size_of::<FlowKey<[u8; 4]>>() == 20 && size_of::<FlowKey<[u8; 16]>>() == 44);

/// Value of `FLOWS_V4`, `FLOWS_V6` and the flow tables of endpoints.
///
/// The fields up to `remote_endpoint` are the first eight bytes, so that one write replaces all of them.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct FlowEntry {
    /// The endpoint's version when the flow was evaluated.
    pub version: EndpointVersion,
    /// The direction of the packet that initiated the flow: a [`crate::Direction`] code.
    pub initiator: u8,
    /// State bits, see [`flow_state`].
    pub state: u8,
    /// The source endpoint ID of packets from the remote side. 0 if none of them had an ID yet: only packets from pods
    /// of this node have one. [`ANY_REMOTE`] if the remote address is a Service address: packets from it come from any
    /// backend of the Service.
    pub remote_endpoint: u16,
    /// The kernel's jiffies at the last packet, low 32 bits. Written at most once per second, so it can be up to a
    /// second too old.
    pub last_used: u32,
    /// The kernel's jiffies at the first packet, low 32 bits.
    pub started: u32,
    /// Packets from the initiator. Zero unless the programs count traffic.
    pub sent: Traffic,
    /// Packets to the initiator. Zero unless the programs count traffic.
    pub replies: Traffic,
}

const _: () = assert!(size_of::<FlowEntry>() == 48 && offset_of!(FlowEntry, last_used) == 8);

/// The allowed packets of a flow in one direction. The programs do not add atomically, because atomic additions take
/// several times as long. So if two CPUs process packets of this direction at the same time, one of the packets may not
/// be counted. Usually, one CPU processes all packets of a direction.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Traffic {
    /// Packets. A packet with segmentation offload (GSO) counts once for each segment, if the kernel knows their
    /// number.
    pub packets: u64,
    /// Bytes, from the IP header on. A packet with segmentation offload counts its headers once.
    pub bytes: u64,
}

/// The [`FlowEntry::remote_endpoint`] of a flow to a Service address. No endpoint has this ID.
pub const ANY_REMOTE: u16 = u16::MAX;

/// Bits of [`FlowEntry::state`].
pub mod flow_state {
    /// The responder (the side that did not initiate the flow) has replied.
    pub const REPLIED: u8 = 1 << 0;
    /// TCP: the initiator sent FIN. [`super::is_closed`] describes the use of this bit and the next two.
    pub const INITIATOR_FIN: u8 = 1 << 1;
    /// TCP: the responder sent FIN.
    pub const RESPONDER_FIN: u8 = 1 << 2;
    /// TCP: either side sent RST.
    pub const RESET: u8 = 1 << 3;
    /// The local node itself initiated the flow to the pod: [`crate::Attempt::ingress_ifindex`] was 0. This is stored,
    /// because it cannot be derived from a reply when the flow is evaluated again.
    pub const FROM_NODE: u8 = 1 << 4;
    /// The pod initiated a flow to itself (hairpin): [`crate::Attempt::is_from`] was true.
    pub const HAIRPIN: u8 = 1 << 5;
    /// The pod initiated the flow to an address that may be translated. Each packet is rechecked (evaluated again)
    /// post-DNAT.
    pub const RECHECK: u8 = 1 << 6;
    /// The last packet was denied, because the policies that apply now do not allow the flow. Only set if the programs
    /// count traffic. No verdict depends on it.
    pub const REVOKED: u8 = 1 << 7;
}

/// Idle timeouts of flows, in seconds. Linux conntrack keeps most flows as long or longer. If a flow continues after
/// its timeout, it is evaluated as a new flow, in the direction of its next packet.
///
/// FIN and RST do not shorten the timeout. The receiver ignores a FIN or RST outside its TCP window (RFC 5961). The
/// window is not tracked here, so it is not known whether the connection has ended.
pub mod flow_timeout {
    use super::flow_state;
    use crate::protocol;

    /// TCP with replies.
    pub const TCP_ESTABLISHED: u32 = 24 * 3600;
    /// TCP without a reply yet.
    pub const TCP_UNREPLIED: u32 = 60;
    /// UDP with replies.
    pub const UDP_REPLIED: u32 = 180;
    /// UDP without a reply yet.
    pub const UDP_UNREPLIED: u32 = 60;
    /// ICMP echo.
    pub const ICMP: u32 = 30;
    /// SCTP, which sends heartbeats, and all other protocols.
    pub const OTHER: u32 = 600;
    /// For protocols without a handshake: the time from the last allowed packet of a revoked flow until its responder
    /// can start a new flow with the same addresses and ports. After this time, the responder's packets can no longer
    /// be replies to packets that were allowed before. 30 seconds is the usual idle timeout of QUIC, and of UDP without
    /// replies in conntrack.
    pub const REVERSAL: u32 = 30;
    /// The shortest of the timeouts above.
    pub const SHORTEST: u32 = ICMP;

    /// Returns the timeout of a flow in this state.
    #[inline(always)]
    pub const fn of(protocol: u8, state: u8) -> u32 {
        let replied = state & flow_state::REPLIED != 0;
        match protocol {
            protocol::TCP if replied => TCP_ESTABLISHED,
            protocol::TCP => TCP_UNREPLIED,
            protocol::UDP if replied => UDP_REPLIED,
            protocol::UDP => UDP_UNREPLIED,
            protocol::ICMP | protocol::ICMPV6 => ICMP,
            _ => OTHER,
        }
    }

    /// TCP for which [`super::is_closed`] is true; only for [`sizing_timeout`].
    pub const TCP_CLOSED: u32 = 60;
    /// TCP after FIN from one side; only for [`sizing_timeout`].
    pub const TCP_HALF_CLOSED: u32 = 3600;

    /// Returns for how many seconds after its last packet a flow in this state counts as in use. The agent chooses the
    /// size of a flow table by the number of flows in use. A flow that no longer counts stays valid until its timeout,
    /// or until it is evicted.
    pub const fn sizing_timeout(protocol: u8, state: u8) -> u32 {
        if super::is_closed(protocol, state) {
            TCP_CLOSED
        } else if protocol == protocol::TCP && state & (flow_state::INITIATOR_FIN | flow_state::RESPONDER_FIN) != 0 {
            TCP_HALF_CLOSED
        } else {
            of(protocol, state)
        }
    }
}

/// Returns whether a TCP connection looks closed: both sides sent FIN, or one side sent RST. No verdict depends on
/// this, because these packets may be forged.
pub const fn is_closed(protocol: u8, state: u8) -> bool {
    const BOTH: u8 = flow_state::INITIATOR_FIN | flow_state::RESPONDER_FIN;
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
    /// IP protocol number. Always 44 for IPv6: its fragments are identified without the protocol (RFC 8200, 4.5).
    pub protocol: u8,
    /// The direction, a [`crate::Direction`] code.
    pub direction: u8,
    /// Always zero.
    pub zero: [u8; 2],
}

const _: () = assert!(size_of::<FragmentKey<[u8; 4]>>() == 20 && size_of::<FragmentKey<[u8; 16]>>() == 44);

/// Value of `FRAGMENTS_V4` and `FRAGMENTS_V6`: the fields that only the first fragment has.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct FragmentEntry {
    /// Source port in network byte order.
    pub source_port: [u8; 2],
    /// Destination port in network byte order.
    pub destination_port: [u8; 2],
    /// The kernel's jiffies at the first fragment, low 32 bits.
    pub seen: u32,
    /// IP protocol number. Later IPv6 fragments may have another number in their header.
    pub protocol: u8,
    /// Always zero.
    pub zero: [u8; 3],
}

const _: () = assert!(size_of::<FragmentEntry>() == 12);

macro_rules! impl_bytemuck_pod {
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
impl_bytemuck_pod!(FlowKey, FragmentKey);
