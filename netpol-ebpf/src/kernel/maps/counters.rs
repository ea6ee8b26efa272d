//! `COUNTERS`: packets by reason, and flows that policies in shadow mode would deny. Policies in shadow mode are
//! evaluated and reported, but not enforced. `LOST_EVENTS`: events that did not fit into the ring buffer.
//!
//! Size of `COUNTERS`: two entries (one for each direction) per endpoint ID, 320 bytes each on every CPU, always
//! allocated. The entries of ID 0 count packets at interfaces that have no entry in `ENDPOINTS`, and packets with
//! the reason `source-endpoint-gone`.

use aya_ebpf::btf_maps::PerCpuArray;
use aya_ebpf::macros::btf_map;
use netpol_common::{COUNTER_SLOTS, Counters, Direction, REASON_MASK, Reason, SHADOW_DENIED};

#[btf_map]
static COUNTERS: PerCpuArray<Counters, 2050> = PerCpuArray::new();

#[btf_map]
static LOST_EVENTS: PerCpuArray<u64, 1> = PerCpuArray::new();

/// Counts a packet.
#[inline(always)]
pub(in crate::kernel) fn count(endpoint: u32, direction: Direction, reason: Reason) {
    increment(endpoint, direction, index(reason));
}

/// Counts an allowed flow that the policies in shadow mode would deny.
#[inline(always)]
pub(in crate::kernel) fn count_shadow_denied(endpoint: u32, direction: Direction) {
    increment(endpoint, direction, SHADOW_DENIED);
}

/// Increments one of the numbers in the [`Counters`] of an endpoint and direction.
#[inline(always)]
fn increment(endpoint: u32, direction: Direction, index: usize) {
    if let Some(counters) = COUNTERS.get_ptr_mut(endpoint.wrapping_mul(2).wrapping_add(direction as u32))
        && index < COUNTER_SLOTS
    {
        // SAFETY: the map entry belongs to this CPU, no other run of the program interrupts this one on the same CPU,
        // and the index is less than the length of `packets`.
        unsafe {
            let packets = (&raw mut (*counters).packets).cast::<u64>().add(index);
            packets.write(packets.read().wrapping_add(1));
        }
    }
}

/// Returns the index of a reason in [`Counters`]. The mask changes no value. It is applied in assembly, which hides the
/// range of the index from the compiler. Otherwise the compiler would omit the comparison with `COUNTER_SLOTS` in
/// [`increment`], because the codes of all reasons are lower. Older verifiers (kernel 6.1) need this comparison,
/// because they lose the bounds of a byte on the stack.
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

/// Counts an event that did not fit into the ring buffer.
#[inline(always)]
pub(in crate::kernel) fn count_lost_event() {
    if let Some(lost) = LOST_EVENTS.get_ptr_mut(0) {
        // SAFETY: as in `increment`.
        unsafe { lost.write(lost.read().wrapping_add(1)) };
    }
}
