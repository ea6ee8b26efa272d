//! Classes: equivalence classes of addresses that match the same peer selectors.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use netpol_common::ClassId;

use super::ids::Counter;
use super::interned::Interned;
use super::selector_set::PeerSelectorSet;
use super::selectors::PeerSelectorId;
use crate::index::Index;

/// The peer selectors that an address matches.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Signature {
    /// The peer selectors for pods and blocks.
    pub(super) selectors: PeerSelectorSet,
    /// The peer selectors for named ports, each with the number that the port has at the address.
    pub(super) ports: BTreeSet<(PeerSelectorId, u16)>,
}

impl Signature {
    /// Returns all peer selectors.
    pub(super) fn all_selectors(&self) -> impl Iterator<Item = PeerSelectorId> {
        self.selectors.iter().chain(self.ports.iter().map(|(selector, _)| *selector))
    }

    /// Returns the port numbers at the address for the peer selector of a named port.
    pub(super) fn ports_named(&self, selector: PeerSelectorId) -> impl Iterator<Item = u16> {
        self.ports.range((selector, 0)..=(selector, u16::MAX)).map(|(_, port)| *port)
    }
}

/// The classes in use.
#[derive(Clone, Debug, Default)]
pub(super) struct Classes {
    signatures: Interned<ClassId, Signature>,
    by_selector: Index<PeerSelectorId, ClassId>,
    counter: Counter,
}

impl Classes {
    /// `first` is the first ID that is allocated.
    pub(super) fn new(first: ClassId) -> Self {
        Self { counter: Counter::starting_at(first.0), ..Self::default() }
    }

    /// Allocates an ID for a backend set. No class of addresses gets the same ID.
    pub(super) fn allocate(&mut self) -> ClassId {
        ClassId(self.counter.next())
    }

    /// Returns how many IDs were allocated.
    pub(super) fn ids_allocated(&self) -> u32 {
        self.counter.allocated()
    }

    /// Adds a user (an address or prefix) to the class of a signature. Returns the class, and whether it is new.
    pub(super) fn acquire(&mut self, signature: Signature) -> (ClassId, bool) {
        if signature == Signature::default() {
            return (ClassId::NONE, false);
        }
        let (id, new) = self.signatures.acquire(signature, || ClassId(self.counter.next()));
        for selector in new.iter().flat_map(|signature| signature.all_selectors()) {
            self.by_selector.insert(selector, id);
        }
        (id, new.is_some())
    }

    /// Removes a user of a class. The class stays until [`Classes::retire`].
    pub(super) fn release(&mut self, id: ClassId) {
        self.signatures.release(id);
    }

    /// Removes the classes without users. Returns them with their signatures.
    pub(super) fn retire(&mut self) -> Vec<(ClassId, Arc<Signature>)> {
        let retired = self.signatures.retire();
        for (id, signature) in &retired {
            signature.all_selectors().for_each(|selector| self.by_selector.remove(&selector, id));
        }
        retired
    }

    /// Gives each class in `moving` its next signature, if all users of the class (addresses and prefixes) get this
    /// signature, and no class has it yet. The class keeps its ID. Returns the changed classes.
    ///
    /// `moving` has one item for each user that gets another signature: its class and its next signature. `None`
    /// instead of a signature means that the class must not change. The caller ensures that the old and the new
    /// signature differ only in peer selectors that are new or unused. So no unchanged rule set distinguishes the two.
    pub(super) fn replace_signatures<'a>(
        &mut self,
        moving: impl Iterator<Item = (ClassId, Option<&'a Signature>)>,
    ) -> BTreeSet<ClassId> {
        let mut classes: BTreeMap<ClassId, (usize, Option<&Signature>)> = BTreeMap::new();
        for (class, to) in moving {
            let (count, signature) = classes.entry(class).or_insert((0, to));
            *count += 1;
            if *signature != to {
                *signature = None;
            }
        }
        let replaced = classes
            .into_iter()
            .filter(|(id, (count, new))| new.is_some_and(|new| self.replace_signature(*id, *count, new)));
        replaced.map(|(id, _)| id).collect()
    }

    /// Gives a class the signature `new`, if all of its users get this signature and no class has it yet. `users` is
    /// the number of users that get this signature. Returns whether the signature was replaced.
    fn replace_signature(&mut self, id: ClassId, users: usize, new: &Signature) -> bool {
        if *new == Signature::default() {
            return false;
        }
        let Some(old) = self.signatures.replace(id, users, new) else { return false };
        let ports = |signature: &Signature| -> BTreeSet<PeerSelectorId> {
            signature.ports.iter().map(|(selector, _)| *selector).collect()
        };
        let (old_ports, new_ports) = (ports(&old), ports(new));
        for selector in old.selectors.difference(&new.selectors).chain(&old_ports - &new_ports) {
            self.by_selector.remove(&selector, &id);
        }
        for selector in new.selectors.difference(&old.selectors).chain(&new_ports - &old_ports) {
            self.by_selector.insert(selector, id);
        }
        true
    }

    /// Returns the signature of a class. Returns `None` for [`ClassId::NONE`].
    pub(super) fn signature(&self, id: ClassId) -> Option<&Arc<Signature>> {
        self.signatures.get(id)
    }

    /// Returns the classes that match a peer selector.
    pub(super) fn matching(&self, selector: PeerSelectorId) -> impl Iterator<Item = ClassId> {
        self.by_selector.get(&selector).iter().copied()
    }
}
