//! `EVENTS`: deny events.
//!
//! The map has no value type, because libbpf (and therefore bpftool) rejects ring buffers that have one. The records
//! are [`FlowEvent`].
//!
//! Size: a power of two, in whole pages. An event takes 80 bytes, so 256 KiB contain up to 3,000 events that the agent
//! has not read yet.

use aya_ebpf::btf_maps::RingBuf;
use aya_ebpf::macros::btf_map;
use netpol_common::FlowEvent;

#[btf_map]
static EVENTS: RingBuf<(), 262_144> = RingBuf::new();

/// Sends an event, and returns whether there was room for it.
#[inline(always)]
pub(in crate::kernel) fn emit(event: &FlowEvent) -> bool {
    let Some(mut room) = EVENTS.reserve_untyped::<FlowEvent>(0) else { return false };
    // Written in place, because the stack has only 512 bytes.
    room.write(*event);
    room.submit(0);
    true
}
