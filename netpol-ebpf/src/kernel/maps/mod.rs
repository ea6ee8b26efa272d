//! The maps: one file each, with what it holds, how large it is and the only lookups there are.
//!
//! Capacities are defaults; the loader may set others. At these, all maps together take some 32 MiB on two CPUs, most of
//! it for flows (88 bytes each for IPv4, 112 for IPv6, preallocated).

pub(super) mod addresses;
pub(super) mod allow;
pub(super) mod counters;
pub(super) mod denials;
pub(super) mod endpoints;
pub(super) mod events;
pub(super) mod flows;
pub(super) mod fragments;
pub(super) mod neighbors;
pub(super) mod ports;
pub(super) mod prefixes;
pub(super) mod senders;
pub(super) mod services;
pub(super) mod tunnels;
