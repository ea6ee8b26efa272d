//! `PREFIXES_V4` and `PREFIXES_V6`: the class of each CIDR.
//!
//! Size: the distinct CIDRs (`cidr` and `except` of ipBlocks) of all policies in use on this node. Entries are
//! allocated on insertion, so the capacity itself takes no memory. The agent limits the memory that policies use.

use aya_ebpf::btf_maps::LpmTrie;
use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::macros::btf_map;
use netpol_common::AddressEntry;

#[btf_map]
static PREFIXES_V4: LpmTrie<[u8; 4], AddressEntry, 16_777_216> = LpmTrie::new();

#[btf_map]
static PREFIXES_V6: LpmTrie<[u8; 16], AddressEntry, 16_777_216> = LpmTrie::new();

/// Returns the entry of the longest prefix that covers the address.
#[inline(always)]
pub(in crate::kernel) fn get_v4(address: &[u8; 4]) -> Option<AddressEntry> {
    PREFIXES_V4.get(&Key::new(32, *address)).copied()
}

/// Returns the entry of the longest prefix that covers the address.
#[inline(always)]
pub(in crate::kernel) fn get_v6(address: &[u8; 16]) -> Option<AddressEntry> {
    PREFIXES_V6.get(&Key::new(128, *address)).copied()
}
