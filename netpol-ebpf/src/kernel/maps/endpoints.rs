//! `ENDPOINTS` and `ENDPOINTS_OVERFLOW`: the endpoints of this node.
//!
//! `ENDPOINTS` is an array, because the verifier replaces an array lookup with three instructions, while a hash lookup
//! takes 30 ns. The low bits of an ifindex select a slot in the first half of the array. Each new interface gets a
//! higher ifindex, so two interfaces can have the same low bits. Then one of them gets a slot in the second half, and
//! `ENDPOINTS_OVERFLOW`, a hash, contains the index of this slot. The hash does not contain endpoints themselves: if an
//! endpoint could be in either of two maps, the verifier would check all code twice.
//!
//! Size: each half of the array has the same number of slots, a power of two above the number of pods of a node. A slot
//! has 96 bytes, which are always allocated.

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::btf_maps::{Array, HashMap};
use aya_ebpf::macros::btf_map;
use netpol_common::{Endpoint, IfIndex};

use crate::kernel::globals;

/// The default number of slots in each half of `ENDPOINTS`: the first half is indexed by ifindex, the second half is
/// for `ENDPOINTS_OVERFLOW`. A loader that changes this number must set `ENDPOINT_MASK` to the new number minus one.
pub(in crate::kernel) const CAPACITY: usize = 1024;

#[btf_map]
static ENDPOINTS: Array<Endpoint, { 2 * CAPACITY }> = Array::new();

#[btf_map]
static ENDPOINTS_OVERFLOW: HashMap<IfIndex, u32, CAPACITY, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();

/// Returns the endpoint of an interface.
#[inline(always)]
pub(in crate::kernel) fn get(ifindex: IfIndex) -> Option<&'static Endpoint> {
    // The agent may replace the endpoint while a program reads it. Each field is read as a whole word. A program reads
    // `version` first, and the agent writes it last. So if a flow is evaluated with a mix of old and new fields, the
    // flow is recorded with the old version, and is evaluated again.
    if let Some(endpoint) = ENDPOINTS.get(ifindex.0 & globals::endpoint_mask())
        && endpoint.ifindex == ifindex
    {
        return Some(endpoint);
    }
    // SAFETY: the value is one number, which is read as a whole even if the agent replaces it at the same time.
    let index = unsafe { ENDPOINTS_OVERFLOW.get(ifindex) }?;
    ENDPOINTS.get(*index).filter(|endpoint| endpoint.ifindex == ifindex)
}
