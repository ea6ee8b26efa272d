//! The verdict of a connection.

use std::collections::BTreeSet;

use serde::Serialize;

/// The verdict of a connection, or of one side of it. Variants are ordered from the best verdict to the worst.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Verdict {
    /// Allowed.
    Allow,
    /// Of several connections, some are allowed and some are denied. Also used for a Service without backends.
    #[serde(rename = "some")]
    Partial,
    /// The verdict depends on a policy that is not evaluated, on an unknown address, or on objects that the user cannot
    /// list.
    Unknown,
    /// Denied.
    Deny,
}

impl Verdict {
    /// `Allow` or `Deny`.
    pub const fn of(allowed: bool) -> Self {
        if allowed { Self::Allow } else { Self::Deny }
    }

    /// Returns the verdict of a connection: the worse verdict of its two sides.
    pub(crate) fn of_sides(egress: Self, ingress: Self) -> Self {
        egress.max(ingress)
    }

    /// Returns one verdict for several connections, such as those to the backends of a Service. If all connections have
    /// the same verdict, returns this verdict. Otherwise returns [`Verdict::Partial`] if some are allowed and some are
    /// denied, else [`Verdict::Unknown`]. `None` without connections.
    pub fn of_several(verdicts: impl IntoIterator<Item = Self>) -> Option<Self> {
        let verdicts: BTreeSet<Self> = verdicts.into_iter().collect();
        let has = |verdict| verdicts.contains(&verdict);
        Some(match verdicts.first()? {
            first if verdicts.len() == 1 => *first,
            _ if has(Self::Partial) || has(Self::Allow) && has(Self::Deny) => Self::Partial,
            _ => Self::Unknown,
        })
    }

    /// `allow`, `some`, `unknown` or `deny`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Partial => "some",
            Self::Unknown => "unknown",
            Self::Deny => "deny",
        }
    }
}
