//! Combines the events of all watchers into batches. Does no I/O; the time is an argument.
//!
//! A resource that was out of sync returns with its differences. If several resources were out of sync, their
//! differences are sent in one batch: it is held until all have returned, or for [`HOLD`].

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use netpol_policy::cluster_state::Event;
use netpol_policy::model::{Object, ObjectKey};

use super::intern::Interner;
use super::resource::Resource;
use super::store::Store;
use super::trim::Seen;

/// A resource that has returned waits this long for the others: an API server that has just started may reject requests
/// for a while, and a full list of a large cluster takes time. The state from before the outage stays in effect for
/// that much longer. Waiting forever would not be safer, because addresses pass from pod to pod.
pub(super) const HOLD: Duration = Duration::from_secs(30);
/// Time in which a resumed watch delivers the events that were missed.
pub(super) const CATCH_UP: Duration = Duration::from_millis(200);

/// An event from the watcher of a resource.
#[derive(Debug)]
pub(super) enum WatchEvent {
    /// A full list starts.
    Began,
    /// An object of the list. The list ends with [`WatchEvent::Listed`], or never.
    Item(Seen, Instant),
    /// An object of the list without a name. Missing objects do not count as deleted then.
    Unnamed,
    /// The list is complete.
    Listed(u64),
    /// An object is new or changed.
    Changed(Seen, Instant),
    /// An object was deleted.
    Deleted(Seen, Instant),
    /// All changes up to this version were sent.
    Position(u64),
    /// Changes may be missed from now on.
    Lost,
    /// The watch failed; nothing is missed if it resumes.
    Broken,
    /// The watch resumed where it failed.
    Resumed,
}

/// Whether the known objects of a resource are in sync with the API server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Freshness {
    Unlisted,
    InSync,
    Lost,
    /// Out of sync for longer than the others wait. The others have newer state since then, and do not wait for it
    /// again.
    Skipped,
    /// Returned at the first time. At the second, all missed events have arrived.
    Returned(Instant, Instant),
}

#[derive(Debug)]
struct ResourceState {
    store: Store,
    freshness: Freshness,
    /// Whether the watch failed, and has neither resumed nor lost sync yet.
    broken: bool,
    position: u64,
}

/// Events that are sent in one batch.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Bundle {
    pub(super) events: Vec<Event>,
    pub(super) after_resync: bool,
    pub(super) received: Instant,
}

/// Combines events; see the module.
#[derive(Debug)]
pub(super) struct Gatherer {
    resources: BTreeMap<Resource, ResourceState>,
    interner: Interner,
    /// All known objects before the first bundle; `None` after it.
    initial: Option<HashMap<ObjectKey, Object>>,
    in_sync_events: Vec<Event>,
    resync: BTreeMap<ObjectKey, Event>,
    /// When the first event of `in_sync_events` or `resync` was received.
    received: Option<Instant>,
    resync_received: Option<Instant>,
}

impl Gatherer {
    pub(super) fn new(resources: &[Resource]) -> Self {
        let state =
            || ResourceState { store: Store::default(), freshness: Freshness::Unlisted, broken: false, position: 0 };
        Self {
            resources: resources.iter().map(|resource| (*resource, state())).collect(),
            interner: Interner::default(),
            initial: Some(HashMap::new()),
            in_sync_events: Vec::new(),
            resync: BTreeMap::new(),
            received: None,
            resync_received: None,
        }
    }

    /// Processes an event of a watcher.
    pub(super) fn take(&mut self, resource: Resource, events: WatchEvent, now: Instant) {
        let Some(state) = self.resources.get_mut(&resource) else { return };
        match events {
            WatchEvent::Began => state.store.begin(),
            WatchEvent::Item(seen, received) => state.store.list(seen, received, &mut self.interner),
            WatchEvent::Unnamed => state.store.mark_incomplete(),
            WatchEvent::Listed(version) => {
                state.position = version;
                state.broken = false;
                let (events, received) = state.store.complete();
                state.freshness = Freshness::Returned(now, now);
                let received = received.unwrap_or(now);
                for event in events {
                    self.add_event(resource, event, received);
                }
            }
            WatchEvent::Changed(seen, received) => {
                state.position = state.position.max(seen.version);
                if let Some(object) = state.store.put(seen, &mut self.interner) {
                    self.add_event(resource, Event::Apply(object), received);
                }
            }
            WatchEvent::Deleted(seen, received) => {
                state.position = state.position.max(seen.version);
                if let Some(key) = state.store.remove(&seen.key) {
                    self.add_event(resource, Event::Delete(key), received);
                }
            }
            WatchEvent::Position(version) => state.position = state.position.max(version),
            WatchEvent::Lost => {
                state.store.abandon();
                state.broken = false;
                if !matches!(state.freshness, Freshness::Unlisted | Freshness::Skipped) {
                    state.freshness = Freshness::Lost;
                }
            }
            WatchEvent::Broken => state.broken = true,
            WatchEvent::Resumed => {
                state.broken = false;
                if matches!(state.freshness, Freshness::Lost | Freshness::Skipped) {
                    state.freshness = Freshness::Returned(now, now + CATCH_UP);
                }
            }
        }
    }

    fn add_event(&mut self, resource: Resource, event: Event, received: Instant) {
        if let Some(initial) = &mut self.initial {
            match event {
                Event::Apply(object) => drop(initial.insert(object.key(), object)),
                Event::Delete(key) => drop(initial.remove(&key)),
                Event::Reset(_) | Event::LocalAddresses(_) => {}
            }
            self.received.get_or_insert(received);
        } else if self.resources.get(&resource).is_some_and(|state| state.freshness == Freshness::InSync) {
            self.in_sync_events.push(event);
            self.received.get_or_insert(received);
        } else {
            let key = match &event {
                Event::Apply(object) => object.key(),
                Event::Delete(key) => key.clone(),
                Event::Reset(_) | Event::LocalAddresses(_) => return,
            };
            self.resync.insert(key, event);
            self.resync_received.get_or_insert(received);
        }
    }

    /// Returns the bundles that are due.
    pub(super) fn due(&mut self, now: Instant) -> Vec<Bundle> {
        let mut bundles = Vec::new();
        if self.initial.is_some() {
            if self.resources.values().any(|state| state.freshness == Freshness::Unlisted) {
                return bundles;
            }
            let objects = self.initial.take().unwrap_or_default().into_values().collect();
            let received = self.received.take().unwrap_or(now);
            bundles.push(Bundle { events: vec![Event::Reset(objects)], after_resync: false, received });
            self.mark_in_sync();
            return bundles;
        }
        if !self.in_sync_events.is_empty() {
            let events = std::mem::take(&mut self.in_sync_events);
            bundles.push(Bundle { events, after_resync: false, received: self.received.take().unwrap_or(now) });
        }
        if self.resync_at().is_some_and(|at| at <= now) {
            self.skip_lost();
            self.mark_in_sync();
            let events: Vec<_> = std::mem::take(&mut self.resync).into_values().collect();
            let received = self.resync_received.take().unwrap_or(now);
            if !events.is_empty() {
                bundles.push(Bundle { events, after_resync: true, received });
            }
        }
        bundles
    }

    fn skip_lost(&mut self) {
        let mut lost = Vec::new();
        for (resource, state) in self.resources.iter_mut().filter(|(_, state)| state.freshness == Freshness::Lost) {
            state.freshness = Freshness::Skipped;
            lost.push(resource.plural());
        }
        if !lost.is_empty() {
            tracing::warn!("continuing without {}, which could not be listed since the outage", lost.join(", "));
        }
    }

    fn mark_in_sync(&mut self) {
        for state in self.resources.values_mut() {
            if matches!(state.freshness, Freshness::Returned(..)) {
                state.freshness = Freshness::InSync;
            }
        }
    }

    /// Returns when to call [`Self::due`] even without further events.
    pub(super) fn resync_at(&self) -> Option<Instant> {
        let back = || {
            self.resources.values().filter_map(|state| match state.freshness {
                Freshness::Returned(since, complete) => Some((since, complete)),
                Freshness::Unlisted | Freshness::InSync | Freshness::Lost | Freshness::Skipped => None,
            })
        };
        let complete = back().map(|(_, complete)| complete).max()?;
        let lost = self.resources.values().any(|state| state.freshness == Freshness::Lost || state.broken);
        let held = back().map(|(since, _)| since + HOLD).min()?;
        Some(if lost { held.max(complete) } else { complete })
    }

    /// Returns whether an object exists, if a state at least as new as `version` (`None`: the object did not exist) was
    /// processed and sent. Otherwise returns `None`.
    pub(super) fn has_processed(&self, resource: Resource, key: &ObjectKey, version: Option<u64>) -> Option<bool> {
        if self.initial.is_some() || !self.in_sync_events.is_empty() || self.resync.contains_key(key) {
            return None;
        }
        let state = self.resources.get(&resource)?;
        match (version, state.store.version(key)) {
            (None, None) => Some(false),
            (None, Some(_)) => None,
            (Some(wanted), Some(known)) if known >= wanted => Some(true),
            (Some(wanted), known) => {
                (state.position >= wanted && state.freshness == Freshness::InSync).then_some(known.is_some())
            }
        }
    }

    /// Returns the known objects of a resource with this version or an older one.
    pub(super) fn older(&self, resource: Resource, version: u64) -> impl Iterator<Item = &ObjectKey> {
        self.resources.get(&resource).into_iter().flat_map(move |state| state.store.older(version))
    }

    /// Returns whether a resource is in sync, and the number of known objects.
    pub(super) fn condition(&self, resource: Resource) -> (bool, usize) {
        self.resources
            .get(&resource)
            .map_or((false, 0), |state| (state.freshness == Freshness::InSync, state.store.len()))
    }
}

#[cfg(test)]
mod tests;
