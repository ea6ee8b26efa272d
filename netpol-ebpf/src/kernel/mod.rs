//! The kernel as surroundings: packets are sk_buffs, tables are maps. Only for the BPF target.

mod functions;
mod globals;
mod maps;
mod skb;

pub use skb::{Skb, hook};
