//! A flow that has to be evaluated again. It is packed into one integer (`u32`), so that one BPF function can pass it
//! to another.

use netpol_common::Direction;

/// A flow that was evaluated before the endpoint's policies changed: the flow's version differs from the endpoint's.
#[derive(Clone, Copy)]
pub(crate) struct Stale {
    /// The direction of the flow's first packet: `Ingress` if the pod received it.
    pub(crate) initiator: Direction,
    /// The flow's state (bits of [`flow_state`](netpol_common::flow_state)) after the current packet.
    pub(crate) state: u8,
}

impl Stale {
    /// Packs the flow into one integer, which fits into a register.
    #[inline(always)]
    pub(crate) const fn pack(self) -> u32 {
        (self.initiator as u32) << 8 | self.state as u32
    }

    /// Unpacks the integer.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "the lower byte")]
    pub(crate) const fn unpack(word: u32) -> Self {
        Self { initiator: if word >> 8 == 0 { Direction::Ingress } else { Direction::Egress }, state: word as u8 }
    }
}

/// The input for evaluating a known flow again, by the policies for the direction of the flow's first packet. The
/// evaluation is a separate BPF function, so that the verifier checks it once and not once for each caller. The input
/// is passed to this function as one integer.
#[derive(Clone, Copy)]
pub(crate) struct Reevaluation {
    /// The direction of the current packet.
    pub(crate) direction: Direction,
    pub(crate) protocol: u8,
    pub(crate) stale: Stale,
    /// Whether the result is not recorded, so that the flow is evaluated again at its next packet. True for ICMP errors
    /// (they only quote a packet of the flow) and for fragments after the first.
    pub(crate) read_only: bool,
}

/// Bits of a packed [`Reevaluation`].
const EGRESS: u32 = 1 << 24;
const READ_ONLY: u32 = 1 << 25;

impl Reevaluation {
    /// Packs the input into one integer.
    #[inline(always)]
    pub(crate) const fn pack(self) -> u32 {
        let direction = if matches!(self.direction, Direction::Egress) { EGRESS } else { 0 };
        let read_only = if self.read_only { READ_ONLY } else { 0 };
        self.stale.pack() | (self.protocol as u32) << 16 | direction | read_only
    }

    /// Unpacks the integer.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "bytes of the word")]
    pub(crate) const fn unpack(word: u32) -> Self {
        Self {
            direction: if word & EGRESS == 0 { Direction::Ingress } else { Direction::Egress },
            protocol: (word >> 16) as u8,
            stale: Stale::unpack(word & 0xffff),
            read_only: word & READ_ONLY != 0,
        }
    }
}
