//! Ids that appear in maps. Each is its own type, so that one is never taken for another.

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
    /// The kernel's index of a network interface, in the namespace the agent runs in.
    IfIndex
}
id! {
    /// The policies that select a pod in one direction, interned. [`RuleSetId::NONE`]: the direction is not isolated.
    RuleSetId
}
id! {
    /// Addresses that every peer in use on this node treats alike. [`ClassId::NOBODY`]: no peer names the address.
    ClassId
}
id! {
    /// A set of `(protocol, port range)`, interned.
    PortSetId
}
id! {
    /// One rule of one policy in one direction. The kernel carries it for people; the agent knows its name.
    RuleId
}
id! {
    /// Counts the changes that touch an endpoint. A flow judged under another generation is judged again.
    Generation
}

impl RuleSetId {
    /// No policy isolates this direction: everything is allowed.
    pub const NONE: Self = Self(0);
}

impl ClassId {
    /// The class of addresses that no selector and no block in use names. It has no allow entries of its own.
    pub const NOBODY: Self = Self(0);
}

impl PortSetId {
    /// No port at all.
    pub const NONE: Self = Self(0);
    /// Every IP protocol and every port.
    pub const ALL: Self = Self(u32::MAX);
    /// Some of a Service's backends: a connection is judged again by the one it goes to.
    pub const SOME: Self = Self(u32::MAX - 1);
}

impl RuleId {
    /// No single rule decided.
    pub const NONE: Self = Self(0);
}

/// Seen from the pod: ingress is what arrives at it, egress is what it sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Direction {
    /// Towards the pod: the veth's TC egress hook.
    Ingress = 0,
    /// From the pod: the veth's TC ingress hook.
    Egress = 1,
}

impl Direction {
    /// Both directions.
    pub const BOTH: [Self; 2] = [Self::Ingress, Self::Egress];

    /// The direction with this code, as it stands in maps and events.
    #[inline(always)]
    pub const fn from_code(code: u8) -> Option<Self> {
        match code {
            0 => Some(Self::Ingress),
            1 => Some(Self::Egress),
            _ => None,
        }
    }

    /// The other direction.
    #[inline(always)]
    #[must_use]
    pub const fn opposite(self) -> Self {
        match self {
            Self::Ingress => Self::Egress,
            Self::Egress => Self::Ingress,
        }
    }

    /// `ingress` or `egress`: the field in events and the label in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }
}
