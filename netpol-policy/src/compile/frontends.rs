//! Backend sets: the backends of a frontend (address, port and protocol of a Service or hostPort). Frontends with equal
//! backends share one backend set, because every rule set (compiled policies) treats them alike.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use netpol_common::{ClassId, RuleSetId};

use super::allow::PortPrefix;
use super::interned::Interned;
use crate::index::Index;

/// The backends of a frontend, as far as rule sets distinguish them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct BackendSet {
    /// IP protocol number.
    pub(super) protocol: u8,
    /// The backends; empty if none are known.
    pub(super) targets: BTreeSet<Target>,
    /// Addresses of backends that are pods of this node. Such a pod reaches itself (hairpin), whatever its rules are.
    pub(super) hairpin: BTreeSet<IpAddr>,
}

/// A backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Target {
    /// An address of this class (equivalence class of addresses), at this port.
    Peer(ClassId, u16),
    /// The local node, which every pod may reach.
    LocalNode,
    /// A frontend of another Service. The backends of that Service are not looked up here.
    Service,
}

impl BackendSet {
    /// Returns whether every rule set that evaluates Services has an `ALLOW` entry for the backend set, whatever its
    /// rules are. This is so if the local node is a backend, because every pod may reach it. It is also so if not all
    /// backends are known here: there are no targets, or a target is a frontend of another Service.
    pub(super) fn has_entry_in_every_rule_set(&self) -> bool {
        self.targets.is_empty() || self.targets.iter().any(|target| !matches!(target, Target::Peer(..)))
    }

    /// Returns the class and the port of each [`Target::Peer`].
    pub(super) fn peers(&self) -> impl Iterator<Item = (ClassId, u16)> {
        self.targets.iter().filter_map(|target| match target {
            Target::Peer(class, port) => Some((*class, *port)),
            Target::LocalNode | Target::Service => None,
        })
    }
}

/// The backend sets in use, and the rule sets that have an `ALLOW` entry for each. The ID of a backend set is a class
/// of its own, so that `ALLOW` entries can refer to it.
#[derive(Clone, Debug, Default)]
pub(super) struct BackendSets {
    sets: Interned<ClassId, BackendSet>,
    /// Backend sets by the class of a backend.
    by_backend: Index<ClassId, ClassId>,
    /// Backend sets by the protocol and port of a backend.
    by_port: Index<(u8, u16), ClassId>,
    /// Backend sets by the address of a backend that is a pod of this node.
    by_hairpin: Index<IpAddr, ClassId>,
    /// The backend sets for which every rule set has an entry, see [`BackendSet::has_entry_in_every_rule_set`].
    with_entry_in_every_rule_set: BTreeSet<ClassId>,
    /// Rule sets that have an `ALLOW` entry, by backend set.
    allowed_by: Index<ClassId, RuleSetId>,
    /// The same entries: backend sets by rule set.
    by_rule_set: Index<RuleSetId, ClassId>,
}

impl BackendSets {
    /// Adds a user (a frontend) to a backend set. Returns the ID of the backend set, and whether the set is new.
    /// `allocate` allocates the ID.
    pub(super) fn acquire(&mut self, backend_set: BackendSet, allocate: impl FnOnce() -> ClassId) -> (ClassId, bool) {
        let (id, new) = self.sets.acquire(backend_set, allocate);
        let Some(backend_set) = new else { return (id, false) };
        for (class, port) in backend_set.peers() {
            self.by_backend.insert(class, id);
            self.by_port.insert((backend_set.protocol, port), id);
        }
        for address in &backend_set.hairpin {
            self.by_hairpin.insert(*address, id);
        }
        if backend_set.has_entry_in_every_rule_set() {
            self.with_entry_in_every_rule_set.insert(id);
        }
        (id, true)
    }

    /// Removes a user of a backend set. The set stays until [`BackendSets::retire`].
    pub(super) fn release(&mut self, id: ClassId) {
        self.sets.release(id);
    }

    /// Removes the backend sets without users. Returns the entries that rule sets have for them.
    pub(super) fn retire(&mut self) -> Vec<(RuleSetId, ClassId)> {
        let mut retired = Vec::new();
        for (id, backend_set) in self.sets.retire() {
            self.with_entry_in_every_rule_set.remove(&id);
            for (class, port) in backend_set.peers() {
                self.by_backend.remove(&class, &id);
                self.by_port.remove(&(backend_set.protocol, port), &id);
            }
            for address in &backend_set.hairpin {
                self.by_hairpin.remove(address, &id);
            }
            retired.extend(self.allowed_by.take(&id).into_iter().map(|rule_set| (rule_set, id)));
        }
        retired
    }

    pub(super) fn get(&self, id: ClassId) -> Option<Arc<BackendSet>> {
        self.sets.get(id).cloned()
    }

    /// Records that a rule set has an `ALLOW` entry for a backend set.
    pub(super) fn record_entry(&mut self, rule_set: RuleSetId, backend_set: ClassId) {
        self.allowed_by.insert(backend_set, rule_set);
        self.by_rule_set.insert(rule_set, backend_set);
    }

    /// Records that a rule set no longer has an `ALLOW` entry for a backend set.
    pub(super) fn record_removal(&mut self, rule_set: RuleSetId, backend_set: ClassId) {
        self.allowed_by.remove(&backend_set, &rule_set);
        self.by_rule_set.remove(&rule_set, &backend_set);
    }

    /// Returns the rule sets that have an `ALLOW` entry for a backend set.
    pub(super) fn allowed_by(&self, backend_set: ClassId) -> impl Iterator<Item = RuleSetId> {
        self.allowed_by.get(&backend_set).iter().copied()
    }

    /// Returns the backend sets for which a rule set has an `ALLOW` entry.
    pub(super) fn entries_of(&self, rule_set: RuleSetId) -> impl Iterator<Item = ClassId> {
        self.by_rule_set.get(&rule_set).iter().copied()
    }

    /// Returns the backend sets with a backend that has an address of this class.
    pub(super) fn with_backend_of(&self, peer: ClassId) -> impl Iterator<Item = ClassId> {
        self.by_backend.get(&peer).iter().copied()
    }

    /// Returns the backend sets with a backend at one of these ports.
    pub(super) fn with_backend_at(&self, ports: impl Iterator<Item = PortPrefix>) -> BTreeSet<ClassId> {
        ports.flat_map(|prefix| self.by_port.range(prefix.range())).flat_map(|(_, sets)| sets).copied().collect()
    }

    /// Returns the backend sets with a backend that is a pod of this node and has this address.
    pub(super) fn with_hairpin_at(&self, address: IpAddr) -> impl Iterator<Item = ClassId> {
        self.by_hairpin.get(&address).iter().copied()
    }

    /// Returns the backend sets for which every rule set has an entry, see [`BackendSet::has_entry_in_every_rule_set`].
    pub(super) fn with_entry_in_every_rule_set(&self) -> impl Iterator<Item = ClassId> {
        self.with_entry_in_every_rule_set.iter().copied()
    }
}
