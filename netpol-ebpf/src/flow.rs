//! Flows: their keys, their state, and how long each lives.

pub use netpol_common::flow_timeout as timeout;
use netpol_common::{Direction, FlowEntry, Generation, flow_state, protocol};

use crate::Slot;
use crate::packet::{Fragment, Icmp, Packet, TcpFlags, Transport};
use crate::slot::field;
use crate::surroundings::PacketAddress;

/// What a packet is to the flow table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// It belongs to a flow, or opens one.
    Member,
    /// It belongs to a flow, but opens none: an answer admits no question.
    AnswerOnly,
    /// ICMP other than echo: judged each time.
    Stranger,
}

/// The packet's role, and the ports in its flow's key: the pod's and the remote's.
#[inline(always)]
pub(crate) fn identify<A: PacketAddress>(
    direction: Direction,
    packet: &Packet<A>,
    icmp: Option<Icmp>,
) -> (Role, ([u8; 2], [u8; 2])) {
    let Transport { source_port, destination_port, .. } = packet.transport;
    let role = match icmp {
        None | Some(Icmp::Question) => Role::Member,
        Some(Icmp::Answer) => Role::AnswerOnly,
        Some(Icmp::Error | Icmp::Discovery | Icmp::Other) => Role::Stranger,
    };
    let ports = if icmp.is_some() {
        let remote_asks = (direction == Direction::Ingress) == (role == Role::Member);
        (destination_port, [0, u8::from(remote_asks)])
    } else {
        match direction {
            Direction::Ingress => (destination_port, source_port),
            Direction::Egress => (source_port, destination_port),
        }
    };
    // A later fragment opens nothing: its first fragment did.
    let later = matches!(packet.fragment, Fragment::Later { .. });
    (if later && role == Role::Member { Role::AnswerOnly } else { role }, ports)
}

/// Both ports, as they lie in a key.
#[inline(always)]
pub(crate) const fn ports(pod: [u8; 2], remote: [u8; 2]) -> u32 {
    (u16::from_ne_bytes(pod) as u32).to_le() | ((u16::from_ne_bytes(remote) as u32) << 16).to_le()
}

/// The pod's end of a packet that goes in a direction, and the remote's.
#[inline(always)]
pub(crate) fn pod_and_remote<A>(direction: Direction, source: A, destination: A) -> (A, A) {
    match direction {
        Direction::Ingress => (destination, source),
        Direction::Egress => (source, destination),
    }
}

/// What is read of a known flow at once.
#[derive(Clone, Copy)]
pub(crate) struct Known {
    pub(crate) generation: Generation,
    pub(crate) last_used: u32,
    pub(crate) opener: Direction,
    pub(crate) state: u8,
}

impl Known {
    /// Reads a flow.
    #[inline(always)]
    pub(crate) fn read(slot: Slot<'_, FlowEntry>) -> Self {
        let opener = if slot.read(field!(opener)) == 0 { Direction::Ingress } else { Direction::Egress };
        Self {
            generation: slot.read(field!(generation)),
            last_used: slot.read(field!(last_used)),
            opener,
            state: slot.read(field!(state)),
        }
    }

    /// Whether it has not timed out.
    #[inline(always)]
    pub(crate) fn is_alive(&self, protocol: u8, now: u32, hz: u32) -> bool {
        let idle = now.wrapping_sub(self.last_used);
        idle < timeout::SHORTEST * hz || idle < timeout::of(protocol, self.state) * hz
    }

    /// Whether a packet in this direction, of a flow that is no longer allowed, may be the other side's own: the protocol does not show
    /// which packet starts a flow, and isolation is per direction.
    #[inline(always)]
    pub(crate) fn may_be_reversed(&self, direction: Direction, protocol: u8) -> bool {
        direction != self.opener && !protocol::has_handshake(protocol)
    }

    /// Whether that side may start a flow by it: what it sends now answers nothing that was allowed before.
    #[inline(always)]
    pub(crate) fn reopens(&self, now: u32, hz: u32) -> bool {
        now.wrapping_sub(self.last_used) >= timeout::REVERSAL * hz
    }

    /// Notes that packets still come of a flow that has to be evaluated again. Where the protocol does not show which packet starts a
    /// flow, only allowed ones count.
    #[inline(always)]
    pub(crate) fn keep_stale(&self, slot: Slot<'_, FlowEntry>, protocol: u8, now: u32, hz: u32) {
        if protocol::has_handshake(protocol) {
            self.keep(slot, now, hz);
        }
    }

    /// Whether its packets are judged again by where they go.
    #[inline(always)]
    pub(crate) const fn is_judged_behind(&self) -> bool {
        self.state & flow_state::JUDGED_BEHIND != 0
    }

    /// Whether replies may come from any endpoint, as they do through a Service: the pod started the flow, and no endpoint has
    /// replied from that address as its own.
    #[inline(always)]
    pub(crate) fn may_have_any_remote(&self, slot: Slot<'_, FlowEntry>) -> bool {
        remote_endpoint(slot) == 0 && self.opener == Direction::Egress
    }

    /// Notes a packet of the flow. Written only where something changes: the entry is shared between CPUs.
    #[inline(always)]
    pub(crate) fn touch(&self, slot: Slot<'_, FlowEntry>, direction: Direction, flags: TcpFlags, now: u32, hz: u32) {
        let state = self.after(direction, flags);
        if state != self.state {
            slot.write(field!(state), state);
        }
        self.keep(slot, now, hz);
    }

    /// Notes that packets still come.
    #[inline(always)]
    pub(crate) fn keep(&self, slot: Slot<'_, FlowEntry>, now: u32, hz: u32) {
        if now.wrapping_sub(self.last_used) >= hz {
            slot.write(field!(last_used), now);
        }
    }

    /// The state after a packet of the flow.
    #[inline(always)]
    pub(crate) fn after(&self, direction: Direction, flags: TcpFlags) -> u8 {
        let answers = direction != self.opener;
        let mut state = self.state | tcp_state(flags, answers);
        if answers {
            state |= flow_state::ANSWERED;
        }
        state
    }
}

/// See [`FlowEntry::remote_endpoint`].
#[inline(always)]
pub(crate) fn remote_endpoint(slot: Slot<'_, FlowEntry>) -> u32 {
    u32::from(slot.read(field!(remote_endpoint)))
}

/// Notes the source endpoint ID that the remote's packets carry.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "16 bits")]
pub(crate) fn learn(slot: Slot<'_, FlowEntry>, endpoint: u32) {
    slot.write(field!(remote_endpoint), endpoint as u16);
}

/// Whether its node or the pod itself opened it towards the pod: its packets are looked at more closely.
#[inline(always)]
pub(crate) fn is_from_here(slot: Slot<'_, FlowEntry>) -> bool {
    slot.read(field!(state)) & (flow_state::FROM_NODE | flow_state::FROM_ITSELF) != 0
}

/// The state bits that a packet's flags make. Flags are zero for all but TCP.
#[inline(always)]
pub(crate) const fn tcp_state(flags: TcpFlags, answers: bool) -> u8 {
    let mut state = 0;
    if flags.has(TcpFlags::FIN) {
        state |= if answers { flow_state::ANSWERER_FIN } else { flow_state::OPENER_FIN };
    }
    if flags.has(TcpFlags::RST) {
        state |= flow_state::RESET;
    }
    state
}

/// Whether a packet is judged without asking for its flow.
#[inline(always)]
pub(crate) fn is_fresh<A>(packet: &Packet<A>) -> bool {
    packet.transport.flags.opens()
}
