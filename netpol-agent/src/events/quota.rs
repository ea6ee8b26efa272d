//! Limits the number of counters, in total and for each owner (such as a namespace), so that the objects or the traffic
//! of one owner do not use the room of others.

use std::collections::HashMap;
use std::sync::Arc;

/// The limits, and the number of counters in use.
#[derive(Debug)]
pub(super) struct Quota {
    total: usize,
    max_total: usize,
    max_each: usize,
    by_owner: HashMap<Arc<str>, usize>,
}

impl Quota {
    /// Creates a quota: at most `max_total` counters, and at most `max_each` counters for each owner.
    pub(super) fn new(max_total: usize, max_each: usize) -> Self {
        Self { total: 0, max_total, max_each, by_owner: HashMap::new() }
    }

    /// Returns whether an owner may have one more counter.
    pub(super) fn has_room(&self, owner: &str) -> bool {
        self.total < self.max_total && self.by_owner.get(owner).is_none_or(|used| *used < self.max_each)
    }

    /// Records that an owner has one more counter.
    pub(super) fn add(&mut self, owner: &Arc<str>) {
        self.total += 1;
        *self.by_owner.entry(Arc::clone(owner)).or_default() += 1;
    }

    /// Replaces all numbers. `owners` has one item for each counter in use: the counter's owner.
    pub(super) fn set(&mut self, owners: impl Iterator<Item = Arc<str>>) {
        self.total = 0;
        self.by_owner.clear();
        owners.for_each(|owner| self.add(&owner));
    }
}
