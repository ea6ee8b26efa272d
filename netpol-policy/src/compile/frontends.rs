//! Classes of frontends: those that every rule set in use treats alike, because those behind them are alike.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use netpol_common::{ClassId, RuleSetId};

use super::allow::PortPrefix;

/// Who is behind a frontend, as far as rule sets can tell.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Behind {
    /// IP protocol number.
    pub(super) protocol: u8,
    /// The backends; none where nobody is known.
    pub(super) targets: BTreeSet<Target>,
    /// Backends that pods of this node have for their own address: they reach themselves, whatever their rules are.
    pub(super) selves: BTreeSet<IpAddr>,
}

/// A backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Target {
    /// Somebody of this class, at this port.
    Peer(ClassId, u16),
    /// This node: every pod reaches it.
    OwnNode,
    /// A Service in turn: where that leads to is not known here.
    PassedOn,
}

impl Behind {
    /// Whether there is something in it that any rule set allows some of.
    fn is_open(&self) -> bool {
        self.targets.is_empty() || self.targets.iter().any(|target| !matches!(target, Target::Peer(..)))
    }

    /// Classes and ports of peers.
    pub(super) fn peers(&self) -> impl Iterator<Item = (ClassId, u16)> {
        self.targets.iter().filter_map(|target| match target {
            Target::Peer(class, port) => Some((*class, *port)),
            Target::OwnNode | Target::PassedOn => None,
        })
    }
}

/// The classes of frontends in use, and which rule sets have an entry for each.
#[derive(Clone, Debug, Default)]
pub(super) struct FrontendClasses {
    ids: HashMap<Arc<Behind>, ClassId>,
    entries: BTreeMap<ClassId, Entry>,
    by_peer: HashMap<ClassId, BTreeSet<ClassId>>,
    by_port: BTreeMap<(u8, u16), BTreeSet<ClassId>>,
    by_self: HashMap<IpAddr, BTreeSet<ClassId>>,
    open: BTreeSet<ClassId>,
    by_rule_set: HashMap<RuleSetId, BTreeSet<ClassId>>,
}

#[derive(Clone, Debug)]
struct Entry {
    behind: Arc<Behind>,
    users: usize,
    /// Who has an entry in `ALLOW`.
    allowing: BTreeSet<RuleSetId>,
}

impl FrontendClasses {
    /// The class of those that have this behind them, with a user more; whether it is new. `number` numbers it.
    pub(super) fn acquire(&mut self, behind: Behind, number: impl FnOnce() -> ClassId) -> (ClassId, bool) {
        if let Some(id) = self.ids.get(&behind) {
            if let Some(entry) = self.entries.get_mut(id) {
                entry.users += 1;
            }
            return (*id, false);
        }
        let id = number();
        for (class, port) in behind.peers() {
            self.by_peer.entry(class).or_default().insert(id);
            self.by_port.entry((behind.protocol, port)).or_default().insert(id);
        }
        for address in &behind.selves {
            self.by_self.entry(*address).or_default().insert(id);
        }
        if behind.is_open() {
            self.open.insert(id);
        }
        let behind = Arc::new(behind);
        self.ids.insert(behind.clone(), id);
        self.entries.insert(id, Entry { behind, users: 1, allowing: BTreeSet::new() });
        (id, true)
    }

    /// A user less; whether that was the last. It stays until [`FrontendClasses::retire`].
    pub(super) fn release(&mut self, id: ClassId) -> bool {
        let Some(entry) = self.entries.get_mut(&id) else { return false };
        entry.users -= 1;
        entry.users == 0
    }

    /// Forgets a class, if it still has no user; the rule sets that have an entry for it.
    pub(super) fn retire(&mut self, id: ClassId) -> BTreeSet<RuleSetId> {
        if self.entries.get(&id).is_none_or(|entry| entry.users > 0) {
            return BTreeSet::new();
        }
        let Some(Entry { behind, allowing, .. }) = self.entries.remove(&id) else { return BTreeSet::new() };
        self.ids.remove(&behind);
        self.open.remove(&id);
        for (class, port) in behind.peers() {
            without(self.by_peer.get_mut(&class), id);
            if self.by_peer.get(&class).is_some_and(BTreeSet::is_empty) {
                self.by_peer.remove(&class);
            }
            let port = (behind.protocol, port);
            without(self.by_port.get_mut(&port), id);
            if self.by_port.get(&port).is_some_and(BTreeSet::is_empty) {
                self.by_port.remove(&port);
            }
        }
        for address in &behind.selves {
            without(self.by_self.get_mut(address), id);
            if self.by_self.get(address).is_some_and(BTreeSet::is_empty) {
                self.by_self.remove(address);
            }
        }
        allowing
    }

    pub(super) fn behind(&self, id: ClassId) -> Option<Arc<Behind>> {
        Some(self.entries.get(&id)?.behind.clone())
    }

    /// Notes that a rule set has an entry for a class.
    pub(super) fn note(&mut self, rule_set: RuleSetId, class: ClassId) {
        if let Some(entry) = self.entries.get_mut(&class) {
            entry.allowing.insert(rule_set);
            self.by_rule_set.entry(rule_set).or_default().insert(class);
        }
    }

    /// Notes that a rule set's entry for a class is gone.
    pub(super) fn forget(&mut self, rule_set: RuleSetId, class: ClassId) {
        if let Some(entry) = self.entries.get_mut(&class) {
            entry.allowing.remove(&rule_set);
        }
        without(self.by_rule_set.get_mut(&rule_set), class);
        if self.by_rule_set.get(&rule_set).is_some_and(BTreeSet::is_empty) {
            self.by_rule_set.remove(&rule_set);
        }
    }

    /// The rule sets that have an entry for a class.
    pub(super) fn allowing(&self, class: ClassId) -> impl Iterator<Item = RuleSetId> {
        self.entries.get(&class).into_iter().flat_map(|entry| &entry.allowing).copied()
    }

    /// The classes that a rule set has an entry for.
    pub(super) fn allowed_by(&self, rule_set: RuleSetId) -> impl Iterator<Item = ClassId> {
        self.by_rule_set.get(&rule_set).into_iter().flatten().copied()
    }

    /// The classes of those that lead to peers of a class.
    pub(super) fn leading_to(&self, peer: ClassId) -> impl Iterator<Item = ClassId> {
        self.by_peer.get(&peer).into_iter().flatten().copied()
    }

    /// The classes of those that lead to one of these ports.
    pub(super) fn at_ports(&self, ports: impl Iterator<Item = PortPrefix>) -> BTreeSet<ClassId> {
        let ranges = ports.map(PortPrefix::range);
        ranges.flat_map(|range| self.by_port.range(range)).flat_map(|(_, classes)| classes).copied().collect()
    }

    /// The classes of those that lead to the pod that has this address itself.
    pub(super) fn leading_to_itself(&self, address: IpAddr) -> impl Iterator<Item = ClassId> {
        self.by_self.get(&address).into_iter().flatten().copied()
    }

    /// The classes that every rule set allows some of.
    pub(super) fn open(&self) -> impl Iterator<Item = ClassId> {
        self.open.iter().copied()
    }
}

fn without(classes: Option<&mut BTreeSet<ClassId>>, class: ClassId) {
    if let Some(classes) = classes {
        classes.remove(&class);
    }
}
