//! Flow events, and the limits on their number.

use core::mem::{offset_of, size_of};

use bytemuck::{Pod, Zeroable};

use crate::{Direction, IfIndex, Reason, RuleSetId};

/// A record of the ring buffer `EVENTS`: a denied packet, the first packet of an allowed flow, or an allowed flow that
/// the policies in shadow mode would deny. [`FlowEvent::kind`] returns which of these it is.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct FlowEvent {
    /// The time of the packet, from `bpf_ktime_get_boot_ns`.
    pub time_ns: u64,
    /// The pod's veth interface.
    pub ifindex: IfIndex,
    /// The [`crate::Endpoint::id`] of this interface, or 0 if the interface has no endpoint.
    pub endpoint: u16,
    /// The source endpoint ID of the packet, which identifies the pod of this node that sent the packet. 0 if no pod of
    /// this node sent the packet, or if this is not known.
    pub source_endpoint: u16,
    /// The rule set of the policies that isolate the pod in this direction. With [`event_flags::SHADOW`], the rule set
    /// that includes the policies in shadow mode.
    pub rule_set: RuleSetId,
    /// The number of similar packets that had no event, because of the limits, since the last event of such a packet.
    /// Packets are similar if they have the same kind of event, the same reason and, if they are denied, the same flow.
    /// For allowed flows and for shadow mode, they have the same addresses and the same destination port; the source
    /// port may differ. With ICMP, they have the same type and code; the identifier may differ.
    pub suppressed: u32,
    /// Length of the packet in bytes, from its IP header on.
    pub length: u32,
    /// Flags, see [`event_flags`].
    pub flags: u8,
    /// Always 0.
    pub zero: [u8; 3],
    /// The direction, a [`crate::Direction`] code.
    pub direction: u8,
    /// The reason, a [`crate::Reason`] code. [`Reason::allows`] returns its verdict. With [`event_flags::SHADOW`],
    /// this is the reason with which the policies in shadow mode would deny the flow.
    pub reason: u8,
    /// 4 or 6, or 0 if the packet is not IP.
    pub family: u8,
    /// IP protocol number.
    pub protocol: u8,
    /// Source port in network byte order. For ICMP: type and code.
    pub source_port: [u8; 2],
    /// Destination port in network byte order. For ICMP: identifier of an echo message.
    pub destination_port: [u8; 2],
    /// Source address. An IPv4 address is in the first four bytes.
    pub source: [u8; 16],
    /// Destination address. An IPv4 address is in the first four bytes.
    pub destination: [u8; 16],
}

const _: () = assert!(size_of::<FlowEvent>() == 72);

impl FlowEvent {
    /// Returns the kind of the event.
    #[inline(always)]
    pub const fn kind(&self) -> EventKind {
        match Reason::from_code(self.reason) {
            _ if self.flags & event_flags::SHADOW != 0 => EventKind::Shadow,
            Some(reason) if reason.allows() => EventKind::Allowed,
            Some(_) | None => EventKind::Denied,
        }
    }

    /// Returns the index in `EVENT_BUDGETS` of the budget that the event was charged to, see [`charged_budget`].
    #[inline(always)]
    pub const fn budget(&self) -> u32 {
        let direction = if self.direction == 0 { Direction::Ingress } else { Direction::Egress };
        charged_budget(self.endpoint as u32, self.source_endpoint as u32, direction, self.kind())
    }
}

/// The kind of a [`FlowEvent`]. Each kind has its own budgets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum EventKind {
    /// A denied packet.
    Denied = 0,
    /// The first packet of an allowed flow.
    Allowed = 1,
    /// An allowed flow that the policies in shadow mode would deny.
    Shadow = 2,
}

impl EventKind {
    /// All kinds, in the order of their codes.
    pub const ALL: [Self; 3] = [Self::Denied, Self::Allowed, Self::Shadow];
}

/// Bits of [`FlowEvent::flags`].
pub mod event_flags {
    /// The frame was sent to an Ethernet group address (multicast or broadcast). There is one event for all pods that
    /// received the frame.
    pub const GROUP: u8 = 1 << 0;
    /// An allowed flow that would be denied if the policies in shadow mode were enforced.
    pub const SHADOW: u8 = 1 << 1;
    /// The agent runs with `--observe` and enforces nothing: the packet passed, although its verdict is to deny it.
    pub const OBSERVED: u8 = 1 << 2;
}

/// Value of `SETTINGS`, an array with one entry: settings that the agent can change while the programs run.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Settings {
    /// 1: the first packet of each allowed flow causes an event. 0: allowed flows cause no events.
    pub record_allowed: u32,
}

const _: () = assert!(size_of::<Settings>() == 4);

/// Limits the events of a flow to one per second, as long as the flow has a slot in an [`EventLimitSet`]. If another
/// flow takes the slot, the first flow can have one extra event. Verdicts do not depend on this.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct EventLimit {
    /// One half of the flow's keyed hash. Never 0 in a used slot.
    pub tag: u32,
    /// The [`event_budget`] that the flow's events are charged to.
    pub budget: u32,
    /// The kernel's jiffies at the last event, low 32 bits.
    pub last_event: u32,
    /// The number of packets without an event since the last event.
    pub suppressed: u32,
}

/// The number of words of the random key for hashing flows: one for each word that is hashed.
pub const EVENT_KEY_WORDS: usize = 12;

/// The number of slots for flows in an [`EventLimitSet`].
pub const EVENT_LIMIT_WAYS: u32 = 4;

/// Value of `DENIALS` and `ALLOWED_FLOWS`. These arrays are indexed by one half of the flow's hash; the other half is
/// the [`EventLimit::tag`]. An entry has slots for several flows with the same index, in one cache line (a
/// set-associative cache).
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct EventLimitSet {
    /// The flows, in no particular order.
    pub ways: [EventLimit; EVENT_LIMIT_WAYS as usize],
}

const _: () = assert!(size_of::<EventLimit>() == 16 && size_of::<EventLimitSet>() == 64);

/// Value of `EVENT_BUDGETS`, an array indexed by [`event_budget`]. A budget limits how many events are sent to the
/// agent.
///
/// It is a token bucket, implemented as a generic cell rate algorithm. With this algorithm, the only write during a
/// flood is an atomic addition. If several CPUs send events at the same time, the limit can be exceeded by a few
/// events. These events are deducted from the budget later.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct EventBudget {
    /// The algorithm's theoretical arrival time, in nanoseconds since boot. Each event that is sent moves it forward by
    /// [`EVENT_INTERVAL_NS`]. If it is in the past, it is first set to the current time. No event is sent while it is
    /// more than `EVENT_BURST - 1` of these intervals in the future.
    pub paid_until_ns: u64,
    /// The number of packets that had no event and are not counted in a slot of `DENIALS` or `ALLOWED_FLOWS`.
    pub suppressed: u64,
}

const _: () = assert!(size_of::<EventBudget>() == 16 && offset_of!(EventBudget, suppressed) == 8);

/// Events per second that a budget allows on average.
pub const EVENT_RATE: u64 = 50;
/// Events that a budget allows at once, after a time without events.
pub const EVENT_BURST: u64 = 200;
/// The time by which one event moves [`EventBudget::paid_until_ns`] forward.
pub const EVENT_INTERVAL_NS: u64 = 1_000_000_000 / EVENT_RATE;

/// The number of entries that an endpoint ID has in `EVENT_BUDGETS`.
pub const EVENT_BUDGETS_PER_ENDPOINT: u32 = 6;

/// Returns the index in `EVENT_BUDGETS` of an endpoint ID, a direction and a kind of event:
/// `endpoint ID * 6 + kind * 2 + direction`.
#[inline(always)]
pub const fn event_budget(endpoint: u32, direction: Direction, kind: EventKind) -> u32 {
    endpoint.wrapping_mul(EVENT_BUDGETS_PER_ENDPOINT).wrapping_add(kind as u32 * 2 + direction as u32)
}

/// Returns the index in `EVENT_BUDGETS` of the budget that a packet is charged to.
///
/// A packet from a pod of this node is charged to that pod's [`Direction::Egress`] budget, even if the packet is
/// evaluated at another pod. So a pod that floods other pods spends its own budget. All other packets are charged to
/// the [`Direction::Ingress`] budget of the pod at which they are evaluated.
#[inline(always)]
pub const fn charged_budget(endpoint: u32, source_endpoint: u32, direction: Direction, kind: EventKind) -> u32 {
    match direction {
        Direction::Ingress if source_endpoint != 0 => event_budget(source_endpoint, Direction::Egress, kind),
        Direction::Ingress | Direction::Egress => event_budget(endpoint, direction, kind),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_and_direction_has_its_own_budget() {
        let mut next = 0;
        for endpoint in 0..3 {
            for kind in EventKind::ALL {
                for direction in Direction::BOTH {
                    assert_eq!(event_budget(endpoint, direction, kind), next);
                    next += 1;
                }
            }
        }
        assert_eq!(next, 3 * EVENT_BUDGETS_PER_ENDPOINT);
    }

    #[test]
    fn the_kind_and_the_budget_depend_on_flags_reason_and_pods() {
        let event = |reason: Reason, flags| FlowEvent { reason: reason as u8, flags, ..FlowEvent::default() };
        assert_eq!(event(Reason::Rule, 0).kind(), EventKind::Allowed);
        assert_eq!(event(Reason::NoRule, event_flags::GROUP).kind(), EventKind::Denied);
        assert_eq!(event(Reason::NoRule, event_flags::OBSERVED).kind(), EventKind::Denied);
        assert_eq!(event(Reason::NoRule, event_flags::SHADOW).kind(), EventKind::Shadow);
        let to_other_pod = FlowEvent { endpoint: 2, source_endpoint: 1, ..event(Reason::Rule, 0) };
        assert_eq!(to_other_pod.budget(), event_budget(1, Direction::Egress, EventKind::Allowed));
        let from_outside = FlowEvent { endpoint: 2, ..event(Reason::NoRule, event_flags::SHADOW) };
        assert_eq!(from_outside.budget(), event_budget(2, Direction::Ingress, EventKind::Shadow));
    }
}
