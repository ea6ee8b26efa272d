//! What is found by what, kept beside the objects.

use std::collections::BTreeMap;

/// Some values for each key, sorted; most often just one. Keys without values are not there, so that equal contents are equal.
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
    /// Adds a value, if it is not there.
    pub(super) fn insert(&mut self, key: K, value: V) {
        let values = self.entries.entry(key).or_insert_with(|| Vec::with_capacity(1));
        if let Err(place) = values.binary_search(&value) {
            values.insert(place, value);
        }
    }

    /// Takes a value away, if it is there.
    pub(super) fn remove(&mut self, key: &K, value: &V) {
        let Some(values) = self.entries.get_mut(key) else { return };
        values.retain(|known| known != value);
        if values.is_empty() {
            self.entries.remove(key);
        }
    }

    /// The values of a key.
    pub(super) fn get(&self, key: &K) -> &[V] {
        self.entries.get(key).map(Vec::as_slice).unwrap_or_default()
    }

    /// Whether the key has values.
    pub(super) fn has(&self, key: &K) -> bool {
        self.entries.contains_key(key)
    }

    /// The keys with values.
    pub(super) fn keys(&self) -> impl Iterator<Item = &K> {
        self.entries.keys()
    }

    /// Keys in a range.
    pub(super) fn range(&self, range: impl std::ops::RangeBounds<K>) -> impl Iterator<Item = &K> {
        self.entries.range(range).map(|(key, _)| key)
    }
}
