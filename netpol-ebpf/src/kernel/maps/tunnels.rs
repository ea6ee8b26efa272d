//! `TUNNELS`: UDP ports and IP protocols of the tunnel endpoints of nodes.
//!
//! Size: a bit for each port and for each protocol, once for the local node and once for other nodes: 16 KiB, always
//! allocated.

use aya_ebpf::btf_maps::Array;
use aya_ebpf::macros::btf_map;
use netpol_common::TUNNEL_WORDS;

#[btf_map]
static TUNNELS: Array<u64, { TUNNEL_WORDS as usize }> = Array::new();

/// Returns a word of the bitmap.
#[inline(always)]
pub(in crate::kernel) fn get(index: u32) -> u64 {
    TUNNELS.get(index).copied().unwrap_or_default()
}
