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
    /// The same where packets have no link header.
    Bare,
}

impl Program {
    /// All of them.
    pub(super) const ALL: [Self; 4] = [Self::Ingress, Self::Egress, Self::Behind, Self::Bare];

    /// As the object names it.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Ingress => "netpol_ingress",
            Self::Egress => "netpol_egress",
            Self::Behind => "netpol_behind",
            Self::Bare => "netpol_behind_bare",
        }
    }

    /// As people are told of it, and as its pins are called.
    pub(super) const fn place(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
            Self::Behind => "behind",
            Self::Bare => "bare",
        }
    }

    /// What a pod receives leaves by its veth, and the reverse.
    pub(super) const fn hook(self) -> TcAttachType {
        match self {
            Self::Ingress | Self::Behind | Self::Bare => TcAttachType::Egress,
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
    /// Such a device whose packets have no link header, as tunnels' have none.
    Tunnel,
}

impl Role {
    /// The programs that belong on it.
    pub(super) const fn programs(self) -> &'static [Program] {
        match self {
            Self::Pod => &[Program::Ingress, Program::Egress],
            Self::Device => &[Program::Behind],
            Self::Tunnel => &[Program::Bare],
        }
    }

    /// Whether it is a device of the node's own.
    pub const fn is_device(self) -> bool {
        !matches!(self, Self::Pod)
    }

    /// The program that tells such a device from a pod's veth.
    pub(super) const fn mark(self) -> Option<Program> {
        match self {
            Self::Pod => None,
            Self::Device => Some(Program::Behind),
            Self::Tunnel => Some(Program::Bare),
        }
    }
}
