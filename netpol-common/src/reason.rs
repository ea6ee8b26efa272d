//! Reasons why a packet passes or is dropped. Verdicts, counters, metrics and events use the same list.

use bytemuck::{Pod, Zeroable};

macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident = $code:literal, $name:literal, $allows:literal;)*) => {
        /// The reason why a packet passes or is dropped. The macro requires a name and a verdict for each reason.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum Reason { $($(#[$doc])* $variant = $code,)* }

        impl Reason {
            /// All reasons, in the order of their codes.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// Returns the name, as in metrics (label `reason`) and in records of flows (field `reason`).
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),* }
            }

            /// Returns whether a packet with this reason passes.
            #[inline(always)]
            pub const fn allows(self) -> bool {
                match self { $(Self::$variant => $allows),* }
            }

            /// Returns the reason with this code.
            pub const fn from_code(code: u8) -> Option<Self> {
                match code { $($code => Some(Self::$variant),)* _ => None }
            }

            /// Returns the reason with this code, without a check.
            ///
            /// # Safety
            /// There must be a reason with this code.
            #[inline(always)]
            pub const unsafe fn from_code_unchecked(code: u8) -> Self {
                // SAFETY: the enum's representation is its code.
                unsafe { core::mem::transmute::<u8, Self>(code) }
            }
        }
    };
}

reasons! {
    /// No policy isolates this direction.
    NotIsolated = 0, "not-isolated", true;
    /// A rule allows the packet.
    Rule = 1, "rule", true;
    /// The packet belongs to an allowed flow, in either direction.
    Flow = 2, "flow", true;
    /// Traffic between the pod and the local node.
    LocalNode = 3, "local-node", true;
    /// Hairpin traffic: the pod reaches itself.
    Hairpin = 4, "hairpin", true;
    /// ARP, neighbor and router discovery, multicast listener discovery, IGMP.
    NeighborDiscovery = 5, "neighbor-discovery", true;
    /// An ICMP error that quotes a packet of an allowed flow.
    IcmpError = 6, "icmp-error", true;
    /// The packet is to a Service, and rules allow all or some of its backends. If they allow only some, each packet is
    /// rechecked post-DNAT.
    Service = 7, "service", true;
    /// A policy isolates this direction, and no rule allows the packet.
    NoRule = 16, "no-rule", false;
    /// The packet belongs to a flow that is no longer allowed.
    Revoked = 17, "revoked", false;
    /// Checked at the sending pod's interface: the pod sent the packet with a source address that is not its own.
    SpoofedSource = 18, "spoofed-source", false;
    /// The pod of the interface is not known, and unknown pods are denied. Or the interface has a pod's address, but
    /// the pod is bound to another interface (a conflict).
    UnknownPod = 19, "unknown-pod", false;
    /// The interface has programs, but no endpoint (entry in `ENDPOINTS`). A policy isolates the pod, and the agent
    /// could not write the endpoint.
    NoEndpoint = 20, "no-endpoint", false;
    /// The packet ends before the end of its headers, or its headers contradict each other.
    Malformed = 21, "malformed", false;
    /// The packet is neither IPv4 nor IPv6 nor ARP.
    NotIp = 22, "not-ip", false;
    /// The packet has more VLAN tags or IPv6 extension headers than the program reads.
    TooManyHeaders = 23, "too-many-headers", false;
    /// A later fragment of a datagram. The first fragment was denied or has not arrived, and policies do not allow all
    /// ports.
    OrphanFragment = 24, "orphan-fragment", false;
    /// The flow is allowed, but could not be recorded. Its replies would be denied.
    FlowTableFull = 25, "flow-table-full", false;
    /// No map entry allows the packet, and some entries of this endpoint are missing: see
    /// [`endpoint_flags::INCOMPLETE`](crate::endpoint_flags::INCOMPLETE).
    TablesIncomplete = 26, "tables-incomplete", false;
    /// The packet is to a Service, and no rule allows any of its backends.
    NoAllowedBackend = 27, "no-allowed-backend", false;
    /// The packet is to a Service, and no rule allows its post-DNAT destination, which is a backend.
    BackendDenied = 28, "backend-denied", false;
    /// The packet is to a Service, and rules allow only some of its backends. At the post-DNAT evaluation, the packet
    /// still has the Service's address, so another node selects the backend.
    NotAllBackendsAllowed = 29, "not-all-backends-allowed", false;
    /// The packet must be rechecked post-DNAT, and its source endpoint no longer exists.
    SourceEndpointGone = 30, "source-endpoint-gone", false;
    /// The packet is to a tunnel endpoint of a node. It is denied because the node would decapsulate it, and nothing
    /// would then show that the inner packet comes from the pod.
    TunnelEndpoint = 31, "tunnel-endpoint", false;
    /// At the receiving pod's interface: the source address is that of a pod of this node, but no pod of this node sent
    /// the packet. At this interface, and at devices that lead out of the node: a pod of this node sent the packet, and
    /// the source address is neither that pod's, nor the local node's, nor a Service's.
    UnverifiedSource = 32, "unverified-source", false;
    /// The Ethernet source address, or a field of ARP or neighbor discovery, is not the pod's own. Or the message is of
    /// a type that only routers send.
    SpoofedNeighbor = 33, "spoofed-neighbor", false;
    /// ARP, neighbor discovery, multicast listener discovery or IGMP that is longer or more frequent than the protocols
    /// need.
    NeighborLimit = 34, "neighbor-limit", false;
    /// A frame for another MAC address, which a bridge flooded. This is not a policy denial, and is never reported.
    OtherHost = 35, "other-host", false;
}

impl Reason {
    /// Returns whether an evaluation of the pod's policies can have this reason. This includes [`Self::LocalNode`] and
    /// [`Self::Hairpin`]: an evaluation allows such packets, whatever the rules are. All other reasons do not depend on
    /// an evaluation, or replace its result.
    pub const fn is_by_policies(self) -> bool {
        match self {
            Self::NotIsolated
            | Self::Rule
            | Self::Service
            | Self::LocalNode
            | Self::Hairpin
            | Self::NoRule
            | Self::Revoked
            | Self::NoAllowedBackend
            | Self::BackendDenied
            | Self::NotAllBackendsAllowed => true,
            Self::Flow
            | Self::NeighborDiscovery
            | Self::IcmpError
            | Self::NotIp
            | Self::OrphanFragment
            | Self::FlowTableFull
            | Self::TablesIncomplete
            | Self::SourceEndpointGone
            | Self::UnknownPod
            | Self::NoEndpoint
            | Self::TunnelEndpoint
            | Self::SpoofedSource
            | Self::Malformed
            | Self::TooManyHeaders
            | Self::UnverifiedSource
            | Self::SpoofedNeighbor
            | Self::NeighborLimit
            | Self::OtherHost => false,
        }
    }
}

/// The number of slots in [`Counters`]. The slot of a reason is its code. So the number is higher than every reason's
/// code, and some slots have no reason.
pub const COUNTER_SLOTS: usize = 40;
/// The slot in [`Counters`] for flows that were allowed, but that the policies in shadow mode (evaluated, not enforced)
/// would deny. No reason has this code.
pub const SHADOW_DENIED: usize = COUNTER_SLOTS - 1;
/// The code of a packet that has no verdict yet. No reason has this code.
pub const NO_REASON: u8 = 63;
/// The mask for reason codes. It gives the verifier an upper bound, and keeps every reason and [`NO_REASON`] unchanged.
pub const REASON_MASK: u8 = 63;

/// Value of `COUNTERS`, a per-CPU array indexed by `endpoint id * 2 + direction`: packets by [`Reason`] code, and flows
/// in the slot [`SHADOW_DENIED`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counters {
    /// Packets, indexed by reason code. The slot [`SHADOW_DENIED`] has flows.
    pub packets: [u64; COUNTER_SLOTS],
}

// SAFETY: an array of numbers.
unsafe impl Zeroable for Counters {}
// SAFETY: as above.
unsafe impl Pod for Counters {}

impl Counters {
    /// Returns the number of flows that were allowed, but that the policies in shadow mode would deny.
    pub const fn shadow_denied(&self) -> u64 {
        self.packets[SHADOW_DENIED]
    }
}

impl Default for Counters {
    fn default() -> Self {
        Self { packets: [0; COUNTER_SLOTS] }
    }
}

const _: () = {
    let mut i = 0;
    while i < Reason::ALL.len() {
        assert!((Reason::ALL[i] as usize) < SHADOW_DENIED && COUNTER_SLOTS <= NO_REASON as usize);
        i += 1;
    }
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_maps_to_its_reason() {
        for &reason in Reason::ALL {
            assert_eq!(Reason::from_code(reason as u8), Some(reason));
        }
        assert_eq!(Reason::from_code(NO_REASON), None);
    }
}
