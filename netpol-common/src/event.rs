//! What the kernel tells about denied packets.

use core::mem::size_of;

use bytemuck::{Pod, Zeroable};

use crate::{ClassId, IfIndex, RuleSetId};

/// One record of the ring buffer `EVENTS`: a denied packet, and how many alike were not told since the last one.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct DenyEvent {
    /// `bpf_ktime_get_boot_ns`.
    pub time_ns: u64,
    /// The pod's veth.
    pub ifindex: IfIndex,
    /// [`crate::Endpoint::id`]; 0 with ifindex where there is no endpoint.
    pub endpoint: u32,
    /// The policies that isolate the pod in this direction.
    pub rule_set: RuleSetId,
    /// The class of the other end's address, where it was looked up.
    pub class: ClassId,
    /// Denied packets of this flow that made no event since the last one that did.
    pub suppressed: u32,
    /// Length of the packet from its IP header on, in bytes.
    pub length: u32,
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

/// Value of `DENIALS` (an array indexed by `fingerprint & mask`): limits the events of one flow. Another flow that
/// takes the slot costs an event too many, never a verdict.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Denial {
    /// Hash of interface, direction, addresses, ports, protocol and reason.
    pub fingerprint: u64,
    /// Low 32 bits of the kernel's jiffies at the last event.
    pub last_event: u32,
    /// Packets since then.
    pub suppressed: u32,
}

const _: () = assert!(size_of::<Denial>() == 16);
