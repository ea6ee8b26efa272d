//! `DENIALS`: when a denied flow was last reported. `EVENT_BUDGETS`: how many events each pod may still cause.
//!
//! Sizing of `DENIALS`: a power of two of sets with four flows each; within a second, one budget takes 250 places at most. Where
//! all four of a set are taken by flows denied within the last second, one of them is reported too often. 64 bytes a set.
//! `EVENT_BUDGETS` has two entries of 16 bytes for each endpoint ID, as `COUNTERS` has. Both are always allocated.

use aya_ebpf::btf_maps::Array;
use aya_ebpf::macros::btf_map;
use netpol_common::{DenialSet, EventBudget};

use crate::kernel::globals;

/// Sets by default. The loader that sets another number sets `DENIAL_MASK` to one less.
pub(in crate::kernel) const CAPACITY: usize = 4096;

#[btf_map]
static DENIALS: Array<DenialSet, CAPACITY> = Array::new();

#[btf_map]
static EVENT_BUDGETS: Array<EventBudget, 2050> = Array::new();

/// The set that a denied flow belongs to.
#[inline(always)]
pub(in crate::kernel) fn set(index: u32) -> Option<*mut DenialSet> {
    DENIALS.get_ptr_mut(index & globals::denial_mask())
}

/// See [`netpol_common::event_budget`].
#[inline(always)]
pub(in crate::kernel) fn budget(index: u32) -> Option<*mut EventBudget> {
    EVENT_BUDGETS.get_ptr_mut(index)
}
