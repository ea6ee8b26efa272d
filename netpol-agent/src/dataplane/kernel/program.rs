//! The programs of the object, and where each goes.

use aya::programs::TcAttachType;

/// A program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Program {
    /// What reaches a pod.
    Ingress,
    /// What a pod sends.
    Egress,
    /// What leaves by a device of the node's own.
    Behind,
}

impl Program {
    /// All of them.
    pub(super) const ALL: [Self; 3] = [Self::Ingress, Self::Egress, Self::Behind];

    /// As the object names it.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Ingress => "netpol_ingress",
            Self::Egress => "netpol_egress",
            Self::Behind => "netpol_behind",
        }
    }

    /// As people are told of it, and as its pins are called.
    pub(super) const fn place(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
            Self::Behind => "behind",
        }
    }

    /// What a pod receives leaves by its veth, and the reverse.
    pub(super) const fn hook(self) -> TcAttachType {
        match self {
            Self::Ingress | Self::Behind => TcAttachType::Egress,
            Self::Egress => TcAttachType::Ingress,
        }
    }
}

/// What an interface is to netpol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// A pod's veth: what it sends and what reaches it is judged.
    Pod,
    /// A device that traffic leaves by: what pods sent is judged by where a Service sent it on.
    Device,
}

impl Role {
    /// The programs that belong on it.
    pub(super) const fn programs(self) -> &'static [Program] {
        match self {
            Self::Pod => &[Program::Ingress, Program::Egress],
            Self::Device => &[Program::Behind],
        }
    }
}
