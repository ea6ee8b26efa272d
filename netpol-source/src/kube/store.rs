//! Tracks the known objects of one resource, for example of all pods. Stores only the resource version and a hash of
//! each object, to detect changes.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::time::Instant;

use netpol_policy::cluster_state::Event;
use netpol_policy::model::{Object, ObjectKey};

use super::intern::Interner;
use super::trim::ReceivedObject;

/// The last known state of an object.
#[derive(Clone, Copy, Debug)]
struct KnownState {
    /// Hash of all fields that policies need, with a random key, so that collisions cannot be constructed.
    hash: u64,
    /// `metadata.resourceVersion`.
    version: u64,
}

/// The known objects of a resource; see the module.
#[derive(Debug, Default)]
pub(super) struct Store {
    known: HashMap<ObjectKey, KnownState>,
    hasher: RandomState,
    listing: Option<UnfinishedList>,
}

/// A full list (of all objects of the resource) that has not been received completely yet.
#[derive(Debug, Default)]
struct UnfinishedList {
    /// All listed objects, changed or not.
    listed: HashSet<ObjectKey>,
    /// Listed objects that are new, or in which a field that policies need has changed.
    changed: HashMap<ObjectKey, (KnownState, Object)>,
    /// New resource versions of listed objects that were already known, and in which no field that policies need has
    /// changed.
    versions: Vec<(ObjectKey, u64)>,
    /// Whether an object without a name was listed.
    has_nameless: bool,
    /// When the first object was received.
    received: Option<Instant>,
}

impl Store {
    /// Starts a full list. If an earlier full list is unfinished, discards the earlier one.
    pub(super) fn begin(&mut self) {
        self.listing = Some(UnfinishedList::default());
    }

    /// Discards the unfinished list.
    pub(super) fn abandon(&mut self) {
        self.listing = None;
    }

    /// Records that the list has an object without a name.
    pub(super) fn mark_nameless(&mut self) {
        if let Some(listing) = &mut self.listing {
            listing.has_nameless = true;
        }
    }

    /// Adds an object of the full list.
    pub(super) fn add_listed(&mut self, mut item: ReceivedObject, received: Instant, interner: &mut Interner) {
        let Some(listing) = &mut self.listing else { return };
        listing.received.get_or_insert(received);
        let Some(mut object) = item.object else {
            // The object could not be parsed. It counts as listed, so its last known state is kept.
            report(&item.key, &item.diagnostics);
            listing.listed.insert(item.key);
            return;
        };
        let hash = self.hasher.hash_one(&object);
        if let Some((key, known)) = self.known.get_key_value(&item.key) {
            listing.listed.insert(key.clone());
            if known.hash == hash {
                // If the object is in the list twice, its last state counts.
                listing.changed.remove(key);
                if known.version != item.version {
                    listing.versions.push((key.clone(), item.version));
                }
                return;
            }
            item.key = key.clone();
        } else {
            interner.share_key(&mut item.key);
            listing.listed.insert(item.key.clone());
        }
        report(&item.key, &item.diagnostics);
        interner.share_object(&mut object, &item.key);
        listing.changed.insert(item.key, (KnownState { hash, version: item.version }, object));
    }

    /// Completes the full list. Returns the differences from the objects that were known before, and when the first
    /// object of the list was received.
    pub(super) fn complete(&mut self) -> (Vec<Event>, Option<Instant>) {
        let Some(listing) = self.listing.take() else { return (Vec::new(), None) };
        let mut events = Vec::new();
        // An object without a name may be any known object. So if the list has one, no known object counts as deleted.
        if !listing.has_nameless {
            self.known.retain(|key, _| {
                let stays = listing.listed.contains(key);
                if !stays {
                    events.push(Event::Delete(key.clone()));
                }
                stays
            });
        }
        for (key, version) in listing.versions {
            self.known.entry(key).and_modify(|known| known.version = version);
        }
        for (key, (known, object)) in listing.changed {
            self.known.insert(key, known);
            events.push(Event::Apply(object));
        }
        (events, listing.received)
    }

    /// Records a new or changed object. Returns the object if it is new, or if a field that policies need has changed.
    pub(super) fn update(&mut self, mut item: ReceivedObject, interner: &mut Interner) -> Option<Object> {
        let Some(mut object) = item.object else {
            report(&item.key, &item.diagnostics);
            return None;
        };
        let hash = self.hasher.hash_one(&object);
        if let Some(known) = self.known.get_mut(&item.key) {
            known.version = item.version;
            if std::mem::replace(&mut known.hash, hash) == hash {
                return None;
            }
            if let Some((key, _)) = self.known.get_key_value(&item.key) {
                item.key = key.clone();
            }
        } else {
            interner.share_key(&mut item.key);
            self.known.insert(item.key.clone(), KnownState { hash, version: item.version });
        }
        report(&item.key, &item.diagnostics);
        interner.share_object(&mut object, &item.key);
        Some(object)
    }

    /// Removes an object. Returns its key if it was known.
    pub(super) fn remove(&mut self, key: &ObjectKey) -> Option<ObjectKey> {
        self.known.remove_entry(key).map(|(key, _)| key)
    }

    /// Returns the known resource version of an object.
    pub(super) fn version(&self, key: &ObjectKey) -> Option<u64> {
        self.known.get(key).map(|known| known.version)
    }

    /// Returns the objects that have this resource version or an older one.
    pub(super) fn up_to_version(&self, version: u64) -> impl Iterator<Item = &ObjectKey> {
        self.known.iter().filter(move |(_, known)| known.version <= version).map(|(key, _)| key)
    }

    pub(super) fn len(&self) -> usize {
        self.known.len()
    }
}

/// Logs the diagnostics of a new or changed object.
fn report(key: &ObjectKey, diagnostics: &[String]) {
    for diagnostic in diagnostics {
        tracing::warn!(object = %key, "{diagnostic}");
    }
}

#[cfg(test)]
mod tests {
    use netpol_policy::model::Node;

    use super::*;

    /// Returns a received Node with the address 10.0.0.`address`. `None`: the object could not be parsed.
    fn received_object(name: &str, address: Option<u8>, version: u64) -> ReceivedObject {
        let addresses = address.into_iter().map(|last| std::net::IpAddr::from([10, 0, 0, last])).collect();
        let object = address.map(|_| Object::Node(Node { name: name.into(), addresses }));
        ReceivedObject { key: ObjectKey::Node(name.into()), version, object, diagnostics: Vec::new() }
    }

    /// Receives a full list with these objects. Returns the differences, each with `+` (new or changed object) or `-`
    /// (deleted object).
    fn complete_list(store: &mut Store, all: Vec<ReceivedObject>) -> Vec<String> {
        store.begin();
        for item in all {
            store.add_listed(item, Instant::now(), &mut Interner::default());
        }
        let (events, _) = store.complete();
        let mut texts: Vec<String> = events
            .iter()
            .map(|event| match event {
                Event::Apply(object) => format!("+{}", object.key()),
                Event::Delete(key) => format!("-{key}"),
                Event::Reset(_) | Event::LocalAddresses(_) | Event::Clock(_) => "?".to_owned(),
            })
            .collect();
        texts.sort();
        texts
    }

    #[test]
    fn a_list_yields_the_differences_even_if_its_resource_versions_are_older() {
        let mut store = Store::default();
        complete_list(
            &mut store,
            vec![received_object("a", Some(1), 5), received_object("b", Some(2), 6), received_object("c", Some(3), 7)],
        );
        let differences = complete_list(
            &mut store,
            vec![received_object("a", Some(1), 2), received_object("b", Some(9), 3), received_object("d", Some(4), 1)],
        );
        assert_eq!(differences, ["+Node b", "+Node d", "-Node c"]);
        assert_eq!(store.version(&ObjectKey::Node("a".into())), Some(2));
    }

    #[test]
    fn a_list_that_does_not_end_changes_nothing() {
        let mut store = Store::default();
        complete_list(&mut store, vec![received_object("a", Some(1), 1)]);
        store.begin();
        store.add_listed(received_object("b", Some(2), 2), Instant::now(), &mut Interner::default());
        store.abandon();
        assert_eq!(store.complete().0, []);
        assert_eq!(store.len(), 1);
    }

    #[test]
    fn an_object_that_cannot_be_parsed_keeps_its_last_state() {
        let mut store = Store::default();
        complete_list(&mut store, vec![received_object("a", Some(1), 1)]);
        assert_eq!(
            complete_list(&mut store, vec![received_object("a", None, 2), received_object("new", None, 2)]),
            [""; 0]
        );
        assert!(store.update(received_object("a", None, 3), &mut Interner::default()).is_none());
        store.begin();
        store.mark_nameless();
        assert_eq!(store.complete().0, [], "an object without a name may be any known object");
        assert_eq!(store.len(), 1);
    }

    #[test]
    fn an_unchanged_object_yields_no_event() {
        let mut store = Store::default();
        let mut interner = Interner::default();
        assert!(store.update(received_object("a", Some(1), 1), &mut interner).is_some());
        assert!(store.update(received_object("a", Some(1), 2), &mut interner).is_none());
        assert_eq!(store.version(&ObjectKey::Node("a".into())), Some(2));
        assert!(store.update(received_object("a", Some(2), 3), &mut interner).is_some());
    }
}
