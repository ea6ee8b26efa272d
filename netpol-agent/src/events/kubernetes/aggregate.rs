//! Decides which Kubernetes Events are written, and when. Many packets become one Event (a [`Series`]). Its count and
//! the time of its last packet are updated later. Does no I/O; the time is an argument.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::{Duration, Instant, SystemTime};

use netpol_policy::model::PodKey;

use super::limit::Bucket;
use super::notice::{Notice, NoticeSchedule};
use super::sink::{Denied, DropReason};
use super::topic::Topic;

/// The Event of a topic (what the packets have in common, see [`Topic`]) is first written after this delay, to include
/// further packets.
const COALESCE: Duration = Duration::from_millis(300);
/// Minimum time from the first write of a topic's Event to its first update. Each further interval is three times as
/// long as the previous one, up to [`MAX_INTERVAL`].
const FIRST_INTERVAL: Duration = Duration::from_secs(15);
/// The intervals of a topic do not grow beyond this time.
const MAX_INTERVAL: Duration = Duration::from_mins(10);
/// A topic without packets for this long is removed. The next packet starts a new Event.
const EXPIRY: Duration = Duration::from_mins(15);
/// Maximum number of a pod's Events that name a peer and a port. The limit applies separately to Events about denials
/// and to Events about would-be denials (by policies in shadow mode). Further traffic is counted in one merged
/// Event for each direction and reason.
pub(super) const MAX_TOPICS: usize = 10;
/// Maximum number of pods in memory.
const MAX_PODS: usize = 512;
/// Maximum number of tokens of a pod. Each write about a pod needs a token of the pod and a token of the node. This
/// number and [`POD_REFILL`] are the limits of client-go's `EventSourceObjectSpamFilter` for one component and one
/// object.
const POD_BURST: u32 = 25;
/// Time after which a pod gets one more token.
const POD_REFILL: Duration = Duration::from_mins(5);
/// Number of a pod's tokens that only new Events may use, not updates.
const RESERVED: u32 = 5;
/// Number of a pod's tokens that only denials may use. So would-be denials do not delay Events about denials.
const RESERVED_FOR_DENIALS: u32 = 15;
/// Maximum number of tokens of the node, for all writes of its agent.
const NODE_BURST: u32 = 25;
/// Time after which the node gets one more token.
const NODE_REFILL: Duration = Duration::from_secs(1);
/// Number of the node's tokens that would-be denials may not use.
const NODE_RESERVED_FOR_DENIALS: u32 = 15;
/// Interval at which expired topics are removed.
const SWEEP_INTERVAL: Duration = Duration::from_mins(1);

/// A pod and its creation time, which distinguishes it from a later pod with the same name.
type Subject = (PodKey, i64);

/// The order of series that are due: would-be denials last, updates after new Events, then by time.
type Rank = (bool, bool, Instant);

/// Something to write to the API server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Publication {
    /// Packets were denied at a pod, or would be denied by policies in shadow mode.
    Denied(Series),
    /// A notice about a policy or a namespace.
    Notice(Notice),
}

/// The content of one Event: the topic of a pod's packets, and their number and times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Series {
    /// The pod.
    pub pod: PodKey,
    /// The pod's creation time, in seconds since 1970; 0 if unknown.
    pub created: i64,
    /// What the packets have in common.
    pub topic: Topic,
    /// Whether this is a merged Event: it counts all traffic of its direction and reason that has no Event of its own.
    pub merged: bool,
    /// The time of the first packet.
    pub first: SystemTime,
    /// The time of the last packet.
    pub last: SystemTime,
    /// The number of packets.
    pub count: u64,
    /// Identifies the Event among this agent's Events of the pod.
    pub id: u64,
    /// Whether the Event was already written, so that only its count and the time of the last packet change.
    pub update: bool,
}

/// Aggregates packets into Events.
#[derive(Debug)]
pub struct Aggregator {
    pods: HashMap<Subject, Pod>,
    notices: NoticeSchedule,
    /// The tokens of the node.
    node: Bucket,
    /// Number of topics so far.
    topics_started: u64,
    /// The earliest time at which a series may be due, or expired topics must be removed.
    next_due: Option<Instant>,
    /// When expired topics were last removed.
    swept: Instant,
}

/// The series of one pod, and the tokens for writes about the pod.
#[derive(Debug)]
struct Pod {
    series: Vec<SeriesState>,
    bucket: Bucket,
}

/// A [`Series`], and when it is written next.
#[derive(Debug)]
struct SeriesState {
    topic: Topic,
    merged: bool,
    id: u64,
    first: SystemTime,
    last: SystemTime,
    count: u64,
    /// The number of packets when the Event was last written.
    reported: u64,
    /// Whether the Event was written, so that the next write is an update.
    update: bool,
    /// The earliest time of the next write.
    not_before: Instant,
    /// Minimum time from the next write to the one after it.
    interval: Duration,
    /// When packets were last counted. [`EXPIRY`] starts at this time. The field `last` is not used for this, because
    /// it is a time of the wall clock, for the Event.
    last_packet: Instant,
    /// Whether the series is being written.
    in_flight: bool,
}

impl SeriesState {
    fn is_due(&self, now: Instant) -> bool {
        self.has_unreported() && self.not_before <= now
    }

    /// Returns whether there are packets to report. Returns false while the series is being written.
    fn has_unreported(&self) -> bool {
        self.count > self.reported && !self.in_flight
    }

    /// Returns the number of the pod's tokens that this series must not use.
    fn reserve(&self) -> u32 {
        let for_denials = if self.topic.shadow { RESERVED_FOR_DENIALS } else { 0 };
        let for_new = if self.update { RESERVED } else { 0 };
        for_denials + for_new
    }

    fn has_topic(&self, topic: &Topic) -> bool {
        !self.merged && self.topic == *topic
    }

    fn is_merged_for(&self, topic: &Topic) -> bool {
        let merge_key = |topic: &Topic| (topic.direction, topic.reason, topic.shadow);
        self.merged && merge_key(&self.topic) == merge_key(topic)
    }
}

impl Aggregator {
    /// Creates an empty aggregator.
    pub fn new(now: Instant) -> Self {
        let node = Bucket::new(NODE_BURST, NODE_REFILL, now);
        Self {
            pods: HashMap::new(),
            notices: NoticeSchedule::default(),
            node,
            topics_started: 0,
            next_due: None,
            swept: now,
        }
    }

    /// Counts denied packets, or packets that policies in shadow mode would deny.
    ///
    /// # Errors
    /// If too many pods are in memory. Then the packets are not reported.
    pub fn denied(&mut self, denied: Denied, now: Instant) -> Result<(), DropReason> {
        let subject = (denied.pod, denied.created);
        // A would-be denial may add a pod only while fewer than `MAX_PODS / 2` pods are in memory.
        let max_pods = if denied.topic.shadow { MAX_PODS / 2 } else { MAX_PODS };
        if !self.pods.contains_key(&subject) && self.pods.len() >= max_pods {
            self.pods.retain(|_, pod| !pod.series.is_empty());
            if self.pods.len() >= max_pods {
                return Err(DropReason::TooManyPods);
            }
        }
        let new = || Pod { series: Vec::new(), bucket: Bucket::new(POD_BURST, POD_REFILL, now) };
        let pod = self.pods.entry(subject).or_insert_with(new);
        let index = pod.series.iter().position(|state| state.has_topic(&denied.topic));
        let names_peer = |state: &&SeriesState| !state.merged && state.topic.shadow == denied.topic.shadow;
        let full = pod.series.iter().filter(names_peer).count() >= MAX_TOPICS;
        let index = index
            .or_else(|| full.then(|| pod.series.iter().position(|state| state.is_merged_for(&denied.topic))).flatten());
        let state = if let Some(index) = index {
            &mut pod.series[index]
        } else {
            self.topics_started += 1;
            let id = id(self.topics_started, &denied.topic, denied.at);
            pod.series.push(SeriesState {
                topic: denied.topic,
                merged: full,
                id,
                first: denied.at,
                last: denied.at,
                count: 0,
                reported: 0,
                update: false,
                not_before: now + COALESCE,
                interval: FIRST_INTERVAL,
                last_packet: now,
                in_flight: false,
            });
            let last = pod.series.len() - 1;
            &mut pod.series[last]
        };
        state.count = state.count.saturating_add(denied.packets);
        state.last = state.last.max(denied.at);
        state.last_packet = now;
        if state.has_unreported() {
            let due = state.not_before;
            self.next_due = Some(self.next_due.map_or(due, |next_due| next_due.min(due)));
        }
        Ok(())
    }

    /// Replaces all notices.
    pub fn set_notices(&mut self, all: Vec<Notice>, now: Instant) {
        self.notices.set(all, now);
    }

    /// Returns a publication that is due, and marks it as being written. Notices come first, then denials, then
    /// would-be denials. Within denials and within would-be denials, new Events come before updates. Of several new
    /// Events or updates, the one that became due first comes first.
    pub fn take_due(&mut self, now: Instant) -> Option<Publication> {
        if self.next_due().is_none_or(|due| due > now) {
            return None;
        }
        if self.node.ready_at(0, now) > now {
            return None;
        }
        if let Some(notice) = self.notices.take_due(now) {
            self.node.take_token(0, now);
            return Some(Publication::Notice(notice));
        }
        let has_shadow_token = self.node.ready_at(NODE_RESERVED_FOR_DENIALS, now) <= now;
        let mut best: Option<(Rank, Subject, usize)> = None;
        for (subject, pod) in &mut self.pods {
            for (index, state) in pod.series.iter().enumerate().filter(|(_, state)| state.is_due(now)) {
                if state.topic.shadow && !has_shadow_token {
                    continue;
                }
                let rank = (state.topic.shadow, state.update, state.not_before);
                if best.as_ref().is_none_or(|(best, ..)| rank < *best)
                    && pod.bucket.ready_at(state.reserve(), now) <= now
                {
                    best = Some((rank, subject.clone(), index));
                }
            }
        }
        let taken = best.and_then(|(_, subject, index)| {
            let pod = self.pods.get_mut(&subject)?;
            let state = &mut pod.series[index];
            pod.bucket.take_token(state.reserve(), now);
            self.node.take_token(0, now);
            state.in_flight = true;
            Some(Publication::Denied(Series {
                pod: subject.0,
                created: subject.1,
                topic: state.topic.clone(),
                merged: state.merged,
                first: state.first,
                last: state.last,
                count: state.count,
                id: state.id,
                update: state.update,
            }))
        });
        if taken.is_none() {
            self.update_schedule(now);
        }
        taken
    }

    /// Returns when [`Self::take_due`] may return a publication.
    pub fn next_due(&self) -> Option<Instant> {
        [self.next_due, self.notices.next_due()].into_iter().flatten().min()
    }

    /// Returns when the node's next token is available.
    pub fn next_token_at(&mut self, now: Instant) -> Instant {
        self.node.ready_at(0, now)
    }

    /// Records that a publication was written.
    pub fn published(&mut self, publication: &Publication, now: Instant) {
        match publication {
            Publication::Denied(series) => {
                let Some(state) = self.state(series) else { return };
                state.in_flight = false;
                state.reported = series.count;
                state.update = true;
                state.not_before = now + state.interval;
                state.interval = (state.interval * 3).min(MAX_INTERVAL);
                self.update_schedule(now);
            }
            Publication::Notice(notice) => self.notices.reported(notice, now),
        }
    }

    /// Records that a publication could not be written; it is due again.
    pub fn failed(&mut self, publication: &Publication, now: Instant) {
        self.node.refund();
        match publication {
            Publication::Denied(series) => {
                if let Some(state) = self.state(series) {
                    state.in_flight = false;
                }
                if let Some(pod) = self.pods.get_mut(&(series.pod.clone(), series.created)) {
                    pod.bucket.refund();
                }
                self.update_schedule(now);
            }
            Publication::Notice(notice) => self.notices.failed(notice, now),
        }
    }

    /// Records that a publication is not retried, because its object was deleted or the API server rejects it. If the
    /// pod was deleted, all its series are removed; otherwise only this series. A notice is due again after the same
    /// time as a notice that was written.
    pub fn discarded(&mut self, publication: &Publication, reason: DropReason, now: Instant) {
        match publication {
            Publication::Denied(series) => {
                if let Some(pod) = self.pods.get_mut(&(series.pod.clone(), series.created)) {
                    pod.series.retain(|state| reason != DropReason::Deleted && state.id != series.id);
                }
            }
            Publication::Notice(notice) => self.notices.reported(notice, now),
        }
    }

    /// Makes all series with unreported packets due now. Called when the agent exits.
    pub fn flush(&mut self, now: Instant) {
        for state in self.pods.values_mut().flat_map(|pod| &mut pod.series) {
            state.not_before = state.not_before.min(now);
        }
        self.update_schedule(now);
    }

    fn state(&mut self, series: &Series) -> Option<&mut SeriesState> {
        let pod = self.pods.get_mut(&(series.pod.clone(), series.created))?;
        pod.series.iter_mut().find(|state| state.id == series.id)
    }

    /// Computes when a publication is due next, and removes expired topics.
    fn update_schedule(&mut self, now: Instant) {
        if now.saturating_duration_since(self.swept) >= SWEEP_INTERVAL {
            self.swept = now;
            for pod in self.pods.values_mut() {
                let expired = |state: &SeriesState| now.saturating_duration_since(state.last_packet) >= EXPIRY;
                pod.series.retain(|state| state.in_flight || state.has_unreported() || !expired(state));
            }
            self.pods.retain(|_, pod| !pod.series.is_empty() || !pod.bucket.is_full(now));
        }
        self.next_due = None;
        let shadow_token_at = self.node.ready_at(NODE_RESERVED_FOR_DENIALS, now);
        for pod in self.pods.values_mut() {
            for state in pod.series.iter().filter(|state| state.has_unreported()) {
                let token_at = if state.topic.shadow { shadow_token_at } else { now };
                let due = state.not_before.max(pod.bucket.ready_at(state.reserve(), now)).max(token_at);
                self.next_due = Some(self.next_due.map_or(due, |next_due| next_due.min(due)));
            }
        }
        // Expired topics must be removed even if nothing is due.
        if !self.pods.is_empty() {
            let sweep = self.swept + SWEEP_INTERVAL;
            self.next_due = Some(self.next_due.map_or(sweep, |next_due| next_due.min(sweep)));
        }
    }
}

/// Returns an ID for the Event's name. Because the ID depends on the time, it differs from all IDs before a restart of
/// the agent.
fn id(number: u64, topic: &Topic, at: SystemTime) -> u64 {
    let mut hasher = DefaultHasher::new();
    (number, topic, at).hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests;
