//! The `Context` in the kernel: packets are sk_buffs, tables are BPF maps. Only for the BPF target.

mod functions;
mod globals;
mod maps;
mod skb;

pub use skb::{Skb, hook};
