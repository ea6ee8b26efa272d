//! What the kernel reports about denied packets, and what limits these reports.

use core::mem::{offset_of, size_of};

use bytemuck::{Pod, Zeroable};

use crate::{Direction, IfIndex, RuleSetId};

/// One record of the ring buffer `EVENTS`: a denied packet, and how many packets of its flow made no event since the last one.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct DenyEvent {
    /// `bpf_ktime_get_boot_ns`.
    pub time_ns: u64,
    /// The pod's veth.
    pub ifindex: IfIndex,
    /// [`crate::Endpoint::id`]; 0 with ifindex where there is no endpoint.
    pub endpoint: u16,
    /// The source endpoint ID that the packet carries: the pod of this node that sent it. 0: not sent by one.
    pub source_endpoint: u16,
    /// The policies that isolate the pod in this direction.
    pub rule_set: RuleSetId,
    /// Denied packets of this flow that made no event since the last one that did.
    pub suppressed: u32,
    /// Length of the packet from its IP header on, in bytes.
    pub length: u32,
    /// See [`event_flags`].
    pub flags: u8,
    /// Always 0.
    pub zero: [u8; 3],
    /// A [`crate::Direction`] code.
    pub direction: u8,
    /// A [`crate::Reason`] code.
    pub reason: u8,
    /// 4 or 6; 0 where the packet is not IP.
    pub family: u8,
    /// IP protocol number.
    pub protocol: u8,
    /// Network byte order; for ICMP: type and code.
    pub source_port: [u8; 2],
    /// Network byte order.
    pub destination_port: [u8; 2],
    /// IPv4 addresses stand in the first four bytes.
    pub source: [u8; 16],
    /// IPv4 addresses stand in the first four bytes.
    pub destination: [u8; 16],
}

const _: () = assert!(size_of::<DenyEvent>() == 72);

impl DenyEvent {
    /// The budget that it was charged to: see [`event_budget`].
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
    /// The frame was sent to an Ethernet group address: multicast or broadcast. The event stands for all pods that received it.
    pub const GROUP: u8 = 1 << 0;
}

/// Limits the events of one flow: at most one a second, as long as it has a place in a [`DenialSet`]. Another flow that takes
/// the place costs an event too many, never a verdict.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Denial {
    /// Half of the flow's keyed hash; never 0 once the place is taken.
    pub tag: u32,
    /// The [`event_budget`] that its events are charged to.
    pub budget: u16,
    /// Always 0.
    pub zero: u16,
    /// Low 32 bits of the kernel's jiffies at the last event.
    pub last_event: u32,
    /// Packets since then.
    pub suppressed: u32,
}

/// Words of the random key that denied flows are hashed with: one for each word of a flow.
pub const DENIAL_KEY_WORDS: usize = 12;

/// Flows in one [`DenialSet`].
pub const DENIAL_WAYS: u32 = 4;

/// Value of `DENIALS` (an array indexed by the other half of the hash): the flows that share an index, one cache line.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct DenialSet {
    /// In no order.
    pub ways: [Denial; DENIAL_WAYS as usize],
}

const _: () = assert!(size_of::<Denial>() == 16 && size_of::<DenialSet>() == 64);

/// Value of `EVENT_BUDGETS` (an array indexed by [`event_budget`]): how many events may still be made. A token bucket in the
/// form of a generic cell rate algorithm, whose only write in a flood is an atomic addition: several CPUs at once spend a few
/// events too many, and pay them back.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct EventBudget {
    /// Nanoseconds since boot at which all events so far are paid for: each costs [`EVENT_INTERVAL_NS`].
    pub paid_until_ns: u64,
    /// Denied packets without an event, and without a place in `DENIALS` that counts them for the next event.
    pub suppressed: u64,
}

const _: () = assert!(size_of::<EventBudget>() == 16 && offset_of!(EventBudget, suppressed) == 8);

/// Events a second that one budget allows in the long run.
pub const EVENT_RATE: u64 = 50;
/// Events that one budget allows at once after a time without any.
pub const EVENT_BURST: u64 = 200;
/// What one event costs.
pub const EVENT_INTERVAL_NS: u64 = 1_000_000_000 / EVENT_RATE;

/// The budget of a denied packet. A packet from a pod of this node is charged to that pod, with [`Direction::Egress`], at
/// whichever pod it is dropped: a pod that floods others spends its own budget. Everything else is charged to the
/// [`Direction::Ingress`] budget of the pod where it is dropped.
#[inline(always)]
pub const fn event_budget(endpoint: u32, direction: Direction) -> u32 {
    endpoint.wrapping_mul(2).wrapping_add(direction as u32)
}
