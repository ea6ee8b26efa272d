//! `DENIALS`: when a denied flow was last told of.
//!
//! Sizing: a power of two; about the flows that are denied within a second. Two flows in one slot make events too many.
//! 16 bytes a slot, always allocated.

use aya_ebpf::btf_maps::Array;
use aya_ebpf::macros::btf_map;
use netpol_common::Denial;

use crate::kernel::globals;

/// Slots by default. The loader that sets another number sets `DENIAL_MASK` to one less.
pub(in crate::kernel) const CAPACITY: usize = 8192;

#[btf_map]
static DENIALS: Array<Denial, CAPACITY> = Array::new();

/// The slot of a fingerprint, which another flow may hold.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "masked")]
pub(in crate::kernel) fn slot(fingerprint: u64) -> Option<*mut Denial> {
    DENIALS.get_ptr_mut((fingerprint >> 32) as u32 & globals::denial_mask())
}
