//! Rate limit of the ARP, neighbor discovery, multicast listener discovery and IGMP messages that pods send.

use core::mem::size_of;

use bytemuck::{Pod, Zeroable};

/// A token bucket: the value of `NEIGHBORS`, an array indexed by endpoint ID. A bucket of zeros counts as full: tokens
/// are added for the time since `last`, and `last` is long ago.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct NeighborBudget {
    /// Tokens, in units of 1/`HZ`: one packet costs `HZ` units.
    pub tokens: u32,
    /// The kernel's jiffies when tokens were last added, low 32 bits.
    pub last: u32,
}

const _: () = assert!(size_of::<NeighborBudget>() == 8);

/// The number of packets of ARP, neighbor discovery, multicast listener discovery and IGMP, in total, that an endpoint
/// can send per second. A pod with 250 neighbors on its bridge needs about 33: about every 30 seconds, in both address
/// families, it sends a request to each of them and a reply to each of them.
pub const NEIGHBOR_RATE: u32 = 100;
/// The number of these packets that an endpoint can send at once: a request and a reply to each of 250 neighbors, in
/// both address families.
pub const NEIGHBOR_BURST: u32 = 1000;
