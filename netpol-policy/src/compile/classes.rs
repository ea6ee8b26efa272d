//! Classes: equivalence classes of addresses that match the same peer selectors.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use netpol_common::ClassId;

use super::ids::Counter;
use super::selector_set::PeerSelectorSet;
use super::selectors::PeerSelectorId;

/// The peer selectors that an address matches.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Signature {
    /// Selectors of pods and blocks.
    pub(super) selectors: PeerSelectorSet,
    /// Named ports with their port numbers at the address.
    pub(super) ports: BTreeSet<(PeerSelectorId, u16)>,
}

impl Signature {
    /// Returns all peer selectors.
    pub(super) fn all_selectors(&self) -> impl Iterator<Item = PeerSelectorId> {
        self.selectors.iter().chain(self.ports.iter().map(|(selector, _)| *selector))
    }

    /// Returns the port numbers of a named port at the address.
    pub(super) fn ports_named(&self, selector: PeerSelectorId) -> impl Iterator<Item = u16> {
        self.ports.range((selector, 0)..=(selector, u16::MAX)).map(|(_, port)| *port)
    }
}

/// The classes in use.
#[derive(Clone, Debug)]
pub(super) struct Classes {
    ids: HashMap<Arc<Signature>, ClassId>,
    entries: BTreeMap<ClassId, Class>,
    by_selector: HashMap<PeerSelectorId, BTreeSet<ClassId>>,
    /// Classes that lost their last user, and may have got one since.
    unused: BTreeSet<ClassId>,
    counter: Counter,
}

#[derive(Clone, Debug)]
struct Class {
    signature: Arc<Signature>,
    users: usize,
}

impl Classes {
    pub(super) fn new(first: ClassId) -> Self {
        Self {
            ids: HashMap::new(),
            entries: BTreeMap::new(),
            by_selector: HashMap::new(),
            unused: BTreeSet::new(),
            counter: Counter::starting_at(first.0),
        }
    }

    /// Allocates an ID for a backend set. No class of addresses gets the same ID.
    pub(super) fn allocate(&mut self) -> ClassId {
        ClassId(self.counter.next())
    }

    /// Returns how many IDs were allocated.
    pub(super) fn ids_allocated(&self) -> u32 {
        self.counter.allocated()
    }

    /// Returns the class of a signature with one more user, and whether it is new.
    pub(super) fn acquire(&mut self, signature: Signature) -> (ClassId, bool) {
        if signature == Signature::default() {
            return (ClassId::NONE, false);
        }
        if let Some(id) = self.ids.get(&signature) {
            if let Some(class) = self.entries.get_mut(id) {
                class.users += 1;
            }
            return (*id, false);
        }
        let id = self.allocate();
        for selector in signature.all_selectors() {
            self.by_selector.entry(selector).or_default().insert(id);
        }
        let signature = Arc::new(signature);
        self.ids.insert(signature.clone(), id);
        self.entries.insert(id, Class { signature, users: 1 });
        (id, true)
    }

    /// Removes a user of a class. The class stays until [`Classes::retire`].
    pub(super) fn release(&mut self, id: ClassId) {
        let Some(class) = self.entries.get_mut(&id) else { return };
        class.users -= 1;
        if class.users == 0 {
            self.unused.insert(id);
        }
    }

    /// Removes the classes without users. Returns them with their signatures.
    pub(super) fn retire(&mut self) -> Vec<(ClassId, Arc<Signature>)> {
        let unused = std::mem::take(&mut self.unused);
        unused.into_iter().filter_map(|id| Some((id, self.retire_one(id)?))).collect()
    }

    fn retire_one(&mut self, id: ClassId) -> Option<Arc<Signature>> {
        if self.entries.get(&id)?.users > 0 {
            return None;
        }
        let class = self.entries.remove(&id)?;
        self.ids.remove(&class.signature);
        for selector in class.signature.all_selectors() {
            if let Some(classes) = self.by_selector.get_mut(&selector) {
                classes.remove(&id);
                if classes.is_empty() {
                    self.by_selector.remove(&selector);
                }
            }
        }
        Some(class.signature)
    }

    /// Gives a class another signature, if all of its users are the `moving` ones and no class has that signature.
    /// Valid only if the peer selectors in the difference are new or unused: then the class stays the same for every
    /// other rule set.
    pub(super) fn rename(&mut self, id: ClassId, moving: usize, signature: &Signature) -> bool {
        let Some(class) = self.entries.get_mut(&id) else { return false };
        if class.users != moving || *signature == Signature::default() || self.ids.contains_key(signature) {
            return false;
        }
        let new = Arc::new(signature.clone());
        let old = std::mem::replace(&mut class.signature, new.clone());
        self.ids.remove(&old);
        let ports = |one: &Signature, other: &Signature| -> Vec<PeerSelectorId> {
            let of =
                |signature: &Signature| signature.ports.iter().map(|(selector, _)| *selector).collect::<BTreeSet<_>>();
            of(one).difference(&of(other)).copied().collect()
        };
        for selector in old.selectors.difference(&new.selectors).chain(ports(&old, &new)) {
            if let Some(classes) = self.by_selector.get_mut(&selector) {
                classes.remove(&id);
                if classes.is_empty() {
                    self.by_selector.remove(&selector);
                }
            }
        }
        for selector in new.selectors.difference(&old.selectors).chain(ports(&new, &old)) {
            self.by_selector.entry(selector).or_default().insert(id);
        }
        self.ids.insert(new, id);
        true
    }

    /// Returns the signature of a class; none for [`ClassId::NONE`].
    pub(super) fn signature(&self, id: ClassId) -> Option<&Arc<Signature>> {
        Some(&self.entries.get(&id)?.signature)
    }

    /// Returns the classes that match a peer selector.
    pub(super) fn matching(&self, selector: PeerSelectorId) -> impl Iterator<Item = ClassId> {
        self.by_selector.get(&selector).into_iter().flatten().copied()
    }
}
