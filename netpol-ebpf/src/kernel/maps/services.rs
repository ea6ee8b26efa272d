//! `SERVICES_V4` and `SERVICES_V6`: the class of each frontend's backend set.
//!
//! Size: the ports of Services times their addresses, and hostPorts. Entries are allocated on insertion; an empty map
//! takes 16 bytes per entry of capacity.

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::btf_maps::HashMap;
use aya_ebpf::macros::btf_map;
use netpol_common::{FrontendEntry, FrontendKey};

#[btf_map]
static SERVICES_V4: HashMap<FrontendKey<[u8; 4]>, FrontendEntry, 65_536, { BPF_F_NO_PREALLOC as usize }> =
    HashMap::new();

#[btf_map]
static SERVICES_V6: HashMap<FrontendKey<[u8; 16]>, FrontendEntry, 32_768, { BPF_F_NO_PREALLOC as usize }> =
    HashMap::new();

/// Returns the entry of this frontend.
#[inline(always)]
pub(in crate::kernel) fn get_v4(key: &FrontendKey<[u8; 4]>) -> Option<FrontendEntry> {
    // SAFETY: copied at once; entries are freed only after a grace period, and are one word.
    unsafe { SERVICES_V4.get(key) }.copied()
}

/// Returns the entry of this frontend.
#[inline(always)]
pub(in crate::kernel) fn get_v6(key: &FrontendKey<[u8; 16]>) -> Option<FrontendEntry> {
    // SAFETY: as above.
    unsafe { SERVICES_V6.get(key) }.copied()
}
