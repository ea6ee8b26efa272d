//! A map from each key to a set of values.

use std::collections::BTreeMap;
use std::ops::RangeBounds;

/// Maps each key to a set of values. A set is a sorted vector, because most sets have only one value. Keys without
/// values are not stored, so two indexes with the same content compare as equal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Index<K, V> {
    entries: BTreeMap<K, Vec<V>>,
}

impl<K, V> Default for Index<K, V> {
    fn default() -> Self {
        Self { entries: BTreeMap::new() }
    }
}

impl<K: Ord, V: Ord> Index<K, V> {
    /// Adds a value to a key, unless the key has it already.
    pub(crate) fn insert(&mut self, key: K, value: V) {
        let values = self.entries.entry(key).or_insert_with(|| Vec::with_capacity(1));
        if let Err(position) = values.binary_search(&value) {
            values.insert(position, value);
        }
    }

    /// Removes a value from a key, if the key has it.
    pub(crate) fn remove(&mut self, key: &K, value: &V) {
        let Some(values) = self.entries.get_mut(key) else { return };
        if let Ok(position) = values.binary_search(value) {
            values.remove(position);
        }
        if values.is_empty() {
            self.entries.remove(key);
        }
    }

    /// Removes a key and returns its values.
    pub(crate) fn take(&mut self, key: &K) -> Vec<V> {
        self.entries.remove(key).unwrap_or_default()
    }

    /// Returns the values of a key.
    pub(crate) fn get(&self, key: &K) -> &[V] {
        self.entries.get(key).map(Vec::as_slice).unwrap_or_default()
    }

    /// Returns whether a key has values.
    pub(crate) fn contains(&self, key: &K) -> bool {
        self.entries.contains_key(key)
    }

    /// Returns all keys. Each has at least one value.
    pub(crate) fn keys(&self) -> impl Iterator<Item = &K> {
        self.entries.keys()
    }

    /// Returns the keys in a range, with their values.
    pub(crate) fn range(&self, range: impl RangeBounds<K>) -> impl Iterator<Item = (&K, &[V])> {
        self.entries.range(range).map(|(key, values)| (key, &values[..]))
    }
}
