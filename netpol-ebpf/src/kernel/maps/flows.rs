//! `FLOW_TABLES_V4`, `FLOW_TABLES_V6`: the flows of each endpoint, in an LRU hash of its own, by endpoint ID; and `FLOWS_V4`,
//! `FLOWS_V6`: one more, shared by endpoints that have no table of their own yet.
//!
//! What one pod opens can only evict flows of its own. The agent makes the tables ahead of need and chooses their sizes;
//! an ID that is given to another pod keeps its table, and the interface in the key tells their flows apart.
//!
//! Sizing: 104 and 128 bytes an entry, preallocated. Full, the least recently used go. Inner maps of other sizes than the
//! one declared here are accepted since Linux 5.10:
//! <https://github.com/torvalds/linux/commit/134fede4eecfcbe7900e789f625fa6f9c3a8cd0e>.

use aya_ebpf::bindings::{BPF_ANY, BPF_NOEXIST};
use aya_ebpf::btf_maps::{ArrayOfMaps, LruHashMap};
use aya_ebpf::helpers::bpf_map_lookup_elem;
use aya_ebpf::macros::btf_map;
use netpol_common::{Endpoint, FlowEntry, FlowKey};

use super::endpoints::CAPACITY;
use crate::barrier::barrier;

#[btf_map]
static FLOWS_V4: LruHashMap<FlowKey<[u8; 4]>, FlowEntry, 8192> = LruHashMap::new();

#[btf_map]
static FLOWS_V6: LruHashMap<FlowKey<[u8; 16]>, FlowEntry, 4096> = LruHashMap::new();

#[btf_map]
static FLOW_TABLES_V4: ArrayOfMaps<LruHashMap<FlowKey<[u8; 4]>, FlowEntry, 512>, { CAPACITY + 1 }> = ArrayOfMaps::new();

#[btf_map]
static FLOW_TABLES_V6: ArrayOfMaps<LruHashMap<FlowKey<[u8; 16]>, FlowEntry, 512>, { CAPACITY + 1 }> =
    ArrayOfMaps::new();

/// The endpoint's own table. The key of this lookup is the ID where it stands, in the endpoint: a copy would be on the stack, which
/// is short.
#[inline(always)]
fn own<T, const N: usize>(tables: &'static ArrayOfMaps<T, N>, endpoint: &Endpoint) -> Option<&'static T> {
    // Else the address of the ID would take a register until the packet is counted.
    let endpoint = barrier(endpoint);
    // SAFETY: the map has keys of four bytes, and its values are maps, which live for the rest of the program's run.
    unsafe {
        let table = bpf_map_lookup_elem(core::ptr::from_ref(tables).cast_mut().cast(), (&raw const endpoint.id).cast());
        table.cast::<T>().as_ref()
    }
}

macro_rules! accessors {
    ($tables:ident, $address:ty, $get:ident, $insert:ident) => {
        /// The flow's entry in the map itself: other CPUs see what is written to it.
        #[inline(always)]
        pub(in crate::kernel) fn $get(endpoint: &Endpoint, key: &FlowKey<$address>) -> Option<*mut FlowEntry> {
            own(&$tables, endpoint)?.get_ptr_mut(key)
        }

        /// Records a flow; whether it is recorded.
        #[inline(always)]
        pub(in crate::kernel) fn $insert(
            endpoint: &Endpoint,
            key: &FlowKey<$address>,
            entry: &FlowEntry,
            replaces: bool,
        ) -> bool {
            let flags = u64::from(if replaces { BPF_ANY } else { BPF_NOEXIST });
            own(&$tables, endpoint).is_some_and(|table| table.insert(key, entry, flags).is_ok())
        }
    };
}
accessors!(FLOW_TABLES_V4, [u8; 4], get_v4, insert_v4);
accessors!(FLOW_TABLES_V6, [u8; 16], get_v6, insert_v6);
