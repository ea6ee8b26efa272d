//! Parsed `NetworkPolicy` objects.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use netpol_common::Direction;

use super::{Diagnostic, Mode, PolicyKey, Selector};

/// A `networking.k8s.io/v1` `NetworkPolicy`.
/// Source: <https://kubernetes.io/docs/reference/kubernetes-api/policy-resources/network-policy-v1/>.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Policy {
    /// Namespace and name.
    pub key: PolicyKey,
    /// Whether the policy is enforced, or only evaluated and reported (shadow mode). `None`: the mode of its namespace
    /// applies.
    pub mode: Option<Mode>,
    /// The pods that the policy selects in its namespace.
    pub pods: Selector,
    /// Ingress rules; `None`: the policy does not isolate for ingress.
    pub ingress: Option<Vec<Rule>>,
    /// Egress rules; `None`: the policy does not isolate for egress.
    pub egress: Option<Vec<Rule>>,
    /// Invalid parts. They match nothing, but the policy still isolates.
    pub diagnostics: Vec<Diagnostic>,
}

impl Policy {
    /// Returns the rules in a direction; `None`: the policy does not isolate in this direction.
    pub fn rules(&self, direction: Direction) -> Option<&[Rule]> {
        match direction {
            Direction::Ingress => self.ingress.as_deref(),
            Direction::Egress => self.egress.as_deref(),
        }
    }

    /// Returns whether the policy isolates its pods in a direction.
    pub fn isolates_in(&self, direction: Direction) -> bool {
        self.rules(direction).is_some()
    }
}

/// An item of `ingress` or `egress`: a peer and a port must both match. A rule's position in its list is the index in
/// the manifest, even if other items are invalid.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rule {
    /// `from` or `to`.
    pub peers: Peers,
    /// `ports`.
    pub ports: Ports,
}

/// The peers of a rule.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Peers {
    /// `from`/`to` absent or empty: any address, inside or outside the cluster.
    Any,
    /// Any of these peers. The list is empty if all peers are invalid: then no address matches.
    Of(Vec<Peer>),
}

impl Peers {
    /// Returns the listed peers; an empty slice for [`Peers::Any`].
    pub fn listed(&self) -> &[Peer] {
        match self {
            Self::Any => &[],
            Self::Of(peers) => peers,
        }
    }
}

/// A peer.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Peer {
    /// Pods selected by labels.
    Pods {
        /// Namespace selector; `None`: the policy's own namespace.
        namespaces: Option<Selector>,
        /// Pod selector. An absent `podSelector` is the empty selector.
        pods: Selector,
    },
    /// Addresses.
    Block(IpBlock),
}

/// An `ipBlock`. The host bits of its CIDRs are zero.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IpBlock {
    /// The block.
    pub cidr: IpNet,
    /// `except`, sorted. It excludes addresses from this block only: another peer can match them.
    pub except: Vec<IpNet>,
}

impl IpBlock {
    /// Returns whether the block contains an address and `except` does not.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.cidr.contains(&address) && !self.except.iter().any(|excluded| excluded.contains(&address))
    }
}

/// The ports of a rule.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Ports {
    /// `ports` absent or empty: every IP protocol and port.
    Any,
    /// Any of these ports. The list is empty if all items are invalid: then no port matches.
    Of(Vec<PortMatch>),
}

/// An item of `ports`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortMatch {
    /// Protocol; TCP if absent.
    pub protocol: Protocol,
    /// Ports of the protocol.
    pub port: PortRange,
}

/// Ports of one protocol.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PortRange {
    /// `port` absent: all ports of the protocol.
    All,
    /// From `port` to `endPort`, both included. A single port is a range of one.
    Range(u16, u16),
    /// A port name, resolved on the destination pod.
    Named(Arc<str>),
}

/// A protocol that policies support.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// `TCP`.
    Tcp,
    /// `UDP`.
    Udp,
    /// `SCTP`.
    Sctp,
}

impl Protocol {
    /// All protocols.
    pub const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::Sctp];

    /// Returns the protocol with this name in Kubernetes.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|protocol| protocol.name() == name)
    }

    /// Returns the protocol with this IP protocol number.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|protocol| protocol.number() == number)
    }

    /// Returns the IP protocol number.
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => netpol_common::protocol::TCP,
            Self::Udp => netpol_common::protocol::UDP,
            Self::Sctp => netpol_common::protocol::SCTP,
        }
    }

    /// Returns the name in Kubernetes.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        }
    }
}
