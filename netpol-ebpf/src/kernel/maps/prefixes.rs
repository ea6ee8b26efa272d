//! `PREFIXES_V4` and `PREFIXES_V6`: who an address is by the longest block that covers it.
//!
//! Sizing: the distinct blocks and excepts of all policies in use on this node. Entries are allocated as they come, and the
//! capacity itself takes no memory: the agent limits what policies take.

use aya_ebpf::btf_maps::LpmTrie;
use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::macros::btf_map;
use netpol_common::AddressEntry;

#[btf_map]
static PREFIXES_V4: LpmTrie<[u8; 4], AddressEntry, 16_777_216> = LpmTrie::new();

#[btf_map]
static PREFIXES_V6: LpmTrie<[u8; 16], AddressEntry, 16_777_216> = LpmTrie::new();

/// The entry of the longest prefix that covers the address.
#[inline(always)]
pub(in crate::kernel) fn get_v4(address: &[u8; 4]) -> Option<AddressEntry> {
    PREFIXES_V4.get(&Key::new(32, *address)).copied()
}

/// The entry of the longest prefix that covers the address.
#[inline(always)]
pub(in crate::kernel) fn get_v6(address: &[u8; 16]) -> Option<AddressEntry> {
    PREFIXES_V6.get(&Key::new(128, *address)).copied()
}
