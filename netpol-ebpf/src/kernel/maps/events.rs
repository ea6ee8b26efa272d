//! `EVENTS`: events of denied packets and allowed flows.
//!
//! The map has no value type, because libbpf (and therefore bpftool) rejects ring buffers that have one. The records
//! are [`FlowEvent`].
//!
//! Size: a power of two, in whole pages. An event takes 80 bytes (8 of them are the header), so 256 KiB contain up to
//! 3,276 events that the agent has not read yet.

use aya_ebpf::btf_maps::RingBuf;
use aya_ebpf::helpers::generated::bpf_ringbuf_query;
use aya_ebpf::macros::btf_map;
use netpol_common::FlowEvent;

#[btf_map]
static EVENTS: RingBuf<(), 262_144> = RingBuf::new();

/// `BPF_RB_AVAIL_DATA` and `BPF_RB_RING_SIZE`: flags of `bpf_ringbuf_query`. Source: `include/uapi/linux/bpf.h`.
const AVAILABLE_DATA: u64 = 0;
const RING_SIZE: u64 = 1;

/// Returns whether more than half of the ring buffer has not been read yet.
#[inline(always)]
pub(in crate::kernel) fn is_half_full() -> bool {
    let query = |flags| {
        // SAFETY: the loader replaces this pointer with the map, and the map is a ring buffer.
        unsafe { bpf_ringbuf_query(core::ptr::from_ref(&EVENTS).cast_mut().cast(), flags) }
    };
    query(AVAILABLE_DATA) > query(RING_SIZE) / 2
}

/// Sends an event, and returns whether there was room for it.
#[inline(always)]
pub(in crate::kernel) fn emit(event: &FlowEvent) -> bool {
    let Some(mut room) = EVENTS.reserve_untyped::<FlowEvent>(0) else { return false };
    // Written in place, because the stack has only 512 bytes.
    room.write(*event);
    room.submit(0);
    true
}
