//! `DENIALS`, `ALLOWED_FLOWS`: when a denied or an allowed flow was last reported. `EVENT_BUDGETS`: how many events
//! each pod can still cause. An entry of `EVENT_BUDGETS` is called a budget.
//!
//! Size of `DENIALS` and `ALLOWED_FLOWS`: a power of two. An entry is a set of slots for four flows and takes 64 bytes.
//! A budget allows at most 250 events in a second (`EVENT_BURST` + `EVENT_RATE`), so its events take at most 250
//! slots. If more than four flows of a set are reported within a second, some of them are reported too often. Allowed
//! flows have their own map, so that they do not take the slots of denied flows. `EVENT_BUDGETS` has six entries of 16
//! bytes for each endpoint ID. The memory of all three maps is allocated when they are created.

use aya_ebpf::btf_maps::Array;
use aya_ebpf::macros::btf_map;
use netpol_common::{EventBudget, EventLimitSet};

use crate::kernel::globals;

/// The default number of sets in `DENIALS` and in `ALLOWED_FLOWS`. A loader that changes the number for one of these
/// maps has to set `DENIAL_MASK` or `ALLOWED_FLOW_MASK` to the number of sets less one.
pub(in crate::kernel) const CAPACITY: usize = 4096;

#[btf_map]
static DENIALS: Array<EventLimitSet, CAPACITY> = Array::new();

#[btf_map]
static ALLOWED_FLOWS: Array<EventLimitSet, CAPACITY> = Array::new();

#[btf_map]
static EVENT_BUDGETS: Array<EventBudget, 6150> = Array::new();

/// Returns the set of slots for a denied flow. `index` is a hash of the flow.
#[inline(always)]
pub(in crate::kernel) fn denied(index: u32) -> Option<*mut EventLimitSet> {
    DENIALS.get_ptr_mut(index & globals::denial_mask())
}

/// Returns the set of slots for an allowed flow. `index` is a hash of the flow.
#[inline(always)]
pub(in crate::kernel) fn allowed(index: u32) -> Option<*mut EventLimitSet> {
    ALLOWED_FLOWS.get_ptr_mut(index & globals::allowed_flow_mask())
}

/// Returns an event budget. `index` is from [`netpol_common::event_budget`].
#[inline(always)]
pub(in crate::kernel) fn budget(index: u32) -> Option<*mut EventBudget> {
    EVENT_BUDGETS.get_ptr_mut(index)
}
