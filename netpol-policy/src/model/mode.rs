//! The mode of policies (enforce or shadow), and suspensions of enforcement. Both are set by annotations of policies
//! and namespaces.

use std::sync::Arc;

use super::{NamespaceName, Timestamp};

/// The annotation of a `NetworkPolicy` with its mode, or of a Namespace with the mode of its policies.
pub const MODE_ANNOTATION: &str = "netpol.io/mode";
/// The annotation of a Namespace with the time until which the enforcement of its policies is suspended.
pub const SUSPENDED_UNTIL_ANNOTATION: &str = "netpol.io/suspended-until";
/// The annotation of the agents' Namespace with the time until which enforcement is suspended in all namespaces.
pub const SUSPEND_CLUSTER_ANNOTATION: &str = "netpol.io/suspend-cluster-until";
/// The annotation of a Namespace with the reason of a suspension.
pub const SUSPENDED_REASON_ANNOTATION: &str = "netpol.io/suspended-reason";

/// Whether a policy is enforced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mode {
    /// The policy is enforced.
    #[default]
    Enforce,
    /// The policy is evaluated, but not enforced: the connections that the policy would deny are allowed and reported.
    Shadow,
}

impl Mode {
    /// All modes.
    pub const BOTH: [Self; 2] = [Self::Enforce, Self::Shadow];

    /// Returns the value of the annotation: `enforce` or `shadow`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Enforce => "enforce",
            Self::Shadow => "shadow",
        }
    }

    /// Returns the mode with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::BOTH.into_iter().find(|mode| mode.name() == name)
    }
}

/// The annotations of a namespace that control enforcement: its mode and its suspensions.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct NamespaceModes {
    /// The mode of the namespace's policies; `None` without the annotation.
    pub mode: Option<Mode>,
    /// The end of the suspension of this namespace's policies.
    pub suspended_until: Option<Timestamp>,
    /// The end of the suspension of all policies. Only used if this is the namespace of the agents.
    pub cluster_suspended_until: Option<Timestamp>,
    /// The reason of both suspensions, as its author wrote it. They share one annotation.
    pub reason: Option<Arc<str>>,
}

impl NamespaceModes {
    /// Returns whether these annotations and `other` have the same effect on enforcement. The reason is ignored.
    pub fn has_same_effect_as(&self, other: &Self) -> bool {
        let effective = |modes: &Self| (modes.mode, modes.suspended_until, modes.cluster_suspended_until);
        effective(self) == effective(other)
    }
}

/// A suspension that is in effect.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Suspension {
    /// The namespace with the annotation.
    pub namespace: NamespaceName,
    /// Whether the annotation suspends the policies of all namespaces.
    pub cluster: bool,
    /// When it ends.
    pub until: Timestamp,
    /// Its reason.
    pub reason: Option<Arc<str>>,
}

impl Suspension {
    /// Returns whether this suspension and `other` come from the same annotation. The end and the reason may differ.
    pub fn is_from_same_annotation(&self, other: &Self) -> bool {
        (&self.namespace, self.cluster) == (&other.namespace, other.cluster)
    }
}
