//! What could not be understood, for people.

use std::fmt;

use serde::Serialize;

use crate::text::Safe;

/// Something about an object that was not understood or is likely not meant so.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Problem {
    /// How bad it is.
    pub severity: Severity,
    /// Path of the field, such as `spec.ingress[0].from[1].ipBlock.cidr`.
    pub field: String,
    /// What is wrong with it, and what to write instead.
    pub message: String,
}

/// `field: message`.
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", Safe(&self.field), Safe(&self.message))
    }
}

/// How bad a [`Problem`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Hash)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Understood, but unusual: host bits in a CIDR, for one.
    Warning,
    /// Not understood; it matches nothing.
    Error,
}

impl Severity {
    /// `warning` or `error`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}
