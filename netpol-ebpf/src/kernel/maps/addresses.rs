//! `ADDRESSES_V4` and `ADDRESSES_V6`: the class of each address of a pod, node or Service.
//!
//! Size: the addresses of the cluster's pods, nodes and Services. Entries are allocated on insertion; an empty map
//! takes 16 bytes per entry of capacity.

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::btf_maps::HashMap;
use aya_ebpf::macros::btf_map;
use netpol_common::AddressEntry;

#[btf_map]
static ADDRESSES_V4: HashMap<[u8; 4], AddressEntry, 131_072, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();

#[btf_map]
static ADDRESSES_V6: HashMap<[u8; 16], AddressEntry, 65_536, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();

/// Returns the entry of exactly this address.
#[inline(always)]
pub(in crate::kernel) fn get_v4(address: &[u8; 4]) -> Option<AddressEntry> {
    // SAFETY: copied at once; entries are freed only after a grace period, and each field is one word.
    unsafe { ADDRESSES_V4.get(address) }.copied()
}

/// Returns the entry of exactly this address.
#[inline(always)]
pub(in crate::kernel) fn get_v6(address: &[u8; 16]) -> Option<AddressEntry> {
    // SAFETY: as above.
    unsafe { ADDRESSES_V6.get(address) }.copied()
}
