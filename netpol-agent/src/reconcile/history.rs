//! Keeps the last batches of changes, and for each endpoint the last batch that changed it. If a change of an endpoint
//! revokes a flow, the event names this batch.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use netpol_common::IfIndex;
use netpol_policy::cluster_state::Event;
use netpol_policy::model::{ObjectKey, Suspension, Timestamp};
use netpol_source::{Batch, Generation};

/// Number of batches that are kept.
const BATCHES: usize = 256;
/// Maximum number of changed objects that are listed by name.
const NAMED: usize = 8;

/// Objects of these kinds are listed first, because they have the most effect.
const FIRST_KINDS: [&str; 2] = ["NetworkPolicy ", "Namespace "];

/// What one batch changed. If several batches were compiled together: what all of them changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchChange {
    /// The number of the batch; if there are several, the number of the last batch.
    pub generation: Generation,
    /// When this batch was received.
    pub received: SystemTime,
    /// The names of some of the changed objects, such as `NetworkPolicy shop/web`. Policies and namespaces come first.
    pub objects: Vec<String>,
    /// The number of changed objects.
    pub object_count: usize,
}

/// A batch, and when it was enforced.
#[derive(Clone, Debug)]
pub struct BatchRecord {
    /// What the batch changed.
    pub change: Arc<BatchChange>,
    /// When it was fully enforced.
    pub enforced: Option<SystemTime>,
}

/// The history of batches.
#[derive(Debug, Default)]
pub(super) struct History {
    /// The last batches, the oldest first.
    batches: VecDeque<BatchRecord>,
    /// Number of batches at the end of `batches` that are not enforced yet.
    unfinished: usize,
    /// The change that is being written to the BPF maps now.
    current: Option<Arc<BatchChange>>,
    /// The last change of each endpoint (interface of a pod).
    by_endpoint: HashMap<IfIndex, Arc<BatchChange>>,
}

impl History {
    /// Records that a batch was received. `is_first`: the batch contains the objects that exist at the start of the
    /// agent, so none of them counts as changed.
    pub(super) fn received(&mut self, batch: &Batch, is_first: bool) {
        let (objects, object_count) = if is_first { (Vec::new(), 0) } else { names_of(&batch.events) };
        let received = SystemTime::now().checked_sub(batch.received.elapsed()).unwrap_or_else(SystemTime::now);
        let change = BatchChange { generation: batch.generation, received, objects, object_count };
        if self.batches.len() == BATCHES {
            self.batches.pop_front();
        }
        self.batches.push_back(BatchRecord { change: Arc::new(change), enforced: None });
        self.unfinished = (self.unfinished + 1).min(self.batches.len());
    }

    /// Records that the agent begins to write the changes of these batches to the BPF maps. `ended` describes the
    /// suspensions of enforcement that have reached their end time. The end of a suspension can revoke flows, as the
    /// change of an object can.
    pub(super) fn begin(&mut self, batches: &[(Generation, Instant)], ended: Vec<String>) {
        let change_of = |(generation, _): &(Generation, Instant)| {
            self.batches.iter().rev().map(|batch| &batch.change).find(|change| change.generation == *generation)
        };
        let changes: Vec<&Arc<BatchChange>> = batches.iter().filter_map(change_of).collect();
        self.current = match changes[..] {
            [] => None,
            [only] => Some(Arc::clone(only)),
            [.., last] => {
                let mut objects: Vec<_> = changes.iter().flat_map(|change| change.objects.iter().cloned()).collect();
                objects.sort_by_key(|name| {
                    FIRST_KINDS.iter().position(|kind| name.starts_with(kind)).unwrap_or(usize::MAX)
                });
                objects.truncate(NAMED);
                let object_count = changes.iter().map(|change| change.object_count).sum();
                Some(Arc::new(BatchChange { objects, object_count, ..(**last).clone() }))
            }
        };
        if !ended.is_empty() {
            self.current = Some(Arc::new(self.with_ended(ended)));
        }
    }

    /// Returns the current change, with the ended suspensions added. If there is no current change, the result lists
    /// only these suspensions, with the number of the last batch that was received, and the present time.
    fn with_ended(&self, ended: Vec<String>) -> BatchChange {
        let change = self.current.as_deref().cloned().unwrap_or_else(|| BatchChange {
            generation: self.last_received(),
            received: SystemTime::now(),
            objects: Vec::new(),
            object_count: 0,
        });
        let object_count = change.object_count + ended.len();
        let objects = ended.into_iter().chain(change.objects).take(NAMED).collect();
        BatchChange { objects, object_count, ..change }
    }

    /// Records that an endpoint changes because of the batch that is being written (`current`).
    pub(super) fn changed(&mut self, ifindex: IfIndex) {
        if let Some(current) = &self.current {
            self.by_endpoint.insert(ifindex, Arc::clone(current));
        }
    }

    /// Removes an interface.
    pub(super) fn removed(&mut self, ifindex: IfIndex) {
        self.by_endpoint.remove(&ifindex);
    }

    /// Records that all batches up to the batch with this number are enforced.
    pub(super) fn enforced(&mut self, generation: Generation) {
        let first = self.batches.len() - self.unfinished;
        for batch in self.batches.iter_mut().skip(first).take_while(|batch| batch.change.generation <= generation) {
            batch.enforced = Some(SystemTime::now());
            self.unfinished -= 1;
        }
    }

    /// Returns the last change of an endpoint.
    pub(super) fn of_endpoint(&self, ifindex: IfIndex) -> Option<&Arc<BatchChange>> {
        self.by_endpoint.get(&ifindex)
    }

    /// Returns the number of the last batch that was received.
    pub(super) fn last_received(&self) -> Generation {
        self.batches.back().map_or_else(Generation::default, |batch| batch.change.generation)
    }

    /// Returns the last batches, the latest first.
    pub(super) fn batches(&self) -> impl Iterator<Item = &BatchRecord> {
        self.batches.iter().rev()
    }
}

/// Describes the suspensions of enforcement that have reached their end time, in the form of [`BatchChange::objects`].
/// A suspension that was extended, or was removed before its end time, is not included.
pub(super) fn ended_suspensions(before: &[Suspension], after: &[Suspension], now: Timestamp) -> Vec<String> {
    let is_active = |suspension: &Suspension| after.iter().any(|still| still.is_from_same_annotation(suspension));
    let ended = before.iter().filter(|suspension| suspension.until <= now && !is_active(suspension));
    let name = |suspension: &Suspension| {
        let cluster = if suspension.cluster { "cluster " } else { "" };
        format!("Namespace {} ({cluster}suspension ended)", suspension.namespace)
    };
    ended.map(name).collect()
}

/// Returns the names of at most `NAMED` changed objects, sorted by kind, and the number of all changed objects.
fn names_of(events: &[Event]) -> (Vec<String>, usize) {
    let mut changed: BTreeSet<(u8, ObjectKey, bool)> = BTreeSet::new();
    for event in events {
        match event {
            Event::Apply(object) => drop(changed.insert((order(&object.key()), object.key(), false))),
            Event::Delete(key) => drop(changed.insert((order(key), key.clone(), true))),
            Event::Reset(objects) => {
                changed.extend(objects.iter().map(|object| (order(&object.key()), object.key(), false)));
            }
            Event::LocalAddresses(_) | Event::Clock(_) => {}
        }
    }
    let name = |(_, key, deleted): &(u8, ObjectKey, bool)| {
        let deleted = if *deleted { " (deleted)" } else { "" };
        format!("{key}{deleted}")
    };
    (changed.iter().take(NAMED).map(name).collect(), changed.len())
}

/// Returns the position of an object's kind in a list of changed objects.
const fn order(key: &ObjectKey) -> u8 {
    match key {
        ObjectKey::Policy(_) => 0,
        ObjectKey::Namespace(_) => 1,
        ObjectKey::Pod(_) => 2,
        ObjectKey::Service(_) => 3,
        ObjectKey::Slice(_) => 4,
        ObjectKey::Node(_) => 5,
    }
}

#[cfg(test)]
mod tests {

    use netpol_policy::model::{PodKey, PolicyKey};

    use super::*;

    /// Returns a batch that deletes these objects.
    fn batch(number: u64, keys: Vec<ObjectKey>) -> Batch {
        Batch {
            generation: Generation(number),
            events: keys.into_iter().map(Event::Delete).collect(),
            after_resync: false,
            received: Instant::now(),
        }
    }

    #[test]
    fn the_last_change_of_an_endpoint_lists_policies_first() {
        let mut history = History::default();
        history.received(&batch(1, Vec::new()), true);
        let pods = (0..20).map(|number| ObjectKey::Pod(PodKey::new("shop", format!("web-{number:02}"))));
        let policy = ObjectKey::Policy(PolicyKey::new("shop", "web"));
        history.received(&batch(2, pods.chain([policy]).collect()), false);
        history.received(&batch(3, vec![ObjectKey::Namespace("bank".into())]), false);
        let now = Instant::now();
        history.begin(&[(Generation(2), now)], Vec::new());
        history.changed(IfIndex(7));
        history.begin(&[(Generation(3), now)], Vec::new());
        history.changed(IfIndex(8));
        let change = history.of_endpoint(IfIndex(7)).expect("no change");
        assert_eq!((change.generation, change.object_count, change.objects.len()), (Generation(2), 21, NAMED));
        assert_eq!(change.objects[..2], ["NetworkPolicy shop/web (deleted)", "Pod shop/web-00 (deleted)"]);
        history.begin(&[(Generation(2), now), (Generation(3), now)], Vec::new());
        history.changed(IfIndex(7));
        let change = history.of_endpoint(IfIndex(7)).expect("no change");
        assert_eq!((change.generation, change.object_count), (Generation(3), 22));
        assert_eq!(change.objects[..2], ["NetworkPolicy shop/web (deleted)", "Namespace bank (deleted)"]);
        // A suspension reaches its end time. In the first case, there is no batch. In the second case, the end is
        // compiled together with a batch.
        let ended = || vec!["Namespace shop (suspension ended)".to_owned()];
        for (batches, count) in [(&[][..], 1), (&[(Generation(3), now)][..], 2)] {
            history.begin(batches, ended());
            history.changed(IfIndex(7));
            let change = history.of_endpoint(IfIndex(7)).expect("no change");
            assert_eq!((change.generation, change.object_count), (Generation(3), count));
            assert_eq!(change.objects[0], ended()[0]);
        }
        history.removed(IfIndex(8));
        assert_eq!(history.of_endpoint(IfIndex(8)), None);
    }

    #[test]
    fn a_suspension_ends_at_its_end_time_unless_it_was_removed_or_extended_before() {
        let at = |seconds| Timestamp(seconds);
        let suspension =
            |cluster, until| Suspension { namespace: "shop".into(), cluster, until: at(until), reason: None };
        let suspensions = [suspension(false, 100), suspension(true, 200)];
        let ended = |after: &[Suspension], now| ended_suspensions(&suspensions, after, at(now));
        assert_eq!(ended(&suspensions[1..], 99), Vec::<String>::new(), "it was removed before its end time");
        assert_eq!(ended(&suspensions[1..], 100), ["Namespace shop (suspension ended)"]);
        assert_eq!(ended(&[suspension(false, 300)], 200), ["Namespace shop (cluster suspension ended)"]);
    }

    #[test]
    fn batches_are_bounded_and_marked_when_they_are_enforced() {
        let mut history = History::default();
        let limit = BATCHES as u64;
        for number in 1..=limit + 10 {
            history.received(&batch(number, Vec::new()), number == 1);
        }
        history.enforced(Generation(limit));
        let enforced = history.batches().filter(|batch| batch.enforced.is_some()).count();
        assert_eq!((history.batches().count(), enforced), (BATCHES, BATCHES - 10));
        let latest = history.batches().next().expect("no batch");
        assert_eq!((latest.change.generation, latest.enforced), (Generation(limit + 10), None));
    }
}
