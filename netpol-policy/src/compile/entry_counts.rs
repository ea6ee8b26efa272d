//! Counts map entries by namespace, where their number is known only after compilation.

use std::collections::BTreeMap;

use crate::model::NamespaceName;

/// Number of entries of a map, by the namespace that they are charged to.
#[derive(Clone, Debug, Default)]
pub(super) struct EntryCounts {
    total: u64,
    of: BTreeMap<NamespaceName, u64>,
}

impl EntryCounts {
    pub(super) fn add(&mut self, namespace: &NamespaceName, entries: u64) {
        self.total += entries;
        *self.of.entry(namespace.clone()).or_default() += entries;
    }

    pub(super) fn subtract(&mut self, namespace: &NamespaceName, entries: u64) {
        self.total -= entries;
        if let Some(of) = self.of.get_mut(namespace) {
            *of -= entries;
            if *of == 0 {
                self.of.remove(namespace);
            }
        }
    }

    pub(super) fn total(&self) -> u64 {
        self.total
    }

    pub(super) fn of(&self, namespace: &NamespaceName) -> u64 {
        self.of.get(namespace).copied().unwrap_or(0)
    }
}
