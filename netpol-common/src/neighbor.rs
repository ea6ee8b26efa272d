//! Rate limit of the ARP, neighbor discovery and multicast listener discovery messages that pods send.

use core::mem::size_of;

use bytemuck::{Pod, Zeroable};

/// Value of `NEIGHBORS`, an array indexed by endpoint ID: a token bucket. All zeros is a full bucket.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct NeighborBudget {
    /// Tokens, in units of 1/`HZ`: one packet costs `HZ` units.
    pub tokens: u32,
    /// The kernel's jiffies when tokens were last added, low 32 bits.
    pub last: u32,
}

const _: () = assert!(size_of::<NeighborBudget>() == 8);

/// Packets of ARP, neighbor discovery and multicast listener discovery that an endpoint can send per second, together.
/// A pod that communicates with 250 others on its bridge verifies each of them, and replies to each, about every 30
/// seconds.
pub const NEIGHBOR_RATE: u32 = 100;
/// Packets that it can send at once: requests and replies for 250 neighbors of both families.
pub const NEIGHBOR_BURST: u32 = 1000;
