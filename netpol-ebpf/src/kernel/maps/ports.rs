//! `PORTS`: the ports of a port set.
//!
//! Sizing: for each distinct port set its ports, a range counting as the prefixes that make it up (at most 30). Entries
//! are allocated as they come, and the capacity itself takes no memory: the agent limits what policies take.

use aya_ebpf::btf_maps::LpmTrie;
use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::macros::btf_map;
use netpol_common::{PORT_PREFIX_EXACT, PortEntry, PortKey};

#[btf_map]
static PORTS: LpmTrie<PortKey, PortEntry, 16_777_216> = LpmTrie::new();

/// The longest match for one port of a set.
#[inline(always)]
pub(in crate::kernel) fn get(key: &PortKey) -> Option<PortEntry> {
    PORTS.get(&Key::new(PORT_PREFIX_EXACT, *key)).copied()
}
