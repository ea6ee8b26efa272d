//! Why a packet passes or is dropped. One list for verdicts, counters, metrics and events.

use bytemuck::{Pod, Zeroable};

macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident = $code:literal, $name:literal, $allows:literal;)*) => {
        /// Why a packet passes or is dropped. A new reason does not compile until it has a name and a verdict.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum Reason { $($(#[$doc])* $variant = $code,)* }

        impl Reason {
            /// All of them, in the order of their codes.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The label in metrics and the field in events.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),* }
            }

            /// Whether the packet passes.
            #[inline(always)]
            pub const fn allows(self) -> bool {
                match self { $(Self::$variant => $allows),* }
            }

            /// The reason with this code.
            pub const fn from_code(code: u8) -> Option<Self> {
                match code { $($code => Some(Self::$variant),)* _ => None }
            }
        }
    };
}

reasons! {
    /// No policy isolates this direction.
    NotIsolated = 0, "not-isolated", true;
    /// A rule allows it.
    Rule = 1, "rule", true;
    /// It belongs to a flow that was allowed before, in either direction.
    Flow = 2, "flow", true;
    /// Between the pod and the node it runs on.
    OwnNode = 3, "own-node", true;
    /// The pod reaches itself.
    Itself = 4, "itself", true;
    /// ARP, neighbour and router discovery, multicast listener discovery.
    LinkControl = 5, "link-control", true;
    /// An ICMP error about an allowed flow.
    IcmpError = 6, "icmp-error", true;
    /// Through a Service, all or some of whose backends a rule allows; where some, it is judged again by the one it goes to.
    Service = 7, "service", true;
    /// The direction is isolated and no rule allows it.
    NoRule = 16, "no-rule", false;
    /// It belongs to a flow that was allowed once and no longer is.
    Revoked = 17, "revoked", false;
    /// The pod sent from an address that is not its own.
    ForeignSource = 18, "foreign-source", false;
    /// The interface belongs to no known pod, and unknown pods are denied.
    UnknownPod = 19, "unknown-pod", false;
    /// The program runs on an interface that has no endpoint.
    NoEndpoint = 20, "no-endpoint", false;
    /// The packet ends before its headers do, or its headers contradict themselves.
    Malformed = 21, "malformed", false;
    /// Neither IPv4 nor IPv6 nor ARP.
    NotIp = 22, "not-ip", false;
    /// More VLAN tags or IPv6 extension headers than are walked.
    TooManyHeaders = 23, "too-many-headers", false;
    /// A fragment whose first fragment was not seen or not allowed.
    OrphanFragment = 24, "orphan-fragment", false;
    /// The flow was allowed but could not be recorded: its answers would be lost.
    FlowTableFull = 25, "flow-table-full", false;
    /// No entry allows it, and some entries of this endpoint could not be written because a map is full.
    TablesIncomplete = 26, "tables-incomplete", false;
    /// To a Service, none of whose backends a rule allows.
    NoBackend = 27, "no-backend", false;
    /// To a Service, and it went to a backend that no rule allows.
    Backend = 28, "backend", false;
    /// To a Service, only some of whose backends a rule allows, and who it reaches is chosen outside this node.
    SomeBackends = 29, "some-backends", false;
    /// It was to be judged by where a Service sent it, and the pod that sent it is gone.
    SenderGone = 30, "sender-gone", false;
    /// To a tunnel endpoint of a node: what comes out of the tunnel would no longer be known as the pod's.
    TunnelEndpoint = 31, "tunnel-endpoint", false;
    /// The source address is that of a pod of this node, and another one sent it; or its sender is a pod of this node, and
    /// the source address is neither that pod's nor the local node's.
    SpoofedSource = 32, "spoofed-source", false;
    /// The Ethernet source, or a field of ARP or neighbor discovery, is not the pod's own; or a pod may not send such a message.
    SpoofedNeighbor = 33, "spoofed-neighbor", false;
    /// ARP, neighbor discovery or multicast listener discovery longer or more frequent than the protocols need.
    NeighborRate = 34, "neighbor-rate", false;
    /// A frame that a bridge flooded, with the MAC address of another host. Not a policy denial; never reported.
    OtherHost = 35, "other-host", false;
}

/// Room for reasons in [`Counters`]; codes are below it.
pub const REASONS: usize = 40;
/// No reason's code, within [`REASON_MASK`].
pub const NO_REASON: u8 = 63;
/// Every code and [`NO_REASON`] are within this mask.
pub const REASON_MASK: u8 = 63;

/// Value of `COUNTERS` (a per-CPU array indexed by `endpoint id * 2 + direction`): packets by [`Reason`] code.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counters {
    /// Packets, indexed by reason code.
    pub packets: [u64; REASONS],
}

// SAFETY: an array of numbers.
unsafe impl Zeroable for Counters {}
// SAFETY: as above.
unsafe impl Pod for Counters {}

impl Default for Counters {
    fn default() -> Self {
        Self { packets: [0; REASONS] }
    }
}

const _: () = {
    let mut i = 0;
    while i < Reason::ALL.len() {
        assert!((Reason::ALL[i] as usize) < REASONS && REASONS <= NO_REASON as usize);
        i += 1;
    }
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_names_its_reason() {
        for &reason in Reason::ALL {
            assert_eq!(Reason::from_code(reason as u8), Some(reason));
        }
        assert_eq!(Reason::from_code(NO_REASON), None);
    }
}
