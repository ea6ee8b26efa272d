//! What the detour knows of a packet, in numbers that one BPF function can hand to another.

use netpol_common::{Direction, NO_REASON, Reason};

use crate::flow::{self, Role};
use crate::fragment;
use crate::packet::{Icmp, Packet};
use crate::surroundings::PacketAddress;

/// All that a packet's verdict depends on besides tables and its addresses, and all that is told of it. As numbers, so that
/// it can be handed to a function that the verifier looks at once.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// From the low byte on: where the IP header starts, protocol, flags, `role` with a [`SourceCheck`], and a reason or `UNDECIDED`.
    pub bits: u64,
    /// From the low bytes on: the packet's source and destination port, the pod's and the remote's in the flow's key.
    pub ports: u64,
}

/// What a packet is to its flow.
pub(crate) mod role {
    /// It may belong to a flow.
    pub(crate) const MEMBER: u8 = 1;
    /// It may open one.
    pub(crate) const OPENS: u8 = 2;
    /// It is judged without asking for its flow.
    pub(crate) const FRESH: u8 = 4;
    /// It may come from nobody: a pod that has no address yet asks whether one is free, and only that (RFC 4862, 5.4).
    pub(crate) const DISCOVERS: u8 = 8;
    /// A revoked flow has its addresses and ports.
    pub(crate) const REVERSED: u8 = 64;
    /// It is a later fragment whose first is not known.
    pub(crate) const ORPHAN: u8 = 128;
    /// Where its [`SourceCheck`](netpol_common::SourceCheck) starts, of two bits.
    pub(crate) const CHECK: u32 = 4;
}

/// Where the role starts in [`Case::bits`].
pub(crate) const ROLE: u32 = 24;
/// No reason's code.
pub(crate) const UNDECIDED: u8 = NO_REASON;

impl Case {
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "at most two tags precede an IP header")]
    pub(crate) fn new<A: PacketAddress>(
        direction: Direction,
        packet: &Packet<A>,
        icmp: Option<Icmp>,
        decided: Option<Reason>,
    ) -> Self {
        let (flow_role, (pod_port, remote_port)) = flow::identify(direction, packet, icmp);
        let role = match flow_role {
            // It may belong to any flow.
            _ if fragment::is_orphan(packet) => role::ORPHAN,
            Role::Member if flow::is_fresh(packet) => role::OPENS | role::FRESH,
            Role::Member => role::MEMBER | role::OPENS,
            Role::AnswerOnly => role::MEMBER,
            Role::Stranger => 0,
        };
        let role = role | if icmp == Some(Icmp::Discovery) { role::DISCOVERS } else { 0 };
        let decided = decided.map_or(UNDECIDED, |reason| reason as u8);
        let [a, b] = packet.transport.source_port;
        let [c, d] = packet.transport.destination_port;
        let ports = u64::from(u32::from_le_bytes([a, b, c, d]));
        Self {
            bits: u64::from_le_bytes([
                packet.start as u8,
                packet.protocol,
                packet.transport.flags.0,
                role,
                decided,
                0,
                0,
                0,
            ]),
            ports: ports | u64::from(flow::ports(pod_port, remote_port)) << 32,
        }
    }

    /// Whether it has a verdict.
    #[inline(always)]
    pub(crate) const fn is_decided(&self) -> bool {
        (self.bits >> 32) as u8 != UNDECIDED
    }

    /// Gives it a verdict.
    #[inline(always)]
    pub(crate) fn decide(&mut self, reason: Reason) {
        self.bits = self.bits & !(0xff << 32) | (reason as u64) << 32;
    }

    /// Notes how its source address is to be checked.
    #[inline(always)]
    pub(crate) fn check(&mut self, source: u64) {
        self.bits |= (source & 3) << (ROLE + role::CHECK);
    }
}

/// The value itself, which the compiler takes apart again where it is used, rather than keep its parts on the stack meanwhile.
#[inline(always)]
#[cfg_attr(not(target_arch = "bpf"), expect(unused_mut, reason = "in the kernel it goes through a register"))]
pub(crate) fn unfold(mut value: u64) -> u64 {
    #[cfg(target_arch = "bpf")]
    // SAFETY: computes in a register only; not `pure`, so that two of them are not taken for one. Not empty, as the kernel refuses
    // two lines of source for one instruction.
    unsafe {
        core::arch::asm!("{value} = {value}", value = inout(reg) value, options(nomem, nostack, preserves_flags));
    }
    value
}
