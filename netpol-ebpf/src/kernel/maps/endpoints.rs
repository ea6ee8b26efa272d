//! `ENDPOINTS` and `ENDPOINTS_OVERFLOW`: the pods of this node.
//!
//! An array, because the verifier turns its lookup into three instructions where a hash costs 30 ns; and a hash for
//! interfaces whose slot another one holds, since an ifindex grows without bound as pods come and go. The hash has the index of
//! one more slot of the array, not the endpoint: the verifier walks through everything twice where an endpoint may be in
//! either of two maps.
//!
//! Sizing: a power of two above the pods of a node, and as many slots again for the hash; 80 bytes a slot, always allocated.

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::btf_maps::{Array, HashMap};
use aya_ebpf::macros::btf_map;
use netpol_common::{Endpoint, IfIndex};

use crate::kernel::globals;

/// Slots by default, of those that an ifindex leads to and of the others. The loader that sets another number of the former sets
/// `ENDPOINT_MASK` to one less.
pub(in crate::kernel) const CAPACITY: usize = 1024;

#[btf_map]
static ENDPOINTS: Array<Endpoint, { 2 * CAPACITY }> = Array::new();

#[btf_map]
static ENDPOINTS_OVERFLOW: HashMap<IfIndex, u32, CAPACITY, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();

/// The endpoint of an interface.
#[inline(always)]
pub(in crate::kernel) fn get(ifindex: IfIndex) -> Option<&'static Endpoint> {
    // The agent may replace an endpoint meanwhile: fields are read as whole words, and `generation` tells which policy they belong to.
    if let Some(endpoint) = ENDPOINTS.get(ifindex.0 & globals::endpoint_mask())
        && endpoint.ifindex == ifindex
    {
        return Some(endpoint);
    }
    // SAFETY: a number, which is read as a whole.
    let index = unsafe { ENDPOINTS_OVERFLOW.get(ifindex) }?;
    ENDPOINTS.get(*index).filter(|endpoint| endpoint.ifindex == ifindex)
}
