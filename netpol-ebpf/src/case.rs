//! The summary of a packet in the slow path (the code for packets that are not plain, such as fragments and ICMP). The
//! summary consists of numbers that one BPF function can pass to another.

use netpol_common::{Direction, NO_REASON, Reason};

use crate::context::PacketAddress;
use crate::flow::{self, Role};
use crate::fragment;
use crate::packet::{Icmp, Packet};

/// The summary of a packet: what the evaluation needs, without the addresses.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Case {
    /// One byte each, from the low byte on: the offset of the IP header, the protocol, the TCP flags, the bits of
    /// [`role`] with a `SourceCheck`, and the code of the verdict's reason or [`UNDECIDED`].
    bits: u64,
    /// Two bytes each, from the low bytes on: the source port and the destination port of the packet, and the pod's
    /// port and the remote port in the flow's key.
    ports: u64,
}

/// Bits for the relation of a packet to its flow. Bits 4 and 5 (16 and 32) are a
/// [`SourceCheck`](netpol_common::SourceCheck).
pub(crate) mod role {
    /// The packet can belong to a known flow.
    pub(crate) const MEMBER: u8 = 1;
    /// The packet can initiate a flow.
    pub(crate) const INITIATES: u8 = 2;
    /// The packet starts a new connection. Pre-DNAT, no known flow is looked up for such a packet.
    pub(crate) const NEW_CONNECTION: u8 = 4;
    /// The packet is neighbor discovery. Its source can be the unspecified address: a pod sends such a packet to check
    /// whether its new address is free (RFC 4862, 5.4).
    pub(crate) const DISCOVERY: u8 = 8;
    /// The packet matches a revoked flow (one that the current policies do not allow), but comes from the side that did
    /// not initiate this flow.
    pub(crate) const MATCHES_REVOKED: u8 = 64;
    /// The packet is a later fragment, and its first fragment is not known.
    pub(crate) const ORPHAN: u8 = 128;
    /// The position of the `SourceCheck`: how to check the source address of the packet.
    pub(crate) const SOURCE_CHECK_SHIFT: u32 = 4;
}

/// The position of the role in [`Case::bits`].
const ROLE_SHIFT: u32 = 24;
/// The value in place of a reason's code, if the packet has no verdict yet. No reason has this code.
pub(crate) const UNDECIDED: u8 = NO_REASON;

impl Case {
    /// Summarizes a packet. `decided`: the reason, if the packet has a verdict already.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "at most two VLAN tags precede an IP header")]
    pub(crate) fn new<A: PacketAddress>(
        direction: Direction,
        packet: &Packet<A>,
        icmp: Option<Icmp>,
        decided: Option<Reason>,
    ) -> Self {
        let (flow_role, (pod_port, remote_port)) = flow::identify(direction, packet, icmp);
        let role = match flow_role {
            // The fragment has no ports. It could belong to any flow, so it counts as a member of none.
            _ if fragment::is_orphan(packet) => role::ORPHAN,
            Role::Member if flow::starts_connection(packet) => role::INITIATES | role::NEW_CONNECTION,
            Role::Member => role::MEMBER | role::INITIATES,
            Role::ReplyOnly => role::MEMBER,
            Role::NoFlow => 0,
        };
        let role = role | if icmp == Some(Icmp::Discovery) { role::DISCOVERY } else { 0 };
        let decided = decided.map_or(UNDECIDED, |reason| reason as u8);
        let [a, b] = packet.transport.source_port;
        let [c, d] = packet.transport.destination_port;
        let ports = u64::from(u32::from_le_bytes([a, b, c, d]));
        Self {
            bits: u64::from_le_bytes([
                packet.ip_offset as u8,
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

    /// Restores a case from the two words that [`Self::words`] returned.
    ///
    /// # Safety
    /// The words must be from [`Self::words`], because one of their bytes is the code of a reason.
    #[inline(always)]
    #[cfg(target_arch = "bpf")]
    pub(crate) const unsafe fn from_words(bits: u64, ports: u64) -> Self {
        Self { bits, ports }
    }

    /// Returns `bits` and `ports`.
    #[inline(always)]
    pub(crate) const fn words(&self) -> (u64, u64) {
        (self.bits, self.ports)
    }

    /// Returns four bytes of `bits`: protocol, flags, role, and one that callers ignore.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "four bytes of the word")]
    pub(crate) const fn flow_bits(&self) -> u32 {
        (self.bits >> 8) as u32
    }

    /// Returns the ports in the flow's key.
    #[inline(always)]
    pub(crate) const fn flow_ports(&self) -> u32 {
        (self.ports >> 32) as u32
    }

    /// Returns whether the packet has a verdict.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "one byte of the word")]
    pub(crate) const fn is_decided(&self) -> bool {
        (self.bits >> 32) as u8 != UNDECIDED
    }

    /// Returns the verdict, if the packet has one.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "one byte of the word")]
    pub(crate) fn decided(&self) -> Option<Reason> {
        // SAFETY: `new` and `decide` write the code of a reason, or `UNDECIDED`.
        self.is_decided().then(|| unsafe { Reason::from_code_unchecked((opaque(self.bits) >> 32) as u8) })
    }

    /// Sets the verdict.
    #[inline(always)]
    pub(crate) fn decide(&mut self, reason: Reason) {
        self.bits = self.bits & !(0xff << 32) | (reason as u64) << 32;
    }

    /// Stores how to check the source address. The two low bits of `source_check` are a
    /// [`SourceCheck`](netpol_common::SourceCheck); the other bits are ignored.
    #[inline(always)]
    pub(crate) fn set_source_check(&mut self, source_check: u64) {
        self.bits |= (source_check & 3) << (ROLE_SHIFT + role::SOURCE_CHECK_SHIFT);
    }

    /// Stores that the packet matches a revoked flow but comes from the side that did not initiate this flow.
    #[inline(always)]
    pub(crate) fn set_matches_revoked(&mut self) {
        self.bits |= u64::from(role::MATCHES_REVOKED) << ROLE_SHIFT;
    }

    /// Stores that the packet cannot initiate a flow.
    #[inline(always)]
    pub(crate) fn clear_initiates(&mut self) {
        self.bits &= !(u64::from(role::INITIATES) << ROLE_SHIFT);
    }
}

/// Returns the value unchanged, but hides it from the compiler. The compiler then extracts the parts of the value where
/// they are used, and does not keep them on the stack.
#[inline(always)]
#[cfg_attr(not(target_arch = "bpf"), expect(unused_mut, reason = "the eBPF version modifies it in a register"))]
pub(crate) fn opaque(mut value: u64) -> u64 {
    #[cfg(target_arch = "bpf")]
    // SAFETY: the statement changes only one register. It is not `pure`, so that the compiler does not merge two of
    // these statements. It is not empty, because the kernel rejects debug information with two source lines for one
    // instruction.
    unsafe {
        core::arch::asm!("{value} = {value}", value = inout(reg) value, options(nomem, nostack, preserves_flags));
    }
    value
}
