//! `COUNTERS` and `LOST_EVENTS`: how many packets, and why.
//!
//! Sizing: two entries per endpoint id, 320 bytes each on every CPU, always allocated. Id 0 counts packets at
//! interfaces that have no endpoint.

use aya_ebpf::btf_maps::PerCpuArray;
use aya_ebpf::macros::btf_map;
use netpol_common::{Counters, Direction, REASON_MASK, REASONS, Reason};

#[btf_map]
static COUNTERS: PerCpuArray<Counters, 2050> = PerCpuArray::new();

#[btf_map]
static LOST_EVENTS: PerCpuArray<u64, 1> = PerCpuArray::new();

/// Counts a packet.
#[inline(always)]
pub(in crate::kernel) fn count(endpoint: u32, direction: Direction, reason: Reason) {
    if let Some(counters) = COUNTERS.get_ptr_mut(endpoint.wrapping_mul(2).wrapping_add(direction as u32)) {
        // SAFETY: the slot is this CPU's own, and the program is not preempted by itself on one CPU; the index is in it.
        unsafe {
            let index = index(reason);
            if index < REASONS {
                let packets = (&raw mut (*counters).packets).cast::<u64>().add(index);
                packets.write(packets.read().wrapping_add(1));
            }
        }
    }
}

/// The compiler knows the codes, and would leave out the comparison. Older verifiers (6.1) forget the bounds of a byte on
/// the stack, and need it.
#[inline(always)]
fn index(reason: Reason) -> usize {
    let mut index = reason as usize;
    // SAFETY: computes in a register only.
    unsafe {
        core::arch::asm!(
            "{index} &= {mask}",
            index = inout(reg) index,
            mask = const REASON_MASK as i32,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    index
}

/// Counts an event that found no room.
#[inline(always)]
pub(in crate::kernel) fn lost_event() {
    if let Some(lost) = LOST_EVENTS.get_ptr_mut(0) {
        // SAFETY: as above.
        unsafe { lost.write(lost.read().wrapping_add(1)) };
    }
}
