//! `SENDERS`: the interface of each endpoint, by the endpoint's number, which packets carry once they left it.
//!
//! Sizing: half of `COUNTERS`: a number for each endpoint, from 1; 8 bytes each, always allocated.

use aya_ebpf::btf_maps::Array;
use aya_ebpf::macros::btf_map;
use netpol_common::IfIndex;

#[btf_map]
static SENDERS: Array<IfIndex, 1025> = Array::new();

/// The interface of the endpoint with this number; 0: there is none.
#[inline(always)]
pub(in crate::kernel) fn get(endpoint: u32) -> IfIndex {
    SENDERS.get(endpoint).copied().unwrap_or_default()
}
