//! Atoms: what rules in use ask of an address.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use crate::model::{IpBlock, NamespaceName, Protocol, Selector};

/// One thing a rule can ask of an address.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Atom {
    /// A pod by labels.
    Pods {
        /// Of which namespaces.
        namespaces: Namespaces,
        /// With which labels.
        pods: Selector,
    },
    /// An address by block.
    Block(IpBlock),
    /// A pod that has a port of this name and protocol; which number it has is part of the signature.
    Named(Arc<str>, Protocol),
}

/// Of which namespaces a peer's pods are.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Namespaces {
    /// The policy's own.
    Own(NamespaceName),
    /// By labels.
    Selected(Selector),
}

/// Numbers an atom while it is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct AtomId(pub(super) u64);

/// The atoms in use.
#[derive(Clone, Debug, Default)]
pub(super) struct Atoms {
    ids: HashMap<Atom, AtomId>,
    entries: BTreeMap<AtomId, Entry>,
    next: u64,
    /// Atoms of pods of one namespace.
    by_namespace: HashMap<NamespaceName, BTreeSet<AtomId>>,
    /// Atoms of pods of selected namespaces.
    across: BTreeSet<AtomId>,
}

#[derive(Clone, Debug)]
struct Entry {
    atom: Atom,
    users: usize,
}

impl Atoms {
    /// The atom's id; whether it is new.
    pub(super) fn acquire(&mut self, atom: Atom) -> (AtomId, bool) {
        if let Some(id) = self.ids.get(&atom) {
            if let Some(entry) = self.entries.get_mut(id) {
                entry.users += 1;
            }
            return (*id, false);
        }
        let id = AtomId(self.next);
        self.next += 1;
        match &atom {
            Atom::Pods { namespaces: Namespaces::Own(name), .. } => {
                self.by_namespace.entry(name.clone()).or_default().insert(id);
            }
            Atom::Pods { namespaces: Namespaces::Selected(_), .. } => {
                self.across.insert(id);
            }
            Atom::Block(_) | Atom::Named(..) => {}
        }
        self.ids.insert(atom.clone(), id);
        self.entries.insert(id, Entry { atom, users: 1 });
        (id, true)
    }

    /// One user less; the atom, where that was the last.
    pub(super) fn release(&mut self, id: AtomId) -> Option<Atom> {
        let entry = self.entries.get_mut(&id)?;
        entry.users -= 1;
        if entry.users > 0 {
            return None;
        }
        let atom = self.entries.remove(&id)?.atom;
        self.ids.remove(&atom);
        self.across.remove(&id);
        if let Atom::Pods { namespaces: Namespaces::Own(name), .. } = &atom
            && let Some(atoms) = self.by_namespace.get_mut(name)
        {
            atoms.remove(&id);
            if atoms.is_empty() {
                self.by_namespace.remove(name);
            }
        }
        Some(atom)
    }

    /// Whether an atom is a block.
    pub(super) fn is_block(&self, id: AtomId) -> bool {
        self.entries.get(&id).is_some_and(|entry| matches!(entry.atom, Atom::Block(_)))
    }

    /// The id of an atom in use.
    pub(super) fn find(&self, atom: &Atom) -> Option<AtomId> {
        self.ids.get(atom).copied()
    }

    /// Selectors that may select pods of a namespace.
    pub(super) fn selectors(&self, namespace: &NamespaceName) -> impl Iterator<Item = (AtomId, &Atom)> {
        let own = self.by_namespace.get(namespace).into_iter().flatten();
        own.chain(&self.across).filter_map(|id| Some((*id, &self.entries.get(id)?.atom)))
    }
}
