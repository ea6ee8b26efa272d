//! `DENIALS`: when a denied flow was last reported. `EVENT_BUDGETS`: how many events each pod can still cause.
//!
//! Size of `DENIALS`: a power of two. A set has slots for four flows and takes 64 bytes. Within a second, one budget
//! takes at most 250 slots. If more than four flows of a set are denied within a second, some of them are reported too
//! often. `EVENT_BUDGETS` has two entries of 16 bytes for each endpoint ID, as `COUNTERS` has. Both are always
//! allocated.

use aya_ebpf::btf_maps::Array;
use aya_ebpf::macros::btf_map;
use netpol_common::{DenialSet, EventBudget};

use crate::kernel::globals;

/// The default number of sets. A loader that changes it has to set `DENIAL_MASK` to one less.
pub(in crate::kernel) const CAPACITY: usize = 4096;

#[btf_map]
static DENIALS: Array<DenialSet, CAPACITY> = Array::new();

#[btf_map]
static EVENT_BUDGETS: Array<EventBudget, 2050> = Array::new();

/// Returns the set of a denied flow.
#[inline(always)]
pub(in crate::kernel) fn set(index: u32) -> Option<*mut DenialSet> {
    DENIALS.get_ptr_mut(index & globals::denial_mask())
}

/// Returns a budget, see [`netpol_common::event_budget`].
#[inline(always)]
pub(in crate::kernel) fn budget(index: u32) -> Option<*mut EventBudget> {
    EVENT_BUDGETS.get_ptr_mut(index)
}
