//! `ENDPOINTS` and `ENDPOINTS_OVERFLOW`: the pods of this node.
//!
//! An array, because the verifier turns its lookup into three instructions where a hash costs 30 ns; and a hash for
//! interfaces whose slot another one holds, since an ifindex grows without bound as pods come and go.
//!
//! Sizing: a power of two above the pods of a node; 80 bytes a slot, always allocated.

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::btf_maps::{Array, HashMap};
use aya_ebpf::macros::btf_map;
use netpol_common::{Endpoint, IfIndex};

use crate::kernel::globals;

/// Slots by default. The loader that sets another number sets `ENDPOINT_MASK` to one less.
pub(in crate::kernel) const CAPACITY: usize = 1024;

#[btf_map]
static ENDPOINTS: Array<Endpoint, CAPACITY> = Array::new();

#[btf_map]
static ENDPOINTS_OVERFLOW: HashMap<IfIndex, Endpoint, 1024, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();

/// The endpoint of an interface.
#[inline(always)]
pub(in crate::kernel) fn get(ifindex: IfIndex) -> Option<&'static Endpoint> {
    if let Some(endpoint) = ENDPOINTS.get(ifindex.0 & globals::endpoint_mask())
        && endpoint.ifindex == ifindex
    {
        return Some(endpoint);
    }
    // SAFETY: the agent may replace the entry meanwhile, as it may in the array; fields are read as whole words, and
    // `generation` tells which policy they belong to.
    unsafe { ENDPOINTS_OVERFLOW.get(ifindex) }
}
