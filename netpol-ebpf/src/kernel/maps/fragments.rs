//! `FRAGMENTS_V4` and `FRAGMENTS_V6`: the ports of fragmented datagrams, which only their first fragments carry.
//!
//! Sizing: fragmented datagrams under way at one time. Full, the least recently used go. 80 and 104 bytes each,
//! preallocated.

use aya_ebpf::bindings::BPF_ANY;
use aya_ebpf::btf_maps::LruHashMap;
use aya_ebpf::macros::btf_map;
use netpol_common::{FragmentEntry, FragmentKey};

#[btf_map]
static FRAGMENTS_V4: LruHashMap<FragmentKey<[u8; 4]>, FragmentEntry, 8_192> = LruHashMap::new();

#[btf_map]
static FRAGMENTS_V6: LruHashMap<FragmentKey<[u8; 16]>, FragmentEntry, 4_096> = LruHashMap::new();

macro_rules! accessors {
    ($map:ident, $address:ty, $get:ident, $insert:ident) => {
        /// What the datagram's first fragment said.
        #[inline(always)]
        pub(in crate::kernel) fn $get(key: &FragmentKey<$address>) -> Option<FragmentEntry> {
            // SAFETY: copied at once. An entry that is evicted and reused meanwhile makes a wrong port at worst, which
            // is then judged like any other.
            unsafe { $map.get(key) }.copied()
        }

        /// Records a first fragment. Without room its other fragments are orphans.
        #[inline(always)]
        pub(in crate::kernel) fn $insert(key: &FragmentKey<$address>, entry: &FragmentEntry) {
            let _ = $map.insert(key, entry, u64::from(BPF_ANY));
        }
    };
}
accessors!(FRAGMENTS_V4, [u8; 4], get_v4, insert_v4);
accessors!(FRAGMENTS_V6, [u8; 16], get_v6, insert_v6);
