//! The eBPF programs: what happens to a packet at a pod's veth.
//!
//! ```text
//! frame ──► link ──► ip ──► transport ──► guard ──► flow ──► evaluate() ──► record
//!           VLAN     v4,v6  ports, ICMP   source    known?   policy      flow, counter, event
//! ```
//!
//! `process` is the entry point at a pod's veth. It handles plain packets: packets with only Ethernet, IP and transport
//! headers. The fast path is the part of `process` for plain packets of known flows. `slow_path` handles packets that
//! are not plain. `recheck` is the entry point post-DNAT (after address translation), where packets from pods are
//! evaluated again.
//!
//! The code is generic over `Context`, so that the same code runs in the kernel (`kernel`, on BPF maps) and in unit
//! tests (`memory`, on hash maps). It does not allocate or lock, its loops are bounded, and it needs nothing newer than
//! Linux 5.10.
//!
//! Below, the modules are listed in layers, the lowest layer first. A module uses only modules of lower layers. Some
//! functions are global BPF functions, because the verifier checks such a function once, and not once for each caller.
//! For each global function, a trait in the function's module has a method. By default, the method calls the Rust
//! function directly. `kernel` overrides the method with a call of the BPF function.

#![cfg_attr(target_arch = "bpf", no_std)]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]
#![allow(
    clippy::inline_always,
    reason = "the packet path must be one function after inlining, so that the verifier can prove every bound"
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
