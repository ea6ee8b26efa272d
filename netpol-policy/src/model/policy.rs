//! Network policies, understood once.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::{PolicyKey, Problem, Selector};

/// A `networking.k8s.io/v1` `NetworkPolicy`.
/// Source: <https://kubernetes.io/docs/reference/kubernetes-api/policy-resources/network-policy-v1/>.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Policy {
    /// Its namespace and name.
    pub key: PolicyKey,
    /// The pods of its namespace that it selects.
    pub pods: Selector,
    /// The ingress rules, where it isolates for ingress.
    pub ingress: Option<Vec<Rule>>,
    /// The egress rules, where it isolates for egress.
    pub egress: Option<Vec<Rule>>,
    /// What was not understood. It matches nothing; the policy isolates all the same.
    pub problems: Vec<Problem>,
}

/// One item of `ingress` or `egress`: a peer and a port must both match. It keeps its index, so that rules are named as
/// people count them, also where parts of it were not understood.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rule {
    /// `from` or `to`.
    pub peers: Peers,
    /// `ports`.
    pub ports: Ports,
}

/// Whom a rule is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Peers {
    /// `from`/`to` absent or empty: anyone, outside the cluster included.
    Any,
    /// Any of these. Empty where none was understood: nobody.
    Of(Vec<Peer>),
}

/// One peer.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Peer {
    /// Pods by labels.
    Pods {
        /// Namespaces by labels; `None`: the policy's own.
        namespaces: Option<Selector>,
        /// Pods by labels; an absent `podSelector` is the empty selector.
        pods: Selector,
    },
    /// Addresses.
    Block(IpBlock),
}

/// An `ipBlock`. Host bits are masked.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IpBlock {
    /// The block.
    pub cidr: IpNet,
    /// What is cut out of it, sorted; subtracts from this block only.
    pub except: Vec<IpNet>,
}

impl IpBlock {
    /// Whether it covers an address.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.cidr.contains(&address) && !self.except.iter().any(|hole| hole.contains(&address))
    }
}

/// To which ports a rule applies.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Ports {
    /// `ports` absent or empty: every IP protocol and port.
    Any,
    /// Any of these. Empty where none was understood: none.
    Of(Vec<PortMatch>),
}

/// One item of `ports`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortMatch {
    /// The protocol; absent is TCP.
    pub protocol: Protocol,
    /// The ports of it.
    pub port: PortRange,
}

/// Ports of one protocol.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PortRange {
    /// `port` absent: all of the protocol's.
    All,
    /// `port` to `endPort`, both included; a single port is a range of one.
    Range(u16, u16),
    /// A name, resolved on the destination pod.
    Named(Arc<str>),
}

/// A protocol that policies can name.
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
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::Sctp];

    /// The protocol that Kubernetes spells so.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|protocol| protocol.name() == name)
    }

    /// The protocol with this IP protocol number.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|protocol| protocol.number() == number)
    }

    /// The IP protocol number.
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => netpol_common::protocol::TCP,
            Self::Udp => netpol_common::protocol::UDP,
            Self::Sctp => netpol_common::protocol::SCTP,
        }
    }

    /// As Kubernetes spells it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        }
    }
}
