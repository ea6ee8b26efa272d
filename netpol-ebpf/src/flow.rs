//! Flows: keys, state and timeouts.

pub use netpol_common::flow_timeout as timeout;
use netpol_common::{Direction, EndpointVersion, FlowEntry, FlowKey, flow_state, protocol};

use crate::context::PacketAddress;
use crate::packet::{Fragment, Icmp, Packet, Plain, TcpFlags, Transport};
use crate::slot::{Slot, field};

/// The relation of a packet to the flow table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// The packet belongs to a flow, or initiates one.
    Member,
    /// The packet may belong to a flow, but does not initiate one. Such a packet is an echo reply, or a later fragment
    /// (not the first one of its datagram) in either direction. If an echo reply created a flow, this flow would allow
    /// echo requests.
    ReplyOnly,
    /// ICMP other than echo has no flows: each packet is evaluated.
    NoFlow,
}

/// Returns the packet's role, and the two ports in its flow's key: the pod's port and the remote port.
#[inline(always)]
pub(crate) fn identify<A: PacketAddress>(
    direction: Direction,
    packet: &Packet<A>,
    icmp: Option<Icmp>,
) -> (Role, ([u8; 2], [u8; 2])) {
    let Transport { source_port, destination_port, .. } = packet.transport;
    let role = match icmp {
        None | Some(Icmp::EchoRequest) => Role::Member,
        Some(Icmp::EchoReply) => Role::ReplyOnly,
        Some(Icmp::Error | Icmp::Discovery | Icmp::Other) => Role::NoFlow,
    };
    // For echo, `destination_port` is the ICMP identifier. The remote port is 1 if the remote side sends the requests,
    // so that pings in the two directions are separate flows.
    let ports = if icmp.is_some() {
        let remote_requests = (direction == Direction::Ingress) == (role == Role::Member);
        (destination_port, [0, u8::from(remote_requests)])
    } else {
        match direction {
            Direction::Ingress => (destination_port, source_port),
            Direction::Egress => (source_port, destination_port),
        }
    };
    // A later fragment does not initiate a flow: the first fragment of its datagram did.
    let later = packet.fragment == Fragment::LATER;
    (if later && role == Role::Member { Role::ReplyOnly } else { role }, ports)
}

/// Packs both ports as they are in a flow's key.
#[inline(always)]
pub(crate) const fn ports(pod: [u8; 2], remote: [u8; 2]) -> u32 {
    (u16::from_ne_bytes(pod) as u32).to_le() | ((u16::from_ne_bytes(remote) as u32) << 16).to_le()
}

/// Returns the pod's address and the remote address of a packet in this direction.
#[inline(always)]
pub(crate) fn pod_and_remote<A>(direction: Direction, source: A, destination: A) -> (A, A) {
    match direction {
        Direction::Ingress => (destination, source),
        Direction::Egress => (source, destination),
    }
}

/// Returns the key of the flow of a plain packet (a packet that the fast path handles, see [`Plain`]). The direction is
/// a const generic, so that building the key needs no branch.
#[inline(always)]
pub(crate) fn plain_key<const EGRESS: bool, A: PacketAddress>(ifindex: u32, packet: &Plain<A>) -> FlowKey<A> {
    let (pod_address, remote_address, pod_port, remote_port) = if EGRESS {
        (packet.source, packet.destination, packet.source_port, packet.destination_port)
    } else {
        (packet.destination, packet.source, packet.destination_port, packet.source_port)
    };
    A::flow_key(ifindex, pod_address, remote_address, ports(pod_port, remote_port), packet.protocol)
}

/// The fields of a known flow.
#[derive(Clone, Copy)]
pub(crate) struct KnownFlow {
    pub(crate) version: EndpointVersion,
    pub(crate) last_used: u32,
    pub(crate) initiator: Direction,
    pub(crate) state: u8,
}

impl KnownFlow {
    /// Reads a flow.
    #[inline(always)]
    pub(crate) fn read(slot: Slot<'_, FlowEntry>) -> Self {
        let initiator =
            if slot.read(field!(FlowEntry, initiator)) == 0 { Direction::Ingress } else { Direction::Egress };
        Self {
            version: slot.read(field!(FlowEntry, version)),
            last_used: slot.read(field!(FlowEntry, last_used)),
            initiator,
            state: slot.read(field!(FlowEntry, state)),
        }
    }

    /// Returns whether the flow has not timed out.
    #[inline(always)]
    pub(crate) fn is_alive(&self, protocol: u8, now: u32, hz: u32) -> bool {
        let idle = now.wrapping_sub(self.last_used);
        idle < timeout::SHORTEST * hz || idle < timeout::of(protocol, self.state) * hz
    }

    /// Returns whether a packet that matches a revoked flow (one that policies no longer allow) may belong to a new
    /// flow in the opposite direction. For protocols without a handshake (UDP), the replying side of the revoked flow
    /// may have started another flow, and the policy of that direction may allow it.
    #[inline(always)]
    pub(crate) fn may_belong_to_opposite_flow(&self, direction: Direction, protocol: u8) -> bool {
        direction != self.initiator && !protocol::has_handshake(protocol)
    }

    /// For a packet for which [`Self::may_belong_to_opposite_flow`] is true: returns whether the packet can start the
    /// flow in the opposite direction. This is the case if no packet of the revoked flow was allowed in the last
    /// `REVERSAL` seconds. After this time, the packet no longer counts as a reply.
    #[inline(always)]
    pub(crate) fn may_start_opposite_flow(&self, now: u32, hz: u32) -> bool {
        now.wrapping_sub(self.last_used) >= timeout::REVERSAL * hz
    }

    /// Updates the time of the last packet of a flow that has to be evaluated again. For protocols without a handshake,
    /// only allowed packets extend the lifetime of a flow, so the time of such a flow is not updated here.
    #[inline(always)]
    pub(crate) fn refresh_stale(&self, slot: Slot<'_, FlowEntry>, protocol: u8, now: u32, hz: u32) {
        if protocol::has_handshake(protocol) {
            self.refresh(slot, now, hz);
        }
    }

    /// Returns whether each packet of the flow is rechecked post-DNAT.
    #[inline(always)]
    pub(crate) const fn needs_recheck(&self) -> bool {
        self.state & flow_state::RECHECK != 0
    }

    /// Returns whether replies may come from any endpoint. This is the case if the pod initiated the flow, and the flow
    /// entry stores no remote endpoint. The destination of such a flow may be a Service, so any backend may send the
    /// replies.
    #[inline(always)]
    pub(crate) fn accepts_any_remote(&self, slot: Slot<'_, FlowEntry>) -> bool {
        remote_endpoint(slot) == 0 && self.initiator == Direction::Egress
    }

    /// Updates the flow for a packet. Writes only what changes, because the entry is shared between CPUs.
    #[inline(always)]
    pub(crate) fn touch(&self, slot: Slot<'_, FlowEntry>, direction: Direction, flags: TcpFlags, now: u32, hz: u32) {
        let state = self.state_after(direction, flags);
        if state != self.state {
            slot.write(field!(FlowEntry, state), state);
        }
        self.refresh(slot, now, hz);
    }

    /// Updates the time of the last packet, at most once a second.
    #[inline(always)]
    pub(crate) fn refresh(&self, slot: Slot<'_, FlowEntry>, now: u32, hz: u32) {
        if now.wrapping_sub(self.last_used) >= hz {
            slot.write(field!(FlowEntry, last_used), now);
        }
    }

    /// Returns the state after a packet of the flow.
    #[inline(always)]
    pub(crate) fn state_after(&self, direction: Direction, flags: TcpFlags) -> u8 {
        let is_reply = direction != self.initiator;
        let mut state = self.state | tcp_state(flags, is_reply);
        if is_reply {
            state |= flow_state::REPLIED;
        }
        state
    }
}

/// Returns the [`FlowEntry::remote_endpoint`].
#[inline(always)]
pub(crate) fn remote_endpoint(slot: Slot<'_, FlowEntry>) -> u32 {
    u32::from(slot.read(field!(FlowEntry, remote_endpoint)))
}

/// Stores the source endpoint ID of packets from the remote side.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "16 bits")]
pub(crate) fn set_remote_endpoint(slot: Slot<'_, FlowEntry>, endpoint: u32) {
    slot.write(field!(FlowEntry, remote_endpoint), endpoint as u16);
}

/// Stores the result of an evaluation: version, initiator, state and remote endpoint are replaced in one step, so that
/// no other CPU combines the new version with an old state.
#[inline(always)]
pub(crate) fn set_evaluated(slot: Slot<'_, FlowEntry>, known: &KnownFlow, remote_endpoint: u16) {
    let [low, high] = remote_endpoint.to_ne_bytes();
    let rest = u32::from_ne_bytes([known.initiator as u8, known.state, low, high]);
    slot.write(field!(FlowEntry, last_used), known.last_used);
    slot.write_first_word(bytemuck::cast([known.version.0, rest]));
}

/// Returns whether the local node or the pod itself initiated the flow to the pod. Packets of such flows need more
/// checks.
#[inline(always)]
pub(crate) fn is_local_or_hairpin(slot: Slot<'_, FlowEntry>) -> bool {
    slot.read(field!(FlowEntry, state)) & (flow_state::FROM_NODE | flow_state::HAIRPIN) != 0
}

/// Returns the state bits for a packet's flags. The flags are zero for all protocols except TCP.
#[inline(always)]
pub(crate) const fn tcp_state(flags: TcpFlags, is_reply: bool) -> u8 {
    let mut state = 0;
    if flags.has(TcpFlags::FIN) {
        state |= if is_reply { flow_state::RESPONDER_FIN } else { flow_state::INITIATOR_FIN };
    }
    if flags.has(TcpFlags::RST) {
        state |= flow_state::RESET;
    }
    state
}

/// Returns whether the packet is a TCP SYN without ACK, or an SCTP INIT. At a pod's veth, such a packet is evaluated
/// without a flow lookup.
#[inline(always)]
pub(crate) fn starts_connection<A>(packet: &Packet<A>) -> bool {
    packet.transport.flags.starts_connection()
}
