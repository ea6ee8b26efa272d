//! `PORTS`: the ports of each port set.
//!
//! Size: the ports of each distinct port set. A range counts as the prefixes that it is split into (at most 30).
//! Entries are allocated on insertion, and the capacity itself takes no memory. The agent limits the memory that
//! policies use.

use aya_ebpf::btf_maps::LpmTrie;
use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::macros::btf_map;
use netpol_common::{PORT_PREFIX_EXACT, PortEntry, PortKey};

#[btf_map]
static PORTS: LpmTrie<PortKey, PortEntry, 16_777_216> = LpmTrie::new();

/// Returns the longest match for one port of a set.
#[inline(always)]
pub(in crate::kernel) fn get(key: &PortKey) -> Option<PortEntry> {
    PORTS.get(&Key::new(PORT_PREFIX_EXACT, *key)).copied()
}
