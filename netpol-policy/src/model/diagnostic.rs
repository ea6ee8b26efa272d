//! Diagnostics: invalid, unsupported or suspicious parts of objects.

use std::fmt;

use serde::Serialize;

use crate::text::Safe;

/// An invalid, unsupported or suspicious part of an object.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Diagnostic {
    /// Severity.
    pub severity: Severity,
    /// Path of the field, such as `spec.ingress[0].from[1].ipBlock.cidr`.
    pub field: String,
    /// What is wrong and how to fix it.
    pub message: String,
}

/// Writes `field: message`, with invisible characters escaped.
impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", Safe(&self.field), Safe(&self.message))
    }
}

/// Severity of a [`Diagnostic`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Hash)]
#[serde(rename_all = "camelCase")]
pub enum Severity {
    /// Valid and common; a fact to review.
    Info,
    /// Valid but unusual, such as host bits in a CIDR.
    Warning,
    /// Invalid or unsupported; the part matches nothing.
    Error,
}

impl Severity {
    /// Returns `info`, `warning` or `error`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}
