//! Values with an ID. Equal values are stored once, with the number of their users. For example, the value can be the
//! definition of a class (equivalence class of addresses): its users are the addresses in this class.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::Hash;
use std::sync::Arc;

/// The values in use. A value that loses its last user stays until [`Interned::retire`].
#[derive(Clone, Debug)]
pub(super) struct Interned<Id, V> {
    ids: HashMap<Arc<V>, Id>,
    /// Values by ID, each with the number of its users.
    entries: BTreeMap<Id, (Arc<V>, usize)>,
    /// Values that lost their last user. They may have got a new user since then.
    unused: BTreeSet<Id>,
}

impl<Id, V> Default for Interned<Id, V> {
    fn default() -> Self {
        Self { ids: HashMap::new(), entries: BTreeMap::new(), unused: BTreeSet::new() }
    }
}

impl<Id: Copy + Ord, V: Eq + Hash> Interned<Id, V> {
    /// Adds a user to a value. Returns the value's ID, and the value if it is new. `allocate` allocates the ID.
    pub(super) fn acquire(&mut self, value: V, allocate: impl FnOnce() -> Id) -> (Id, Option<Arc<V>>) {
        if let Some(id) = self.find(&value) {
            if let Some((_, users)) = self.entries.get_mut(&id) {
                *users += 1;
            }
            return (id, None);
        }
        let (id, value) = (allocate(), Arc::new(value));
        self.ids.insert(value.clone(), id);
        self.entries.insert(id, (value.clone(), 1));
        (id, Some(value))
    }

    /// Removes a user of a value.
    pub(super) fn release(&mut self, id: Id) {
        let Some((_, users)) = self.entries.get_mut(&id) else { return };
        *users -= 1;
        if *users == 0 {
            self.unused.insert(id);
        }
    }

    /// Removes the values without users, and returns them.
    pub(super) fn retire(&mut self) -> Vec<(Id, Arc<V>)> {
        let mut unused = std::mem::take(&mut self.unused);
        unused.retain(|id| self.entries.get(id).is_some_and(|(_, users)| *users == 0));
        let retired: Vec<_> = unused.into_iter().filter_map(|id| Some((id, self.entries.remove(&id)?.0))).collect();
        for (_, value) in &retired {
            self.ids.remove(value);
        }
        retired
    }

    /// Replaces the value that has the ID `id`. All of its users then use the new value. Does this only if the old
    /// value has exactly `users` users, and if the new value has no ID yet. Returns the old value; `None` if nothing
    /// changed.
    pub(super) fn replace(&mut self, id: Id, users: usize, value: &V) -> Option<Arc<V>>
    where
        V: Clone,
    {
        let entry = self.entries.get_mut(&id).filter(|entry| entry.1 == users && !self.ids.contains_key(value))?;
        let value = Arc::new(value.clone());
        let old = std::mem::replace(&mut entry.0, value.clone());
        self.ids.remove(&old);
        self.ids.insert(value, id);
        Some(old)
    }

    pub(super) fn find(&self, value: &V) -> Option<Id> {
        self.ids.get(value).copied()
    }

    pub(super) fn get(&self, id: Id) -> Option<&Arc<V>> {
        self.entries.get(&id).map(|(value, _)| value)
    }
}
