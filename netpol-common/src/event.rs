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
    /// A [`crate::Direction`] code.
    pub direction: u8,
    /// A [`crate::Reason`] code.
    pub reason: u8,
    /// 4 or 6, or 0 if the packet is not IP.
    pub family: u8,
    /// IP protocol number.
    pub protocol: u8,
    /// In network byte order. For ICMP: type and code.
    pub source_port: [u8; 2],
    /// In network byte order.
    pub destination_port: [u8; 2],
    /// An IPv4 address is in the first four bytes.
    pub source: [u8; 16],
    /// An IPv4 address is in the first four bytes.
    pub destination: [u8; 16],
}

const _: () = assert!(size_of::<DenyEvent>() == 72);

impl DenyEvent {
    /// Returns the budget that the event was charged to, see [`event_budget`].
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
    /// The frame was sent to an Ethernet group address (multicast or broadcast). The event stands for all pods that
    /// received it.
    pub const GROUP: u8 = 1 << 0;
}

/// Limits the events of a flow to one a second, while the flow has a slot in a [`DenialSet`]. If another flow takes the
/// slot, this flow can get one event more; verdicts do not change.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Denial {
    /// Half of the flow's keyed hash. Never 0 in a used slot.
    pub tag: u32,
    /// The [`event_budget`] that the flow's events are charged to.
    pub budget: u16,
    /// Always 0.
    pub zero: u16,
    /// The kernel's jiffies at the last event, low 32 bits.
    pub last_event: u32,
    /// Denied packets since then.
    pub suppressed: u32,
}

/// The number of words of the random key for hashing denied flows: one for each word of a flow.
pub const DENIAL_KEY_WORDS: usize = 12;

/// The number of flows in a [`DenialSet`].
pub const DENIAL_WAYS: u32 = 4;

/// Value of `DENIALS`, an array indexed by the other half of the hash: the flows with the same index, in one cache
/// line.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct DenialSet {
    /// The flows, in no particular order.
    pub ways: [Denial; DENIAL_WAYS as usize],
}

const _: () = assert!(size_of::<Denial>() == 16 && size_of::<DenialSet>() == 64);

/// Value of `EVENT_BUDGETS`, an array indexed by [`event_budget`]. It limits how many events are sent.
///
/// It is a token bucket in the form of a generic cell rate algorithm, whose only write during a flood is an atomic
/// addition. Several CPUs at once can exceed the limit by a few events, which are deducted later.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct EventBudget {
    /// The time, in nanoseconds since boot, at which all events so far are paid for. Each costs [`EVENT_INTERVAL_NS`].
    pub paid_until_ns: u64,
    /// Denied packets without an event that no slot in `DENIALS` counts.
    pub suppressed: u64,
}

const _: () = assert!(size_of::<EventBudget>() == 16 && offset_of!(EventBudget, suppressed) == 8);

/// Events per second that a budget allows on average.
pub const EVENT_RATE: u64 = 50;
/// Events that a budget allows at once, after a time without any.
pub const EVENT_BURST: u64 = 200;
/// The cost of one event.
pub const EVENT_INTERVAL_NS: u64 = 1_000_000_000 / EVENT_RATE;

/// Returns the index of the budget of a denied packet.
///
/// A packet from a pod of this node is charged to that pod's [`Direction::Egress`] budget, also if it is dropped at
/// another pod: a pod that floods others spends its own budget. All other packets are charged to the
/// [`Direction::Ingress`] budget of the pod at which they are dropped.
#[inline(always)]
pub const fn event_budget(endpoint: u32, direction: Direction) -> u32 {
    endpoint.wrapping_mul(2).wrapping_add(direction as u32)
}
