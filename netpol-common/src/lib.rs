//! Types and code that the eBPF programs and the agent share: the keys and values of all maps, the IDs in them, the
//! reasons for verdicts, and [`evaluate()`], which evaluates policies.
//!
//! ```text
//! netpol-policy ── computes ──► Endpoint, AddressEntry, AllowEntry, PortEntry ◄── evaluate() looks up ── netpol-ebpf
//! netpol-agent  ◄── reads ───── FlowEntry, Counters, FlowEvent                ◄── writes ─────────────── netpol-ebpf
//! ```
//!
//! [`evaluate()`] is generic over [`Tables`], so the same code evaluates packets in the kernel (with BPF maps) and in
//! user space (with tables in memory).
//!
//! This crate does no I/O, does not allocate and does not panic. Every shared type is [`bytemuck::Pod`] and has no
//! implicit padding. Its layout is asserted at compile time. A change of a layout requires a new [`LAYOUT_VERSION`].

#![no_std]
#![allow(
    clippy::inline_always,
    reason = "the packet path must be one function after inlining, so that the verifier can prove every bound"
)]

mod endpoint;
mod evaluate;
mod event;
mod flow;
mod frontend;
mod ids;
mod neighbor;
mod reason;
mod tables;
mod tunnels;

pub use endpoint::{DirectionPolicy, Endpoint, MAX_ENDPOINT_ID, RECHECK, endpoint_flags};
pub use evaluate::{Address, Attempt, Evaluation, SourceCheck, Tables, evaluate, evaluate_policy};
pub use event::{
    EVENT_BUDGETS_PER_ENDPOINT, EVENT_BURST, EVENT_INTERVAL_NS, EVENT_KEY_WORDS, EVENT_LIMIT_WAYS, EVENT_RATE,
    EventBudget, EventKind, EventLimit, EventLimitSet, FlowEvent, Settings, charged_budget, event_budget, event_flags,
};
pub use flow::{
    ANY_REMOTE, FlowEntry, FlowKey, FragmentEntry, FragmentKey, Traffic, flow_state, flow_timeout, is_closed,
};
pub use frontend::{FrontendEntry, FrontendKey, frontend_scope};
pub use ids::{ClassId, Direction, EndpointVersion, IfIndex, PortSetId, RuleId, RuleSetId};
pub use neighbor::{NEIGHBOR_BURST, NEIGHBOR_RATE, NeighborBudget};
pub use reason::{COUNTER_SLOTS, Counters, NO_REASON, REASON_MASK, Reason, SHADOW_DENIED};
pub use tables::{
    AddressEntry, AllowEntry, AllowKey, PORT_PREFIX_EXACT, PORT_PREFIX_PROTOCOL, PortEntry, PortKey, address_flags,
    port_verdict,
};
pub use tunnels::{TUNNEL_WORDS, TunnelBit, TunnelScope};

/// The version of the maps' layout and meaning. It is part of the pin path, so that an agent adopts only maps that it
/// can read.
pub const LAYOUT_VERSION: u32 = 7;

/// IP protocol numbers. Source: <https://www.iana.org/assignments/protocol-numbers/>.
pub mod protocol {
    /// Internet Control Message Protocol for IPv4.
    pub const ICMP: u8 = 1;
    /// Internet Group Management Protocol, the IPv4 counterpart of multicast listener discovery.
    pub const IGMP: u8 = 2;
    /// Transmission Control Protocol.
    pub const TCP: u8 = 6;
    /// User Datagram Protocol.
    pub const UDP: u8 = 17;
    /// ICMP for IPv6.
    pub const ICMPV6: u8 = 58;
    /// Stream Control Transmission Protocol.
    pub const SCTP: u8 = 132;

    /// Returns whether policies can restrict this protocol by port.
    #[inline(always)]
    pub const fn has_ports(protocol: u8) -> bool {
        matches!(protocol, TCP | UDP | SCTP)
    }

    /// Returns whether flows of this protocol start with a special packet: a SYN (TCP) or an INIT chunk (SCTP).
    #[inline(always)]
    pub const fn has_handshake(protocol: u8) -> bool {
        matches!(protocol, TCP | SCTP)
    }
}
