//! `ENDPOINTS` and `ENDPOINTS_OVERFLOW`: the endpoints of this node.
//!
//! `ENDPOINTS` is an array, because the verifier replaces an array lookup with three instructions, while a hash lookup
//! takes 30 ns. `ENDPOINTS_OVERFLOW` is a hash for interfaces that would share a slot with another one: each new
//! interface gets a higher ifindex, so two of them can have the same low bits. Its value is the index of a further slot
//! of the array, not an endpoint. If an endpoint could be in either of two maps, the verifier would check all code
//! twice.
//!
//! Size: a power of two above the number of pods of a node, and as many further slots for the interfaces in the hash.
//! 96 bytes per slot, always allocated.

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::btf_maps::{Array, HashMap};
use aya_ebpf::macros::btf_map;
use netpol_common::{Endpoint, IfIndex};

use crate::kernel::globals;

/// The default number of slots that are indexed by ifindex; there are as many further slots. A loader that changes this
/// number has to set `ENDPOINT_MASK` to one less.
pub(in crate::kernel) const CAPACITY: usize = 1024;

#[btf_map]
static ENDPOINTS: Array<Endpoint, { 2 * CAPACITY }> = Array::new();

#[btf_map]
static ENDPOINTS_OVERFLOW: HashMap<IfIndex, u32, CAPACITY, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();

/// Returns the endpoint of an interface.
#[inline(always)]
pub(in crate::kernel) fn get(ifindex: IfIndex) -> Option<&'static Endpoint> {
    // The agent may replace an endpoint at the same time. Fields are read as whole words, and `version` shows which
    // policy they belong to.
    if let Some(endpoint) = ENDPOINTS.get(ifindex.0 & globals::endpoint_mask())
        && endpoint.ifindex == ifindex
    {
        return Some(endpoint);
    }
    // SAFETY: a number, which is read as a whole.
    let index = unsafe { ENDPOINTS_OVERFLOW.get(ifindex) }?;
    ENDPOINTS.get(*index).filter(|endpoint| endpoint.ifindex == ifindex)
}
