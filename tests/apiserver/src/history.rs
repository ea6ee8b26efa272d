//! The history of one resource's changes.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use crate::object::Object;

/// One change of an object.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    /// The `resourceVersion` of the change. Versions in this module are resource versions.
    pub(crate) version: u64,
    pub(crate) at: Instant,
    /// `None` if the change created the object.
    pub(crate) before: Option<Arc<Object>>,
    /// `None` if the change deleted the object.
    pub(crate) after: Option<Arc<Object>>,
}

/// The requested version is older than the history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TooOld {
    /// The oldest version that can be requested. The history contains all changes after this version.
    pub(crate) oldest: u64,
}

/// The most recent changes, ordered by version: the oldest first.
#[derive(Clone, Debug)]
pub(crate) struct History {
    changes: VecDeque<Change>,
    /// Maximum number of changes.
    capacity: usize,
    /// All changes after this version are in `changes`.
    floor: u64,
}

impl History {
    pub(crate) fn new(capacity: usize, floor: u64) -> Self {
        Self { changes: VecDeque::new(), capacity, floor }
    }

    pub(crate) fn push(&mut self, change: Change) {
        self.changes.push_back(change);
        while self.changes.len() > self.capacity {
            if let Some(oldest) = self.changes.pop_front() {
                self.floor = oldest.version;
            }
        }
    }

    /// Removes all changes up to this version.
    pub(crate) fn compact(&mut self, version: u64) {
        let removed = self.changes.partition_point(|change| change.version <= version);
        self.changes.drain(..removed);
        self.floor = self.floor.max(version);
    }

    /// Returns the changes after a version.
    pub(crate) fn since(&self, version: u64) -> Result<impl Iterator<Item = &Change>, TooOld> {
        if version < self.floor {
            return Err(TooOld { oldest: self.floor });
        }
        let first = self.changes.partition_point(|change| change.version <= version);
        Ok(self.changes.range(first..))
    }

    /// Returns the objects as they were at `version`, for each key that has changed since then. `None`: the object did
    /// not exist.
    pub(crate) fn undo(&self, version: u64) -> Result<BTreeMap<&str, Option<&Arc<Object>>>, TooOld> {
        let mut undo = BTreeMap::new();
        for change in self.since(version)? {
            let key = change.before.as_ref().or(change.after.as_ref()).map(|object| &*object.key);
            undo.entry(key.unwrap_or_default()).or_insert(change.before.as_ref());
        }
        Ok(undo)
    }
}
