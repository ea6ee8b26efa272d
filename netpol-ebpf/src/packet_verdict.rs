//! The verdict on a packet, with what to report about its flow.

use netpol_common::{Direction, Endpoint, NO_REASON, Reason, flow_state};

/// What to report about a flow after one of its packets was allowed. All values are bits of one byte, because
/// [`Context::barrier_within`](crate::context::Context::barrier_within) can hide a byte from the verifier. With
/// separate fields, the verifier would check all later code again for each combination of field values.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct FlowReport(u8);

/// The flow is new, and `SETTINGS` enables events for allowed flows.
const NEW: u8 = 1 << 0;
/// The flow is to be evaluated by the policies in shadow mode, which are not enforced.
const SHADOW: u8 = 1 << 1;
/// The pod initiated the flow.
const EGRESS: u8 = 1 << 2;
/// The origin of an ingress flow: the state bits that show whether the local node initiated the flow, and whether the
/// flow is hairpin traffic (from the pod to itself).
const ORIGIN: u8 = flow_state::FROM_NODE | flow_state::HAIRPIN;

const _: () = assert!(ORIGIN & (NEW | SHADOW | EGRESS) == 0);

impl FlowReport {
    /// Nothing to report.
    pub(crate) const NONE: Self = Self(0);

    /// Returns what to report about a flow with this initiator (direction of its first packet) and state. If policies
    /// in shadow mode isolate the pod in this direction, they are to be evaluated. `is_new` sets [`NEW`].
    #[inline(always)]
    pub(crate) fn new(endpoint: &Endpoint, initiator: Direction, state: u8, is_new: bool) -> Self {
        let shadow = if endpoint.shadow_policy(initiator).isolated() { SHADOW } else { 0 };
        let egress = if matches!(initiator, Direction::Egress) { EGRESS } else { 0 };
        Self(shadow | egress | state & ORIGIN | if is_new { NEW } else { 0 })
    }

    /// Returns whether there is anything to report.
    #[inline(always)]
    pub(crate) const fn is_needed(self) -> bool {
        self.0 & (NEW | SHADOW) != 0
    }

    /// Returns whether the flow is new, and `SETTINGS` enables events for allowed flows.
    #[inline(always)]
    pub(crate) const fn is_new(self) -> bool {
        self.0 & NEW != 0
    }

    /// Returns whether the flow is to be evaluated by the policies in shadow mode.
    #[inline(always)]
    pub(crate) const fn needs_shadow(self) -> bool {
        self.0 & SHADOW != 0
    }

    /// Returns the direction of the flow's first packet.
    #[inline(always)]
    pub(crate) const fn initiator(self) -> Direction {
        if self.0 & EGRESS == 0 { Direction::Ingress } else { Direction::Egress }
    }

    /// Returns the [`ORIGIN`] bits of the flow's state.
    #[inline(always)]
    pub(crate) const fn origin(self) -> u8 {
        self.0 & ORIGIN
    }

    /// Returns the byte.
    #[inline(always)]
    pub(crate) const fn byte(self) -> u8 {
        self.0
    }

    /// Restores what [`Self::byte`] returned.
    #[inline(always)]
    pub(crate) const fn from_byte(byte: u8) -> Self {
        Self(byte)
    }
}

/// The verdict on a packet, packed into one word, so that a BPF function can return it. The lowest byte is the code of
/// the reason, and the next byte is the [`FlowReport`].
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PacketVerdict(u32);

impl PacketVerdict {
    /// Creates a verdict without a report of the flow.
    #[inline(always)]
    pub(crate) const fn of(reason: Reason) -> Self {
        Self::with(reason, FlowReport::NONE)
    }

    /// Creates a verdict with a report of the flow.
    #[inline(always)]
    pub(crate) const fn with(reason: Reason, report: FlowReport) -> Self {
        Self(reason as u32 | (report.0 as u32) << 8)
    }

    /// Packs an optional verdict into one word. [`NO_REASON`] stands for `None`.
    #[inline(always)]
    pub(crate) const fn pack(verdict: Option<Self>) -> u32 {
        match verdict {
            Some(verdict) => verdict.0,
            None => NO_REASON as u32,
        }
    }

    /// Unpacks the word that [`Self::pack`] returned.
    #[inline(always)]
    pub(crate) const fn unpack(word: u32) -> Option<Self> {
        if word == NO_REASON as u32 { None } else { Some(Self(word)) }
    }

    /// Returns the reason.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "the low byte")]
    pub(crate) const fn reason(self) -> Reason {
        // SAFETY: `with` writes the code of a reason.
        unsafe { Reason::from_code_unchecked(self.0 as u8) }
    }

    /// Returns what to report about the flow.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "a byte of the word")]
    pub(crate) const fn report(self) -> FlowReport {
        FlowReport((self.0 >> 8) as u8)
    }
}

#[cfg(test)]
mod tests {
    use netpol_common::{DirectionPolicy, PortSetId, RuleSetId};

    use super::*;

    #[test]
    fn a_report_keeps_the_initiator_and_the_origin() {
        let shadow = DirectionPolicy { rule_set: RuleSetId(1), any: PortSetId::NONE };
        let endpoint = Endpoint { shadow_egress: shadow, ..Endpoint::default() };
        for initiator in Direction::BOTH {
            for state in [0, flow_state::FROM_NODE, flow_state::HAIRPIN] {
                for new in [false, true] {
                    let report = FlowReport::new(&endpoint, initiator, state | flow_state::REPLIED, new);
                    let verdict = PacketVerdict::with(Reason::Service, FlowReport::from_byte(report.byte()));
                    assert_eq!((verdict.reason(), verdict.report()), (Reason::Service, report));
                    assert_eq!((report.initiator(), report.origin(), report.is_new()), (initiator, state, new));
                    assert_eq!(report.needs_shadow(), initiator == Direction::Egress);
                    assert_eq!(report.is_needed(), new || initiator == Direction::Egress);
                }
            }
        }
        assert!(!PacketVerdict::of(Reason::Flow).report().is_needed());
    }
}
