//! The BPF maps. Each file has the maps of one purpose, their sizes and lookups.
//!
//! Capacities are defaults, which the loader can change. With the defaults, all maps together take less than 40 MiB on
//! two CPUs, mostly for flows (136 bytes each for IPv4, 160 for IPv6, preallocated).

pub(super) mod addresses;
pub(super) mod allow;
pub(super) mod counters;

pub(super) mod endpoint_ids;
pub(super) mod endpoints;
pub(super) mod event_limits;
pub(super) mod events;
pub(super) mod flows;
pub(super) mod fragments;
pub(super) mod neighbors;
pub(super) mod ports;
pub(super) mod prefixes;
pub(super) mod services;
pub(super) mod settings;
pub(super) mod tunnels;
