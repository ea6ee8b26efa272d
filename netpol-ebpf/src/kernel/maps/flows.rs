//! `FLOWS_V4` and `FLOWS_V6`: what was judged once.
//!
//! Sizing: the flows open at one time at all pods of the node, counted at each of their pods' veths, plus those that
//! ended lately. Full, the least recently used go. 88 and 112 bytes each, preallocated.

use aya_ebpf::bindings::BPF_ANY;
use aya_ebpf::btf_maps::LruHashMap;
use aya_ebpf::macros::btf_map;
use netpol_common::{FlowEntry, FlowKey};

#[btf_map]
static FLOWS_V4: LruHashMap<FlowKey<[u8; 4]>, FlowEntry, 131_072> = LruHashMap::new();

#[btf_map]
static FLOWS_V6: LruHashMap<FlowKey<[u8; 16]>, FlowEntry, 65_536> = LruHashMap::new();

macro_rules! accessors {
    ($map:ident, $address:ty, $get:ident, $insert:ident) => {
        /// The flow's entry in the map itself: other CPUs see what is written to it.
        #[inline(always)]
        pub(in crate::kernel) fn $get(key: &FlowKey<$address>) -> Option<*mut FlowEntry> {
            $map.get_ptr_mut(key)
        }

        /// Records a flow; whether there was room.
        #[inline(always)]
        pub(in crate::kernel) fn $insert(key: &FlowKey<$address>, entry: &FlowEntry) -> bool {
            $map.insert(key, entry, u64::from(BPF_ANY)).is_ok()
        }
    };
}
accessors!(FLOWS_V4, [u8; 4], get_v4, insert_v4);
accessors!(FLOWS_V6, [u8; 16], get_v6, insert_v6);
