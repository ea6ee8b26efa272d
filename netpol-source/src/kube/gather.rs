//! Combines the events of all watchers (one for each resource) into batches. Does no I/O; the time is an argument. A
//! *version* is a `resourceVersion` of the API server.
//!
//! When a resource is in sync again after an outage, its events are the differences since the outage started. If
//! several resources were out of sync, their differences are sent in one batch. The batch is delayed until all of them
//! are in sync again, at most for [`MAX_DELAY`].

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use netpol_policy::cluster_state::Event;
use netpol_policy::model::{Object, ObjectKey};

use super::intern::Interner;
use super::resource::Resource;
use super::store::Store;
use super::trim::ReceivedObject;

/// How long the differences of a recovered resource wait for other resources. An API server that has just started may
/// reject requests for a while, and a full list of a large cluster takes time. During the wait, the state from before
/// the outage stays in effect. Waiting forever would not be safer: new pods get the addresses of deleted pods, but
/// the old state still assigns these addresses to the deleted pods.
pub(super) const MAX_DELAY: Duration = Duration::from_secs(30);
/// Time limit for a resumed watch to deliver the missed events. After this time, the differences count as complete.
pub(super) const CATCH_UP: Duration = Duration::from_millis(200);

/// An event from the watcher of a resource.
#[derive(Debug)]
pub(super) enum WatchEvent {
    /// A full list starts.
    Began,
    /// An object of the list, and when it was received. [`WatchEvent::Listed`] follows the last object, unless the list
    /// stays incomplete.
    Item(ReceivedObject, Instant),
    /// The list has an object without a name. This may be any known object. So objects that are missing from the list
    /// do not count as deleted.
    Nameless,
    /// The list is complete, at this version.
    Listed(u64),
    /// A new or changed object, and when it was received.
    Changed(ReceivedObject, Instant),
    /// A deleted object, and when the event of its deletion was received.
    Deleted(ReceivedObject, Instant),
    /// The API server has sent all changes up to this version.
    Position(u64),
    /// The watch is lost: the resource is out of sync from now on.
    Lost,
    /// The watch failed. The watcher tries once to resume it at the same version. If this succeeds, no change is
    /// missed, and the resource stays in sync. If not, [`WatchEvent::Lost`] follows.
    Broken,
    /// After [`WatchEvent::Broken`] or [`WatchEvent::Lost`]: the watch resumed at the version at which it failed.
    Resumed,
}

/// Whether the known objects of a resource are in sync with the API server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SyncState {
    /// Not listed yet.
    Unlisted,
    InSync,
    /// Out of sync. Recovered resources wait for this one, at most for [`MAX_DELAY`].
    Lost,
    /// Out of sync. Other resources no longer wait for this one, because they have already waited for [`MAX_DELAY`].
    Skipped,
    /// Recovered, but the differences since the outage started are not sent yet.
    Recovered {
        /// When the resource recovered.
        since: Instant,
        /// From this time on, the differences count as complete.
        complete: Instant,
    },
}

#[derive(Debug)]
struct ResourceState {
    store: Store,
    sync: SyncState,
    /// Whether the watch failed, and was neither resumed nor lost since then.
    broken: bool,
    /// All changes up to this version were received.
    position: u64,
}

/// The events of one batch. The caller adds the number of the batch.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Bundle {
    pub(super) events: Vec<Event>,
    /// Whether the events are the differences since an outage started.
    pub(super) after_resync: bool,
    /// When the first event was received.
    pub(super) received: Instant,
}

/// Combines events; see the module.
#[derive(Debug)]
pub(super) struct Gatherer {
    resources: BTreeMap<Resource, ResourceState>,
    interner: Interner,
    /// All known objects, until the first bundle is created; then `None`.
    initial: Option<HashMap<ObjectKey, Object>>,
    /// Changes of resources that are in sync, for the next bundle.
    in_sync_events: Vec<Event>,
    /// The differences since an outage started: the last event of each object.
    resync: BTreeMap<ObjectKey, Event>,
    /// When the first of `initial` or `in_sync_events` was received.
    received: Option<Instant>,
    /// When the first of `resync` was received.
    resync_received: Option<Instant>,
}

impl Gatherer {
    pub(super) fn new(resources: &[Resource]) -> Self {
        let state = || ResourceState { store: Store::default(), sync: SyncState::Unlisted, broken: false, position: 0 };
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
    pub(super) fn process(&mut self, resource: Resource, event: WatchEvent, now: Instant) {
        let Some(state) = self.resources.get_mut(&resource) else { return };
        match event {
            WatchEvent::Began => state.store.begin(),
            WatchEvent::Item(item, received) => state.store.add_listed(item, received, &mut self.interner),
            WatchEvent::Nameless => state.store.mark_nameless(),
            WatchEvent::Listed(version) => {
                state.position = version;
                state.broken = false;
                let (events, received) = state.store.complete();
                state.sync = SyncState::Recovered { since: now, complete: now };
                let received = received.unwrap_or(now);
                for event in events {
                    self.add_event(resource, event, received);
                }
            }
            WatchEvent::Changed(item, received) => {
                state.position = state.position.max(item.version);
                if let Some(object) = state.store.update(item, &mut self.interner) {
                    self.add_event(resource, Event::Apply(object), received);
                }
            }
            WatchEvent::Deleted(item, received) => {
                state.position = state.position.max(item.version);
                if let Some(key) = state.store.remove(&item.key) {
                    self.add_event(resource, Event::Delete(key), received);
                }
            }
            WatchEvent::Position(version) => state.position = state.position.max(version),
            WatchEvent::Lost => {
                state.store.abandon();
                state.broken = false;
                if !matches!(state.sync, SyncState::Unlisted | SyncState::Skipped) {
                    state.sync = SyncState::Lost;
                }
            }
            WatchEvent::Broken => state.broken = true,
            WatchEvent::Resumed => {
                state.broken = false;
                if matches!(state.sync, SyncState::Lost | SyncState::Skipped) {
                    state.sync = SyncState::Recovered { since: now, complete: now + CATCH_UP };
                }
            }
        }
    }

    fn add_event(&mut self, resource: Resource, event: Event, received: Instant) {
        if let Some(initial) = &mut self.initial {
            match event {
                Event::Apply(object) => drop(initial.insert(object.key(), object)),
                Event::Delete(key) => drop(initial.remove(&key)),
                Event::Reset(_) | Event::LocalAddresses(_) | Event::Clock(_) => {}
            }
            self.received.get_or_insert(received);
        } else if self.resources.get(&resource).is_some_and(|state| state.sync == SyncState::InSync) {
            self.in_sync_events.push(event);
            self.received.get_or_insert(received);
        } else {
            let key = match &event {
                Event::Apply(object) => object.key(),
                Event::Delete(key) => key.clone(),
                Event::Reset(_) | Event::LocalAddresses(_) | Event::Clock(_) => return,
            };
            self.resync.insert(key, event);
            self.resync_received.get_or_insert(received);
        }
    }

    /// Returns the bundles that are due.
    pub(super) fn due(&mut self, now: Instant) -> Vec<Bundle> {
        let mut bundles = Vec::new();
        if self.initial.is_some() {
            if self.resources.values().any(|state| state.sync == SyncState::Unlisted) {
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
        if self.resync_at().is_some_and(|time| time <= now) {
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

    /// Stops waiting for the resources that are still out of sync.
    fn skip_lost(&mut self) {
        let mut lost = Vec::new();
        for (resource, state) in self.resources.iter_mut().filter(|(_, state)| state.sync == SyncState::Lost) {
            state.sync = SyncState::Skipped;
            lost.push(resource.plural());
        }
        if !lost.is_empty() {
            tracing::warn!("continuing without {}, which could not be listed since the outage", lost.join(", "));
        }
    }

    fn mark_in_sync(&mut self) {
        for state in self.resources.values_mut() {
            if matches!(state.sync, SyncState::Recovered { .. }) {
                state.sync = SyncState::InSync;
            }
        }
    }

    /// Returns when to call [`Self::due`] if no further event is received; `None` if no differences wait to be sent.
    pub(super) fn resync_at(&self) -> Option<Instant> {
        let recovered = || {
            self.resources.values().filter_map(|state| match state.sync {
                SyncState::Recovered { since, complete } => Some((since, complete)),
                SyncState::Unlisted | SyncState::InSync | SyncState::Lost | SyncState::Skipped => None,
            })
        };
        let complete = recovered().map(|(_, complete)| complete).max()?;
        let must_wait = self.resources.values().any(|state| state.sync == SyncState::Lost || state.broken);
        let latest = recovered().map(|(since, _)| since + MAX_DELAY).min()?;
        Some(if must_wait { latest.max(complete) } else { complete })
    }

    /// `version` is the object's version at the API server, or `None` if the API server has no such object. Returns
    /// `None` until this state of the object, or a later one, was sent in a batch. From then on, returns whether the
    /// object exists.
    pub(super) fn exists_if_sent(&self, resource: Resource, key: &ObjectKey, version: Option<u64>) -> Option<bool> {
        if self.initial.is_some() || !self.in_sync_events.is_empty() || self.resync.contains_key(key) {
            return None;
        }
        let state = self.resources.get(&resource)?;
        match (version, state.store.version(key)) {
            (None, None) => Some(false),
            (None, Some(_)) => None,
            (Some(wanted), Some(known)) if known >= wanted => Some(true),
            (Some(wanted), known) => {
                (state.position >= wanted && state.sync == SyncState::InSync).then_some(known.is_some())
            }
        }
    }

    /// Returns the known objects of a resource that have this version or an older one.
    pub(super) fn up_to_version(&self, resource: Resource, version: u64) -> impl Iterator<Item = &ObjectKey> {
        self.resources.get(&resource).into_iter().flat_map(move |state| state.store.up_to_version(version))
    }

    /// Returns whether a resource is in sync, and the number of its known objects.
    pub(super) fn sync_and_size(&self, resource: Resource) -> (bool, usize) {
        self.resources.get(&resource).map_or((false, 0), |state| (state.sync == SyncState::InSync, state.store.len()))
    }
}

#[cfg(test)]
mod tests;
