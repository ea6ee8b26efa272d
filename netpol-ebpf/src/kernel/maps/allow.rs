//! `ALLOW`: what a rule set allows to a class beyond what it allows to anyone.
//!
//! Sizing: for each rule set the classes it names. Entries are allocated as they come; empty, 16 bytes per entry of
//! capacity.

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::btf_maps::HashMap;
use aya_ebpf::macros::btf_map;
use netpol_common::{AllowEntry, AllowKey};

#[btf_map]
static ALLOW: HashMap<AllowKey, AllowEntry, 524_288, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();

/// What the rule set allows to the class.
#[inline(always)]
pub(in crate::kernel) fn get(key: &AllowKey) -> Option<AllowEntry> {
    // SAFETY: copied at once; entries are freed only after a grace period, and each field is one word.
    unsafe { ALLOW.get(key) }.copied()
}
