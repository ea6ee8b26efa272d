//! Label selectors.

use std::sync::Arc;

use super::Labels;

/// A label selector: all requirements must hold; none selects everything. `matchLabels` are `In` with one value.
/// Sorted and without duplicates, so that equal selectors compare equal.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Selector {
    /// What must hold.
    pub requirements: Vec<Requirement>,
    /// Some requirement was not understood: selects nothing as a peer. As a policy's subject the agent says so and
    /// treats it as selecting every pod of the namespace, which isolates rather than opens.
    pub invalid: bool,
}

/// One requirement of a selector.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Requirement {
    /// The label is there and has one of these values (sorted).
    In(Arc<str>, Vec<Arc<str>>),
    /// The label is absent or has none of these values (sorted).
    NotIn(Arc<str>, Vec<Arc<str>>),
    /// The label is there.
    Exists(Arc<str>),
    /// The label is absent.
    DoesNotExist(Arc<str>),
}

impl Requirement {
    /// Whether `labels` meet it.
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
    /// Selects everything.
    pub fn everything() -> Self {
        Self::default()
    }

    /// Whether it selects an object with these labels, as a peer: an invalid selector selects nothing.
    pub fn matches(&self, labels: &Labels) -> bool {
        !self.invalid && self.requirements.iter().all(|requirement| requirement.holds(labels))
    }

    /// Whether a policy with this selector isolates a pod with these labels: an invalid selector isolates every pod of
    /// its namespace, so that a policy that is not understood never opens anything.
    pub fn isolates(&self, labels: &Labels) -> bool {
        self.invalid || self.requirements.iter().all(|requirement| requirement.holds(labels))
    }
}
