//! IDs in map keys and values. Each kind of ID has its own type, so that they cannot be mixed up.

use bytemuck::{Pod, Zeroable};

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[repr(transparent)]
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
        pub struct $name(pub u32);

        impl core::fmt::Display for $name {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                core::fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

id! {
    /// The kernel's index of a network interface, in the network namespace of the agent.
    IfIndex
}
id! {
    /// A rule set: the resolved rules of all policies that isolate a pod in one direction. Equal rule sets share an ID.
    /// [`RuleSetId::NONE`]: the direction is not isolated.
    RuleSetId
}
id! {
    /// An equivalence class of addresses: all its addresses match the same peer selectors of policies on this node. (A
    /// peer selector is one condition of a rule on a peer, such as a pod selector or an ipBlock.) [`ClassId::NONE`]:
    /// the address matches no peer selector.
    ClassId
}
id! {
    /// A set of protocols and port ranges. Equal sets share an ID.
    PortSetId
}
id! {
    /// One rule of one policy in one direction. [`evaluate()`](crate::evaluate()) copies this ID into its result, but
    /// no verdict depends on it. The agent maps the ID to a name.
    RuleId
}
id! {
    /// The version of an endpoint (a pod interface under enforcement). Each change of any endpoint takes the next
    /// number, so no two endpoints have the same version. If a flow was evaluated with another version than its
    /// endpoint has now, the flow is evaluated again.
    EndpointVersion
}

impl RuleSetId {
    /// The direction is not isolated: everything is allowed.
    pub const NONE: Self = Self(0);
}

impl ClassId {
    /// The class of addresses that match no peer selector. The map `ALLOW` (what a rule set allows to a class) has no
    /// entries for it.
    pub const NONE: Self = Self(0);
}

impl PortSetId {
    /// No ports.
    pub const NONE: Self = Self(0);
    /// Every IP protocol and every port.
    pub const ALL: Self = Self(u32::MAX);
    /// Some backends of a Service are allowed. This value is only in entries of the map `ALLOW` with a class that
    /// represents the backends of a Service port. Connections to the Service are rechecked (evaluated again) post-DNAT,
    /// by the selected backend.
    pub const SOME: Self = Self(u32::MAX - 1);
}

impl RuleId {
    /// No rule is named. Examples: the packet is denied, or it is sent to a Service, where each backend may be allowed
    /// by another rule.
    pub const NONE: Self = Self(0);
}

/// The direction of a packet, from the pod's point of view.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Direction {
    /// To the pod: the veth's TC egress hook.
    Ingress = 0,
    /// From the pod: the veth's TC ingress hook.
    Egress = 1,
}

impl Direction {
    /// Both directions.
    pub const BOTH: [Self; 2] = [Self::Ingress, Self::Egress];

    /// Returns the direction with this code, as used in maps and events.
    #[inline(always)]
    pub const fn from_code(code: u8) -> Option<Self> {
        match code {
            0 => Some(Self::Ingress),
            1 => Some(Self::Egress),
            _ => None,
        }
    }

    /// Returns the other direction.
    #[inline(always)]
    #[must_use]
    pub const fn opposite(self) -> Self {
        match self {
            Self::Ingress => Self::Egress,
            Self::Egress => Self::Ingress,
        }
    }

    /// Returns `ingress` or `egress`: the field in events and the label in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }
}
