//! The eBPF programs: what happens to a packet at a pod's veth.
//!
//! ```text
//! frame ──► link ──► ip ──► transport ──► guard ──► flow ──► evaluate() ──► record
//!           VLAN     v4,v6  ports, ICMP   source    known?   policy      flow, counter, event
//! ```
//!
//! [`process()`] is the entry point. It has a fast path for plain packets and a slow path for all others. It is generic
//! over [`Context`], so that the same code runs in the kernel (`kernel`, on BPF maps) and in unit tests (`memory`,
//! on hash maps). The code does not allocate or lock, its loops are bounded, and it needs nothing newer than
//! Linux 5.10.

#![cfg_attr(target_arch = "bpf", no_std)]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]
#![allow(
    clippy::inline_always,
    reason = "the packet path: one function after inlining, so that the verifier can prove every bound"
)]

mod barrier;
mod case;
mod context;
mod denied;
mod flow;
mod fragment;
mod guard;
mod packet;
mod process;
mod slot;
mod slow_path;
mod verdict;

#[cfg(target_arch = "bpf")]
pub mod kernel;
#[cfg(not(target_arch = "bpf"))]
pub mod memory;

pub use case::Case;
pub use context::{Context, Family};
pub use flow::timeout;
pub use packet::{Bytes, Window};
pub use process::{process, process_post_dnat, process_source};
pub use slot::Slot;
pub use slow_path::{FrameKind, Quoted};
