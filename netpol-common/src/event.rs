//! Deny events, and the limits on their number.

use core::mem::{offset_of, size_of};

use bytemuck::{Pod, Zeroable};

use crate::{Direction, IfIndex, RuleSetId};

/// A record of the ring buffer `EVENTS`: a denied packet.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct DenyEvent {
    /// The time of the packet, from `bpf_ktime_get_boot_ns`.
    pub time_ns: u64,
    /// The pod's veth interface.
    pub ifindex: IfIndex,
    /// The [`crate::Endpoint::id`], or 0 if the interface has no endpoint.
    pub endpoint: u16,
    /// The source endpoint ID of the packet: the pod of this node that sent it. 0 if no pod of this node did.
    pub source_endpoint: u16,
    /// The rule set of the policies that isolate the pod in this direction.
    pub rule_set: RuleSetId,
    /// The number of denied packets of this flow since its last event.
    pub suppressed: u32,
    /// Length of the packet in bytes, from its IP header on.
    pub length: u32,
    /// Flags, see [`event_flags`].
    pub flags: u8,
    /// Always 0.
    pub zero: [u8; 3],
    /// The direction, a [`crate::Direction`] code.
    pub direction: u8,
    /// The reason, a [`crate::Reason`] code.
    pub reason: u8,
    /// 4 or 6, or 0 if the packet is not IP.
    pub family: u8,
    /// IP protocol number.
    pub protocol: u8,
    /// Source port in network byte order. For ICMP: type and code.
    pub source_port: [u8; 2],
    /// Destination port in network byte order.
    pub destination_port: [u8; 2],
    /// Source address. An IPv4 address is in the first four bytes.
    pub source: [u8; 16],
    /// Destination address. An IPv4 address is in the first four bytes.
    pub destination: [u8; 16],
}

const _: () = assert!(size_of::<DenyEvent>() == 72);

impl DenyEvent {
    /// Returns the index in `EVENT_BUDGETS` of the budget that the event was charged to.
    ///
    /// A packet from a pod of this node is charged to that pod's [`Direction::Egress`] budget, even if the packet was
    /// dropped at another pod. So a pod that floods other pods spends its own budget. All other packets are charged to
    /// the [`Direction::Ingress`] budget of the pod at which they were dropped.
    #[inline(always)]
    pub const fn budget(&self) -> u32 {
        let (endpoint, source) = (self.endpoint as u32, self.source_endpoint as u32);
        if self.direction == Direction::Ingress as u8 && source != 0 {
            event_budget(source, Direction::Egress)
        } else {
            event_budget(endpoint, if self.direction == 0 { Direction::Ingress } else { Direction::Egress })
        }
    }
}

/// Bits of [`DenyEvent::flags`].
pub mod event_flags {
    /// The frame was sent to an Ethernet group address (multicast or broadcast). There is one event for all pods that
    /// received the frame.
    pub const GROUP: u8 = 1 << 0;
}

/// Limits the events of a denied flow to one per second, as long as the flow has a slot in a [`DenialSet`]. If another
/// flow takes the slot, this flow can have one extra event. Verdicts do not depend on this.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Denial {
    /// One half of the flow's keyed hash. Never 0 in a used slot.
    pub tag: u32,
    /// The [`event_budget`] that the flow's events are charged to.
    pub budget: u16,
    /// Always 0.
    pub zero: u16,
    /// The kernel's jiffies at the last event, low 32 bits.
    pub last_event: u32,
    /// The number of denied packets since the last event.
    pub suppressed: u32,
}

/// The number of words of the random key for hashing denied flows: one for each word of a flow.
pub const DENIAL_KEY_WORDS: usize = 12;

/// The number of slots for flows in a [`DenialSet`].
pub const DENIAL_WAYS: u32 = 4;

/// Value of `DENIALS`, an array indexed by the other half of the flow's hash. It has slots for several flows with the
/// same index, in one cache line (a set-associative cache).
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct DenialSet {
    /// The flows, in no particular order.
    pub ways: [Denial; DENIAL_WAYS as usize],
}

const _: () = assert!(size_of::<Denial>() == 16 && size_of::<DenialSet>() == 64);

/// Value of `EVENT_BUDGETS`, an array indexed by [`event_budget`]. It limits how many events are sent.
///
/// It is a token bucket, implemented as a generic cell rate algorithm: during a flood, the only write is an atomic
/// addition. If several CPUs send events at the same time, the limit can be exceeded by a few events. They are deducted
/// later.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct EventBudget {
    /// The time, in nanoseconds since boot, until which the budget is used up at the rate [`EVENT_RATE`]. Each event
    /// moves it by [`EVENT_INTERVAL_NS`]. No events are sent while it is too far in the future.
    pub paid_until_ns: u64,
    /// The number of denied packets that had no event and are not counted in a slot of `DENIALS`.
    pub suppressed: u64,
}

const _: () = assert!(size_of::<EventBudget>() == 16 && offset_of!(EventBudget, suppressed) == 8);

/// Events per second that a budget allows on average.
pub const EVENT_RATE: u64 = 50;
/// Events that a budget allows at once, after a time without events.
pub const EVENT_BURST: u64 = 200;
/// The time by which one event moves [`EventBudget::paid_until_ns`].
pub const EVENT_INTERVAL_NS: u64 = 1_000_000_000 / EVENT_RATE;

/// Returns the index in `EVENT_BUDGETS` of an endpoint ID and a direction. [`DenyEvent::budget`] describes which budget
/// a packet is charged to.
#[inline(always)]
pub const fn event_budget(endpoint: u32, direction: Direction) -> u32 {
    endpoint.wrapping_mul(2).wrapping_add(direction as u32)
}
