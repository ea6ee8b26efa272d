//! Labels of objects.

use std::sync::Arc;

/// Labels of an object, with unique names. This type is compact and cheap to clone: a cluster may have a hundred
/// thousand pods, and both the cluster state and the compile engine store the labels of these pods.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Labels(Arc<[(Arc<str>, Arc<str>)]>);

impl Labels {
    /// Creates an empty set of labels.
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns the value of a label.
    pub fn get(&self, name: &str) -> Option<&Arc<str>> {
        let index = self.0.binary_search_by(|(key, _)| (**key).cmp(name)).ok()?;
        Some(&self.0[index].1)
    }

    /// Returns whether a label with this name exists.
    pub fn contains_key(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// Returns whether there are no labels.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns names and values, sorted by name.
    pub fn iter(&self) -> impl Iterator<Item = (&Arc<str>, &Arc<str>)> {
        self.0.iter().map(|(name, value)| (name, value))
    }

    /// Returns the labels with one label added or replaced.
    #[must_use]
    pub fn with(&self, name: Arc<str>, value: Arc<str>) -> Self {
        self.0.iter().cloned().chain([(name, value)]).collect()
    }
}

/// Collects labels. If a name occurs more than once, its last value is used.
impl FromIterator<(Arc<str>, Arc<str>)> for Labels {
    fn from_iter<I: IntoIterator<Item = (Arc<str>, Arc<str>)>>(labels: I) -> Self {
        let mut labels: Vec<_> = labels.into_iter().collect();
        // The sort is stable, so the last of equal names stays last. `dedup_by` keeps the first of equal names, so it
        // is called on the reversed list.
        labels.sort_by(|(one, _), (other, _)| one.cmp(other));
        labels.reverse();
        labels.dedup_by(|(one, _), (other, _)| one == other);
        labels.reverse();
        Self(labels.into())
    }
}

impl<const N: usize> From<[(Arc<str>, Arc<str>); N]> for Labels {
    fn from(labels: [(Arc<str>, Arc<str>); N]) -> Self {
        labels.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_duplicate_names_the_last_value_is_used() {
        let labels =
            Labels::from([("b", "1"), ("a", "2"), ("b", "3")].map(|(name, value)| (name.into(), value.into())));
        let listed: Vec<_> = labels.iter().map(|(name, value)| (&**name, &**value)).collect();
        assert_eq!(listed, [("a", "2"), ("b", "3")]);
        assert_eq!(labels.get("b").map(|value| &**value), Some("3"));
        assert!(!labels.contains_key("c"));
        assert_eq!(labels.with("a".into(), "4".into()).get("a").map(|value| &**value), Some("4"));
    }
}
