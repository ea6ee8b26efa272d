//! The eBPF programs: what happens to a packet at a pod's veth.
//!
//! ```text
//! frame ──► link ──► ip ──► transport ──► guard ──► flow ──► evaluate() ──► record
//!           VLAN     v4,v6  ports, ICMP   source    known?   policy      flow, counter, event
//! ```
//!
//! `process` is the entry point at a pod's veth and the fast path for plain packets; `recheck` is the entry point
//! post-DNAT. `slow_path` handles all other packets. The code is generic over `Context`, so that the same code runs in
//! the kernel (`kernel`, on BPF maps) and in unit tests (`memory`, on hash maps). It does not allocate or lock, its
//! loops are bounded, and it needs nothing newer than Linux 5.10.
//!
//! The modules are listed in layers, the lowest first, and use lower layers only. Some functions are separate BPF
//! functions in the kernel. The verifier checks these once, and not once for each caller. Their module declares them in
//! a trait, with a default body that calls the function directly. `kernel` overrides the bodies.

#![cfg_attr(target_arch = "bpf", no_std)]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]
#![allow(
    clippy::inline_always,
    reason = "the packet path: one function after inlining, so that the verifier can prove every bound"
)]

mod barrier;
mod slot;
mod window;

mod context;

mod packet;

mod flow;
mod fragment;
mod guard;
mod traffic;

mod case;
mod event_limit;
mod packet_verdict;
mod stale;

mod verdict;

mod flow_lookup;
mod report;

mod slow_path;

mod process;
mod recheck;

#[cfg(target_arch = "bpf")]
pub mod kernel;
#[cfg(not(target_arch = "bpf"))]
pub mod memory;

pub use flow::timeout;
