//! What all watchers tell, put together: which events, in which batch. Pure, and told the time.
//!
//! A resource that was out of sight comes back with what differs. Where several were, their differences make one jump:
//! it is held until all are back, or for [`HOLD`].

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use netpol_policy::model::{Object, ObjectKey};
use netpol_policy::world::Event;

use super::intern::Interner;
use super::resource::Resource;
use super::store::Store;
use super::trim::Seen;

/// Who is back waits this long for the others: a server that has just started may refuse some for a while, and a full list of a
/// large cluster takes its time. What was in force while nothing was in sight stays so for that much longer; staying so for ever
/// would be no safer, as addresses pass from pod to pod.
pub(super) const HOLD: Duration = Duration::from_secs(30);
/// What was missed comes within this time once a watch goes on where it broke off.
pub(super) const SETTLE: Duration = Duration::from_millis(200);

/// What a watcher tells of its resource.
#[derive(Debug)]
pub(super) enum News {
    /// A full list begins.
    Began,
    /// Part of it; it ends with [`News::Listed`], or never.
    Item(Seen, Instant),
    /// Part of it that nobody could name: nothing counts as deleted for not being listed.
    Unnamed,
    /// It is complete.
    Listed(u64),
    /// New or changed.
    Changed(Seen, Instant),
    /// Gone.
    Deleted(Seen, Instant),
    /// Everything up to this version was told.
    Position(u64),
    /// Changes can be missed from now on.
    Lost,
    /// The watch broke; nothing is missed if it goes on.
    Broken,
    /// The watch goes on where it broke off.
    Resumed,
}

/// Whether what is known of a resource follows what there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sight {
    Never,
    Clear,
    Lost,
    /// Lost for longer than others wait. What is known of the others is newer ever since: nobody waits for it again.
    GivenUp,
    /// Back since the first time and whole at the second.
    Back(Instant, Instant),
}

#[derive(Debug)]
struct Kind {
    store: Store,
    sight: Sight,
    /// Whether it is in sight will show.
    broken: bool,
    position: u64,
}

/// Events that go out together.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Bundle {
    pub(super) events: Vec<Event>,
    pub(super) after_gap: bool,
    pub(super) received: Instant,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Gatherer {
    kinds: BTreeMap<Resource, Kind>,
    interner: Interner,
    /// Everything known before the first bundle; `None` after it.
    initial: Option<HashMap<ObjectKey, Object>>,
    ordinary: Vec<Event>,
    jump: BTreeMap<ObjectKey, Event>,
    /// When the first of either came.
    received: Option<Instant>,
    jump_received: Option<Instant>,
}

impl Gatherer {
    pub(super) fn new(resources: &[Resource]) -> Self {
        let kind = || Kind { store: Store::default(), sight: Sight::Never, broken: false, position: 0 };
        Self {
            kinds: resources.iter().map(|resource| (*resource, kind())).collect(),
            interner: Interner::default(),
            initial: Some(HashMap::new()),
            ordinary: Vec::new(),
            jump: BTreeMap::new(),
            received: None,
            jump_received: None,
        }
    }

    /// Takes news in.
    pub(super) fn take(&mut self, resource: Resource, news: News, now: Instant) {
        let Some(kind) = self.kinds.get_mut(&resource) else { return };
        match news {
            News::Began => kind.store.begin(),
            News::Item(seen, received) => kind.store.list(seen, received, &mut self.interner),
            News::Unnamed => kind.store.blur(),
            News::Listed(version) => {
                kind.position = version;
                kind.broken = false;
                let (events, received) = kind.store.complete();
                kind.sight = Sight::Back(now, now);
                let received = received.unwrap_or(now);
                for event in events {
                    self.emit(resource, event, received);
                }
            }
            News::Changed(seen, received) => {
                kind.position = kind.position.max(seen.version);
                if let Some(object) = kind.store.put(seen, &mut self.interner) {
                    self.emit(resource, Event::Apply(object), received);
                }
            }
            News::Deleted(seen, received) => {
                kind.position = kind.position.max(seen.version);
                if let Some(key) = kind.store.remove(&seen.key) {
                    self.emit(resource, Event::Delete(key), received);
                }
            }
            News::Position(version) => kind.position = kind.position.max(version),
            News::Lost => {
                kind.store.abandon();
                kind.broken = false;
                if !matches!(kind.sight, Sight::Never | Sight::GivenUp) {
                    kind.sight = Sight::Lost;
                }
            }
            News::Broken => kind.broken = true,
            News::Resumed => {
                kind.broken = false;
                if matches!(kind.sight, Sight::Lost | Sight::GivenUp) {
                    kind.sight = Sight::Back(now, now + SETTLE);
                }
            }
        }
    }

    fn emit(&mut self, resource: Resource, event: Event, received: Instant) {
        if let Some(initial) = &mut self.initial {
            match event {
                Event::Apply(object) => drop(initial.insert(object.key(), object)),
                Event::Delete(key) => drop(initial.remove(&key)),
                Event::Reset(_) | Event::OwnAddresses(_) => {}
            }
            self.received.get_or_insert(received);
        } else if self.kinds.get(&resource).is_some_and(|kind| kind.sight == Sight::Clear) {
            self.ordinary.push(event);
            self.received.get_or_insert(received);
        } else {
            let key = match &event {
                Event::Apply(object) => object.key(),
                Event::Delete(key) => key.clone(),
                Event::Reset(_) | Event::OwnAddresses(_) => return,
            };
            self.jump.insert(key, event);
            self.jump_received.get_or_insert(received);
        }
    }

    /// What is to go out now.
    pub(super) fn due(&mut self, now: Instant) -> Vec<Bundle> {
        let mut bundles = Vec::new();
        if self.initial.is_some() {
            if self.kinds.values().any(|kind| kind.sight == Sight::Never) {
                return bundles;
            }
            let objects = self.initial.take().unwrap_or_default().into_values().collect();
            let received = self.received.take().unwrap_or(now);
            bundles.push(Bundle { events: vec![Event::Reset(objects)], after_gap: false, received });
            self.clear();
            return bundles;
        }
        if !self.ordinary.is_empty() {
            let events = std::mem::take(&mut self.ordinary);
            bundles.push(Bundle { events, after_gap: false, received: self.received.take().unwrap_or(now) });
        }
        if self.jump_at().is_some_and(|at| at <= now) {
            self.give_up();
            self.clear();
            let events: Vec<_> = std::mem::take(&mut self.jump).into_values().collect();
            let received = self.jump_received.take().unwrap_or(now);
            if !events.is_empty() {
                bundles.push(Bundle { events, after_gap: true, received });
            }
        }
        bundles
    }

    fn give_up(&mut self) {
        let mut lost = Vec::new();
        for (resource, kind) in self.kinds.iter_mut().filter(|(_, kind)| kind.sight == Sight::Lost) {
            kind.sight = Sight::GivenUp;
            lost.push(resource.plural());
        }
        if !lost.is_empty() {
            tracing::warn!("going on without news of {}, which are still not in sight", lost.join(", "));
        }
    }

    fn clear(&mut self) {
        for kind in self.kinds.values_mut() {
            if matches!(kind.sight, Sight::Back(..)) {
                kind.sight = Sight::Clear;
            }
        }
    }

    /// When to ask for what is due, whatever comes.
    pub(super) fn jump_at(&self) -> Option<Instant> {
        let back = || {
            self.kinds.values().filter_map(|kind| match kind.sight {
                Sight::Back(since, whole) => Some((since, whole)),
                Sight::Never | Sight::Clear | Sight::Lost | Sight::GivenUp => None,
            })
        };
        let whole = back().map(|(_, whole)| whole).max()?;
        let lost = self.kinds.values().any(|kind| kind.sight == Sight::Lost || kind.broken);
        let held = back().map(|(since, _)| since + HOLD).min()?;
        Some(if lost { held.max(whole) } else { whole })
    }

    /// Whether an object that had this version (`None`: that was not there) is taken in as it was then or later, and if so,
    /// whether it is there.
    pub(super) fn knows(&self, resource: Resource, key: &ObjectKey, version: Option<u64>) -> Option<bool> {
        if self.initial.is_some() || !self.ordinary.is_empty() || self.jump.contains_key(key) {
            return None;
        }
        let kind = self.kinds.get(&resource)?;
        match (version, kind.store.version(key)) {
            (None, None) => Some(false),
            (None, Some(_)) => None,
            (Some(wanted), Some(known)) if known >= wanted => Some(true),
            (Some(wanted), known) => (kind.position >= wanted && kind.sight == Sight::Clear).then_some(known.is_some()),
        }
    }

    /// The objects of a resource that are known as they were at a version or before.
    pub(super) fn older(&self, resource: Resource, version: u64) -> impl Iterator<Item = &ObjectKey> {
        self.kinds.get(&resource).into_iter().flat_map(move |kind| kind.store.older(version))
    }

    /// Whether a resource is in sight, and how many objects of it are known.
    pub(super) fn standing(&self, resource: Resource) -> (bool, usize) {
        self.kinds.get(&resource).map_or((false, 0), |kind| (kind.sight == Sight::Clear, kind.store.len()))
    }
}

#[cfg(test)]
mod tests;
