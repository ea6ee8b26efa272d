//! The programs of the BPF object, and their hooks.

use aya::programs::TcAttachType;

/// A BPF program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Program {
    /// Evaluates packets to a pod.
    Ingress,
    /// Evaluates packets from a pod.
    Egress,
    /// Rechecks packets that leave the node through a device: evaluates them again, post-DNAT.
    Recheck,
    /// The same, for devices without a link-layer header.
    RecheckL3,
}

impl Program {
    /// All programs.
    pub(super) const ALL: [Self; 4] = [Self::Ingress, Self::Egress, Self::Recheck, Self::RecheckL3];

    /// Returns the program's name in the BPF object.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Ingress => "netpol_ingress",
            Self::Egress => "netpol_egress",
            Self::Recheck => "netpol_recheck",
            Self::RecheckL3 => "netpol_recheck_l3",
        }
    }

    /// Returns the program's name in pin paths.
    pub(super) const fn short_name(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
            Self::Recheck => "recheck",
            Self::RecheckL3 => "recheck-l3",
        }
    }

    /// Returns the TC hook. At the host side of a pod's veth, the directions of hooks are reversed: a packet to the pod
    /// passes the egress hook.
    pub(super) const fn hook(self) -> TcAttachType {
        match self {
            Self::Ingress | Self::Recheck | Self::RecheckL3 => TcAttachType::Egress,
            Self::Egress => TcAttachType::Ingress,
        }
    }
}

/// The role of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// A pod's veth: packets from and to the pod are evaluated.
    Pod,
    /// A device through which traffic leaves the node: packets from pods are rechecked post-DNAT.
    Device,
    /// The same, for a device without a link-layer header, such as a tunnel.
    Tunnel,
}

impl Role {
    /// Returns the programs for this role.
    pub(super) const fn programs(self) -> &'static [Program] {
        match self {
            Self::Pod => &[Program::Ingress, Program::Egress],
            Self::Device => &[Program::Recheck],
            Self::Tunnel => &[Program::RecheckL3],
        }
    }

    /// Returns whether the interface is a device through which traffic leaves the node, not a pod's veth.
    pub const fn is_device(self) -> bool {
        !matches!(self, Self::Pod)
    }

    /// A mark is an empty directory in the pin path. It records that an interface has this role, and its name is the
    /// [`Program::short_name`] of the returned program. `None`: a pod's veth has no mark.
    pub(super) const fn mark_program(self) -> Option<Program> {
        match self {
            Self::Pod => None,
            Self::Device => Some(Program::Recheck),
            Self::Tunnel => Some(Program::RecheckL3),
        }
    }
}
