//! `EVENTS`: what is told about denied packets.
//!
//! Without a value type: libbpf, and so bpftool, refuses ring buffers that have one. The records are [`DenyEvent`].
//!
//! Sizing: a power of two of pages; 80 bytes an event, so 256 KiB hold three thousand that the agent has not read yet.

use aya_ebpf::btf_maps::RingBuf;
use aya_ebpf::macros::btf_map;
use netpol_common::DenyEvent;

#[btf_map]
static EVENTS: RingBuf<(), 262_144> = RingBuf::new();

/// Tells; whether there was room.
#[inline(always)]
pub(in crate::kernel) fn emit(event: &DenyEvent) -> bool {
    let Some(mut room) = EVENTS.reserve_untyped::<DenyEvent>(0) else { return false };
    // In place: the stack has 512 bytes for everything.
    room.write(*event);
    room.submit(0);
    true
}
