//! `FLOW_TABLES_V4`, `FLOW_TABLES_V6`: arrays of flow tables. The slot of an endpoint ID contains the flow table of
//! this endpoint, an LRU hash. So a pod's flows can evict only its own flows.
//!
//! `FLOWS_V4`, `FLOWS_V6`: one more flow table, shared by the endpoints that do not have their own table yet. The agent
//! stores the shared table in the slots of these endpoints' IDs, so the programs find both kinds of tables in the same
//! way.
//!
//! The agent chooses the sizes of the tables. It creates tables in advance for the IDs that it will allocate next. If
//! an ID is given to another pod, the table of the ID stays. The interface in the key separates the flows of the two
//! pods.
//!
//! Size: an entry takes 136 bytes for IPv4 and 160 for IPv6, preallocated. If a table is full, the least recently used
//! entries are evicted. Inner maps with other sizes than declared here are accepted since Linux 5.10:
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

/// Returns the table in the slot of the endpoint's ID. The lookup reads the ID in the endpoint itself, because a copy
/// would take space on the stack, which is small.
#[inline(always)]
fn flow_table<T, const N: usize>(tables: &'static ArrayOfMaps<T, N>, endpoint: &Endpoint) -> Option<&'static T> {
    // The packet is counted by the same ID later. Without the barrier, the compiler would keep the address of the ID in
    // a register until then.
    let endpoint = barrier(endpoint);
    // SAFETY: the map has keys of four bytes, and its values are maps, which live until the program ends.
    unsafe {
        let table = bpf_map_lookup_elem(core::ptr::from_ref(tables).cast_mut().cast(), (&raw const endpoint.id).cast());
        table.cast::<T>().as_ref()
    }
}

macro_rules! accessors {
    ($tables:ident, $address:ty, $get:ident, $insert:ident) => {
        /// Returns the flow's entry in the map itself, so that other CPUs see writes to it.
        #[inline(always)]
        pub(in crate::kernel) fn $get(endpoint: &Endpoint, key: &FlowKey<$address>) -> Option<*mut FlowEntry> {
            flow_table(&$tables, endpoint)?.get_ptr_mut(key)
        }

        /// Records a flow, and returns whether it was recorded. An existing entry is overwritten only if `replaces` is
        /// set.
        #[inline(always)]
        pub(in crate::kernel) fn $insert(
            endpoint: &Endpoint,
            key: &FlowKey<$address>,
            entry: &FlowEntry,
            replaces: bool,
        ) -> bool {
            let flags = u64::from(if replaces { BPF_ANY } else { BPF_NOEXIST });
            flow_table(&$tables, endpoint).is_some_and(|table| table.insert(key, entry, flags).is_ok())
        }
    };
}
accessors!(FLOW_TABLES_V4, [u8; 4], get_v4, insert_v4);
accessors!(FLOW_TABLES_V6, [u8; 16], get_v6, insert_v6);
