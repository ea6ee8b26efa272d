//! The `Context` in the kernel: packets are sk_buffs, tables are BPF maps. Only for the BPF target.

mod functions;
mod globals;
mod maps;
pub mod programs;
mod skb;
