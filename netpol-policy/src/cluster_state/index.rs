//! Indexes of the cluster state, by other properties than object keys.

use std::collections::BTreeMap;

/// Sorted values by key, most often one each. Keys without values are not stored, so that equal contents are equal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Index<K, V> {
    entries: BTreeMap<K, Vec<V>>,
}

impl<K, V> Default for Index<K, V> {
    fn default() -> Self {
        Self { entries: BTreeMap::new() }
    }
}

impl<K: Ord, V: Ord> Index<K, V> {
    /// Adds a value unless it exists.
    pub(super) fn insert(&mut self, key: K, value: V) {
        let values = self.entries.entry(key).or_insert_with(|| Vec::with_capacity(1));
        if let Err(position) = values.binary_search(&value) {
            values.insert(position, value);
        }
    }

    /// Removes a value if it exists.
    pub(super) fn remove(&mut self, key: &K, value: &V) {
        let Some(values) = self.entries.get_mut(key) else { return };
        values.retain(|existing| existing != value);
        if values.is_empty() {
            self.entries.remove(key);
        }
    }

    /// Returns the values of a key.
    pub(super) fn get(&self, key: &K) -> &[V] {
        self.entries.get(key).map(Vec::as_slice).unwrap_or_default()
    }

    /// Returns whether a key has values.
    pub(super) fn contains(&self, key: &K) -> bool {
        self.entries.contains_key(key)
    }

    /// Returns the keys with values.
    pub(super) fn keys(&self) -> impl Iterator<Item = &K> {
        self.entries.keys()
    }

    /// Returns the keys in a range.
    pub(super) fn range(&self, range: impl std::ops::RangeBounds<K>) -> impl Iterator<Item = &K> {
        self.entries.range(range).map(|(key, _)| key)
    }
}
