//! Flows that have to be evaluated again, as words that one BPF function can pass to another.

use netpol_common::Direction;

/// A flow that was evaluated under another version of the endpoint.
#[derive(Clone, Copy)]
pub(crate) struct Stale {
    /// The direction of its initiator.
    pub(crate) initiator: Direction,
    /// Its state after the current packet.
    pub(crate) state: u8,
}

impl Stale {
    /// Packs it into one word, which fits into a register.
    #[inline(always)]
    pub(crate) const fn pack(self) -> u32 {
        (self.initiator as u32) << 8 | self.state as u32
    }

    /// Unpacks the word.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "the lower byte")]
    pub(crate) const fn unpack(word: u32) -> Self {
        Self { initiator: if word >> 8 == 0 { Direction::Ingress } else { Direction::Egress }, state: word as u8 }
    }
}

/// The input for evaluating a known flow again, in its initiator's direction. It is packed into one word for a separate
/// BPF function, so that the verifier checks the evaluation of policy once and not once for each caller.
#[derive(Clone, Copy)]
pub(crate) struct Recheck {
    /// The direction of the current packet.
    pub(crate) direction: Direction,
    pub(crate) protocol: u8,
    pub(crate) stale: Stale,
    /// The result is not recorded, so the flow is evaluated again at its next packet. This is so for an ICMP error, which
    /// only quotes a packet of the flow, and for a later fragment: without ports, neither causes an evaluation of the
    /// policies in shadow mode.
    pub(crate) read_only: bool,
}

/// Bits of a packed [`Recheck`].
const EGRESS: u32 = 1 << 24;
const READ_ONLY: u32 = 1 << 25;

impl Recheck {
    /// Packs it into one word.
    #[inline(always)]
    pub(crate) const fn pack(self) -> u32 {
        let direction = if matches!(self.direction, Direction::Egress) { EGRESS } else { 0 };
        let read_only = if self.read_only { READ_ONLY } else { 0 };
        self.stale.pack() | (self.protocol as u32) << 16 | direction | read_only
    }

    /// Unpacks the word.
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
