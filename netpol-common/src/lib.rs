//! What must not differ between the kernel programs and the agent: the keys and values of every map, the ids in
//! them, the reasons for a verdict, and [`judge()`], the verdict itself.
//!
//! ```text
//! netpol-policy ── writes ──► Endpoint, AddressEntry, AllowEntry, PortEntry ◄── looks up ── netpol-ebpf
//!                                         judge(), generic over Tables
//! netpol-agent  ◄── reads ─── FlowEntry, Counters, DenyEvent               ◄── records ── netpol-ebpf
//! ```
//!
//! Nothing here does I/O, allocates or panics. Every shared type is [`bytemuck::Pod`], without implicit padding, and
//! its layout is asserted at compile time. Changing a layout means raising [`LAYOUT_VERSION`].

#![no_std]
#![allow(
    clippy::inline_always,
    reason = "the packet path: one function after inlining, so that the verifier sees every bound"
)]

mod endpoint;
mod event;
mod flow;
mod frontend;
mod ids;
mod judge;
mod neighbor;
mod reason;
mod tables;
mod tunnels;

pub use endpoint::{DirectionPolicy, Endpoint, MAX_ENDPOINT_ID, RECHECK, endpoint_flags};
pub use event::{
    DENIAL_KEY_WORDS, DENIAL_WAYS, Denial, DenialSet, DenyEvent, EVENT_BURST, EVENT_INTERVAL_NS, EVENT_RATE,
    EventBudget, event_budget, event_flags,
};
pub use flow::{ANY_REMOTE, FlowEntry, FlowKey, FragmentEntry, FragmentKey, flow_state, flow_timeout, looks_closed};
pub use frontend::{FrontendEntry, FrontendKey, frontend_scope};
pub use ids::{ClassId, Direction, Generation, IfIndex, PortSetId, RuleId, RuleSetId};
pub use judge::{Address, Attempt, Judgement, SourceCheck, Tables, judge};
pub use neighbor::{NEIGHBOR_BURST, NEIGHBOR_RATE, NeighborBudget};
pub use reason::{Counters, NO_REASON, REASON_MASK, REASONS, Reason};
pub use tables::{
    AddressEntry, AllowEntry, AllowKey, PORT_PREFIX_EXACT, PORT_PREFIX_PROTOCOL, PortEntry, PortKey, address_flags,
    port_verdict,
};
pub use tunnels::{TUNNEL_WORDS, TunnelScope, TunnelWord};

/// Raised whenever the layout or the meaning of a map changes. Part of the pin path, so that an agent adopts only
/// maps it understands.
pub const LAYOUT_VERSION: u32 = 4;

/// IP protocol numbers with ports that policies can name.
/// Source: <https://www.iana.org/assignments/protocol-numbers/>.
pub mod protocol {
    /// ICMP for IPv4.
    pub const ICMP: u8 = 1;
    /// Internet Group Management Protocol: multicast listener discovery for IPv4.
    pub const IGMP: u8 = 2;
    /// Transmission Control Protocol.
    pub const TCP: u8 = 6;
    /// User Datagram Protocol.
    pub const UDP: u8 = 17;
    /// ICMP for IPv6.
    pub const ICMPV6: u8 = 58;
    /// Stream Control Transmission Protocol.
    pub const SCTP: u8 = 132;

    /// Whether policies can restrict this protocol by port.
    #[inline(always)]
    pub const fn has_ports(protocol: u8) -> bool {
        matches!(protocol, TCP | UDP | SCTP)
    }

    /// Whether a packet shows that it starts a flow: by SYN, or an INIT chunk.
    #[inline(always)]
    pub const fn has_handshake(protocol: u8) -> bool {
        matches!(protocol, TCP | SCTP)
    }
}
