//! `NEIGHBORS`: rate limits of ARP, neighbor discovery, multicast listener discovery and IGMP, for each endpoint.
//!
//! Size: one entry per endpoint ID, as in `ENDPOINT_IDS`; 8 bytes each, always allocated.

use aya_ebpf::btf_maps::Array;
use aya_ebpf::macros::btf_map;
use netpol_common::NeighborBudget;

#[btf_map]
static NEIGHBORS: Array<NeighborBudget, 1025> = Array::new();

/// Returns the token bucket of an endpoint.
#[inline(always)]
pub(in crate::kernel) fn slot(endpoint: u32) -> Option<*mut NeighborBudget> {
    NEIGHBORS.get_ptr_mut(endpoint)
}
