//! `ENDPOINT_IDS`: the interface of each endpoint, by endpoint ID. Packets carry this ID after they have left the
//! endpoint.
//!
//! Size: one entry per endpoint ID; 8 bytes each, always allocated.

use aya_ebpf::btf_maps::Array;
use aya_ebpf::macros::btf_map;
use netpol_common::IfIndex;

#[btf_map]
static ENDPOINT_IDS: Array<IfIndex, 1025> = Array::new();

/// Returns the interface of the endpoint with this ID, or 0 if there is none.
#[inline(always)]
pub(in crate::kernel) fn get(endpoint: u32) -> IfIndex {
    ENDPOINT_IDS.get(endpoint).copied().unwrap_or_default()
}
