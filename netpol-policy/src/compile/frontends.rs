//! Backend sets: frontends with equal backends share one, because every rule set treats them alike.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use netpol_common::{ClassId, RuleSetId};

use super::allow::PortPrefix;

/// The backends of a frontend, as far as rule sets distinguish them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct BackendSet {
    /// IP protocol number.
    pub(super) protocol: u8,
    /// The backends; empty if none are known.
    pub(super) targets: BTreeSet<Target>,
    /// Backends at an address of a pod of this node. The pod reaches itself (hairpin), whatever its rules are.
    pub(super) hairpin: BTreeSet<IpAddr>,
}

/// A backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Target {
    /// An address of this class, at this port.
    Peer(ClassId, u16),
    /// The local node, which every pod may reach.
    LocalNode,
    /// Another Service. Its backends are not known here.
    Service,
}

impl BackendSet {
    /// Returns whether every rule set allows at least some of the backends.
    fn is_always_some(&self) -> bool {
        self.targets.is_empty() || self.targets.iter().any(|target| !matches!(target, Target::Peer(..)))
    }

    /// Returns classes and ports of the backends.
    pub(super) fn peers(&self) -> impl Iterator<Item = (ClassId, u16)> {
        self.targets.iter().filter_map(|target| match target {
            Target::Peer(class, port) => Some((*class, *port)),
            Target::LocalNode | Target::Service => None,
        })
    }
}

/// The backend sets in use, and the rule sets that have an entry for each.
#[derive(Clone, Debug, Default)]
pub(super) struct BackendSets {
    ids: HashMap<Arc<BackendSet>, ClassId>,
    entries: BTreeMap<ClassId, BackendSetEntry>,
    by_backend: HashMap<ClassId, BTreeSet<ClassId>>,
    by_port: BTreeMap<(u8, u16), BTreeSet<ClassId>>,
    by_hairpin: HashMap<IpAddr, BTreeSet<ClassId>>,
    always_some: BTreeSet<ClassId>,
    by_rule_set: HashMap<RuleSetId, BTreeSet<ClassId>>,
    /// Backend sets that lost their last user, and may have got one since.
    unused: BTreeSet<ClassId>,
}

#[derive(Clone, Debug)]
struct BackendSetEntry {
    backend_set: Arc<BackendSet>,
    users: usize,
    /// Rule sets that have an entry in `ALLOW`.
    allowed_by: BTreeSet<RuleSetId>,
}

impl BackendSets {
    /// Adds a user to a backend set. Returns its class and whether it is new. `allocate` allocates the ID.
    pub(super) fn acquire(&mut self, backend_set: BackendSet, allocate: impl FnOnce() -> ClassId) -> (ClassId, bool) {
        if let Some(id) = self.ids.get(&backend_set) {
            if let Some(entry) = self.entries.get_mut(id) {
                entry.users += 1;
            }
            return (*id, false);
        }
        let id = allocate();
        for (class, port) in backend_set.peers() {
            self.by_backend.entry(class).or_default().insert(id);
            self.by_port.entry((backend_set.protocol, port)).or_default().insert(id);
        }
        for address in &backend_set.hairpin {
            self.by_hairpin.entry(*address).or_default().insert(id);
        }
        if backend_set.is_always_some() {
            self.always_some.insert(id);
        }
        let backend_set = Arc::new(backend_set);
        self.ids.insert(backend_set.clone(), id);
        self.entries.insert(id, BackendSetEntry { backend_set, users: 1, allowed_by: BTreeSet::new() });
        (id, true)
    }

    /// Removes a user of a backend set. The set stays until [`BackendSets::retire`].
    pub(super) fn release(&mut self, id: ClassId) {
        let Some(entry) = self.entries.get_mut(&id) else { return };
        entry.users -= 1;
        if entry.users == 0 {
            self.unused.insert(id);
        }
    }

    /// Removes the backend sets without users. Returns them with the rule sets that have an entry for them.
    pub(super) fn retire(&mut self) -> Vec<(ClassId, BTreeSet<RuleSetId>)> {
        let unused = std::mem::take(&mut self.unused);
        unused.into_iter().filter_map(|id| Some((id, self.retire_one(id)?))).collect()
    }

    fn retire_one(&mut self, id: ClassId) -> Option<BTreeSet<RuleSetId>> {
        if self.entries.get(&id)?.users > 0 {
            return None;
        }
        let BackendSetEntry { backend_set, allowed_by, .. } = self.entries.remove(&id)?;
        self.ids.remove(&backend_set);
        self.always_some.remove(&id);
        for (class, port) in backend_set.peers() {
            remove_class(self.by_backend.get_mut(&class), id);
            if self.by_backend.get(&class).is_some_and(BTreeSet::is_empty) {
                self.by_backend.remove(&class);
            }
            let port = (backend_set.protocol, port);
            remove_class(self.by_port.get_mut(&port), id);
            if self.by_port.get(&port).is_some_and(BTreeSet::is_empty) {
                self.by_port.remove(&port);
            }
        }
        for address in &backend_set.hairpin {
            remove_class(self.by_hairpin.get_mut(address), id);
            if self.by_hairpin.get(address).is_some_and(BTreeSet::is_empty) {
                self.by_hairpin.remove(address);
            }
        }
        Some(allowed_by)
    }

    pub(super) fn get(&self, id: ClassId) -> Option<Arc<BackendSet>> {
        Some(self.entries.get(&id)?.backend_set.clone())
    }

    /// Records that a rule set has an entry for a backend set.
    pub(super) fn record_entry(&mut self, rule_set: RuleSetId, class: ClassId) {
        if let Some(entry) = self.entries.get_mut(&class) {
            entry.allowed_by.insert(rule_set);
            self.by_rule_set.entry(rule_set).or_default().insert(class);
        }
    }

    /// Records that a rule set no longer has an entry for a backend set.
    pub(super) fn record_removal(&mut self, rule_set: RuleSetId, class: ClassId) {
        if let Some(entry) = self.entries.get_mut(&class) {
            entry.allowed_by.remove(&rule_set);
        }
        remove_class(self.by_rule_set.get_mut(&rule_set), class);
        if self.by_rule_set.get(&rule_set).is_some_and(BTreeSet::is_empty) {
            self.by_rule_set.remove(&rule_set);
        }
    }

    /// Returns the rule sets that have an entry for a backend set.
    pub(super) fn allowed_by(&self, class: ClassId) -> impl Iterator<Item = RuleSetId> {
        self.entries.get(&class).into_iter().flat_map(|entry| &entry.allowed_by).copied()
    }

    /// Returns the backend sets for which a rule set has an entry.
    pub(super) fn entries_of(&self, rule_set: RuleSetId) -> impl Iterator<Item = ClassId> {
        self.by_rule_set.get(&rule_set).into_iter().flatten().copied()
    }

    /// Returns the backend sets with a backend of this class.
    pub(super) fn with_backend_of(&self, peer: ClassId) -> impl Iterator<Item = ClassId> {
        self.by_backend.get(&peer).into_iter().flatten().copied()
    }

    /// Returns the backend sets with a backend at one of these ports.
    pub(super) fn with_backend_at(&self, ports: impl Iterator<Item = PortPrefix>) -> BTreeSet<ClassId> {
        let ranges = ports.map(PortPrefix::range);
        ranges.flat_map(|range| self.by_port.range(range)).flat_map(|(_, classes)| classes).copied().collect()
    }

    /// Returns the backend sets with a backend at this address of a local pod.
    pub(super) fn with_hairpin_at(&self, address: IpAddr) -> impl Iterator<Item = ClassId> {
        self.by_hairpin.get(&address).into_iter().flatten().copied()
    }

    /// Returns the backend sets of which every rule set allows at least some backends.
    pub(super) fn always_some(&self) -> impl Iterator<Item = ClassId> {
        self.always_some.iter().copied()
    }
}

fn remove_class(classes: Option<&mut BTreeSet<ClassId>>, class: ClassId) {
    if let Some(classes) = classes {
        classes.remove(&class);
    }
}
