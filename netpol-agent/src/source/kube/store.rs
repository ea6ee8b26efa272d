//! What is known of one resource's objects: not the objects, only enough to tell that one has changed.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::time::Instant;

use netpol_policy::model::{Object, ObjectKey};
use netpol_policy::world::Event;

use super::intern::Interner;
use super::trim::Seen;

/// An object as it was last told.
#[derive(Clone, Copy, Debug)]
struct Known {
    /// Of all that policies need of it. Keyed at random: nobody can make two objects look alike.
    hash: u64,
    version: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Store {
    known: HashMap<ObjectKey, Known>,
    hasher: RandomState,
    listing: Option<Listing>,
}

/// A full list that has not come to its end.
#[derive(Debug, Default)]
struct Listing {
    /// What is listed and known already, as it is or as it was.
    listed: HashSet<ObjectKey>,
    changed: HashMap<ObjectKey, (Known, Object)>,
    versions: Vec<(ObjectKey, u64)>,
    blurred: bool,
    received: Option<Instant>,
}

impl Store {
    /// A full list begins; one that did not end is forgotten.
    pub(super) fn begin(&mut self) {
        self.listing = Some(Listing::default());
    }

    /// It will not end.
    pub(super) fn abandon(&mut self) {
        self.listing = None;
    }

    /// Something in it has no name.
    pub(super) fn blur(&mut self) {
        if let Some(listing) = &mut self.listing {
            listing.blurred = true;
        }
    }

    /// An object of the full list.
    pub(super) fn list(&mut self, mut seen: Seen, received: Instant, interner: &mut Interner) {
        let Some(listing) = &mut self.listing else { return };
        listing.received.get_or_insert(received);
        let Some(mut object) = seen.object else {
            listing.listed.insert(seen.key);
            return;
        };
        let hash = self.hasher.hash_one(&object);
        if let Some((key, known)) = self.known.get_key_value(&seen.key) {
            listing.listed.insert(key.clone());
            if known.hash == hash {
                listing.changed.remove(key);
                if known.version != seen.version {
                    listing.versions.push((key.clone(), seen.version));
                }
                return;
            }
            seen.key = key.clone();
        } else {
            interner.share_key(&mut seen.key);
            listing.listed.insert(seen.key.clone());
        }
        interner.share_object(&mut object, &seen.key);
        listing.changed.insert(seen.key, (Known { hash, version: seen.version }, object));
    }

    /// The full list is complete: what differs from what was known.
    pub(super) fn complete(&mut self) -> (Vec<Event>, Option<Instant>) {
        let Some(listing) = self.listing.take() else { return (Vec::new(), None) };
        let mut events = Vec::new();
        if !listing.blurred {
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

    /// An object that is new or changed: itself, where that is news.
    pub(super) fn put(&mut self, mut seen: Seen, interner: &mut Interner) -> Option<Object> {
        let mut object = seen.object?;
        let hash = self.hasher.hash_one(&object);
        if let Some(known) = self.known.get_mut(&seen.key) {
            known.version = seen.version;
            if std::mem::replace(&mut known.hash, hash) == hash {
                return None;
            }
            if let Some((key, _)) = self.known.get_key_value(&seen.key) {
                seen.key = key.clone();
            }
        } else {
            interner.share_key(&mut seen.key);
            self.known.insert(seen.key.clone(), Known { hash, version: seen.version });
        }
        interner.share_object(&mut object, &seen.key);
        Some(object)
    }

    /// An object that is gone: its key, where it was known.
    pub(super) fn remove(&mut self, key: &ObjectKey) -> Option<ObjectKey> {
        self.known.remove_entry(key).map(|(key, _)| key)
    }

    /// The version that is known of an object.
    pub(super) fn version(&self, key: &ObjectKey) -> Option<u64> {
        self.known.get(key).map(|known| known.version)
    }

    pub(super) fn len(&self) -> usize {
        self.known.len()
    }
}
