//! Label selectors.

use std::sync::Arc;

use super::Labels;

/// A label selector. All requirements must hold; a selector without requirements selects everything. `matchLabels` are
/// `In` requirements with one value. Requirements are sorted and unique, so that equal selectors compare equal.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Selector {
    /// Requirements.
    pub requirements: Vec<Requirement>,
    /// Whether a requirement is invalid. As a peer, an invalid selector matches nothing. As the `podSelector` of a
    /// policy, an invalid selector selects every pod of the namespace, so that these pods are isolated. In both cases,
    /// a diagnostic reports the error.
    pub invalid: bool,
}

/// A requirement of a selector.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Requirement {
    /// The label exists and has one of these values (sorted).
    In(Arc<str>, Vec<Arc<str>>),
    /// The label is absent or has none of these values (sorted).
    NotIn(Arc<str>, Vec<Arc<str>>),
    /// The label exists.
    Exists(Arc<str>),
    /// The label is absent.
    DoesNotExist(Arc<str>),
}

impl Requirement {
    /// Returns whether `labels` meet the requirement.
    pub fn holds(&self, labels: &Labels) -> bool {
        match self {
            Self::In(key, values) => labels.get(key).is_some_and(|value| values.binary_search(value).is_ok()),
            Self::NotIn(key, values) => labels.get(key).is_none_or(|value| values.binary_search(value).is_err()),
            Self::Exists(key) => labels.contains_key(key),
            Self::DoesNotExist(key) => !labels.contains_key(key),
        }
    }
}

impl Selector {
    /// Creates a selector that selects everything.
    pub fn everything() -> Self {
        Self::default()
    }

    /// Returns whether the selector matches these labels as a peer. An invalid selector matches nothing.
    pub fn matches(&self, labels: &Labels) -> bool {
        !self.invalid && self.requirements.iter().all(|requirement| requirement.holds(labels))
    }

    /// Same as [`Self::matches`], but true for an invalid selector. Used for the pods that a policy isolates: if an
    /// invalid selector matched no pod, an error in a policy would leave the intended pods without isolation.
    pub fn matches_or_is_invalid(&self, labels: &Labels) -> bool {
        self.invalid || self.requirements.iter().all(|requirement| requirement.holds(labels))
    }
}
