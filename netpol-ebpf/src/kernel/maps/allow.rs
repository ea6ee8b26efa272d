//! `ALLOW`: what a rule set allows to a class, if that is more than it allows to every address.
//!
//! Size: one entry for each such pair of rule set and class. Entries are allocated on insertion; an empty map takes
//! 16 bytes per entry of capacity.

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::btf_maps::HashMap;
use aya_ebpf::macros::btf_map;
use netpol_common::{AllowEntry, AllowKey};

#[btf_map]
static ALLOW: HashMap<AllowKey, AllowEntry, 524_288, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();

/// Returns what the rule set allows to the class.
#[inline(always)]
pub(in crate::kernel) fn get(key: &AllowKey) -> Option<AllowEntry> {
    // SAFETY: copied at once; entries are freed only after a grace period, and each field is one word.
    unsafe { ALLOW.get(key) }.copied()
}
