//! `FRAGMENTS_V4` and `FRAGMENTS_V6`: the ports of fragmented datagrams. Only the first fragment has them.
//!
//! Size: the fragmented datagrams in transit at one time. An entry takes 104 bytes for IPv4 and 128 for IPv6,
//! preallocated. If a map is full, the least recently used entries are evicted.

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
        /// Returns the fields of the datagram's first fragment.
        #[inline(always)]
        pub(in crate::kernel) fn $get(key: &FragmentKey<$address>) -> Option<FragmentEntry> {
            // SAFETY: the entry is copied immediately. If it is evicted and reused during the copy, the result is at
            // worst a wrong port, which is evaluated like any other port.
            unsafe { $map.get(key) }.copied()
        }

        /// Records a first fragment. If that fails, later fragments are evaluated without ports.
        #[inline(always)]
        pub(in crate::kernel) fn $insert(key: &FragmentKey<$address>, entry: &FragmentEntry) {
            let _ = $map.insert(key, entry, u64::from(BPF_ANY));
        }
    };
}
accessors!(FRAGMENTS_V4, [u8; 4], get_v4, insert_v4);
accessors!(FRAGMENTS_V6, [u8; 16], get_v6, insert_v6);
