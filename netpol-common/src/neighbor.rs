//! The bound on what pods send of ARP, neighbor discovery and multicast listener discovery.

use core::mem::size_of;

use bytemuck::{Pod, Zeroable};

/// Value of `NEIGHBORS` (an array by endpoint ID): a token bucket. Zeros are a full one.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct NeighborBudget {
    /// Tokens, in units of one per `HZ`: one packet costs `HZ` of them.
    pub tokens: u32,
    /// Low 32 bits of the kernel's jiffies when tokens were last added.
    pub last: u32,
}

const _: () = assert!(size_of::<NeighborBudget>() == 8);

/// Packets a second that an endpoint may send of ARP, neighbor discovery and multicast listener discovery together. A pod that
/// talks to 250 others on its bridge verifies each of them, and answers each of them, about every 30 seconds.
pub const NEIGHBOR_RATE: u32 = 100;
/// Packets that it may send at once: requests and replies for 250 neighbors of both families.
pub const NEIGHBOR_BURST: u32 = 1000;
