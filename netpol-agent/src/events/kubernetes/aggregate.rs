//! Which Events are written, and when: many packets become one Event and its series. Pure; the time is given.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::{Duration, Instant, SystemTime};

use netpol_common::{Direction, Reason};
use netpol_policy::model::PodKey;

use super::limit::Bucket;
use super::policies::{Misunderstood, Policies};
use super::sink::{Denied, Dropped};
use super::topic::Topic;

/// A first Event waits so long for more of its kind.
const SETTLE: Duration = Duration::from_millis(300);
/// After its first Event a topic is silent for so long, then for three times as long, …
const SILENCE: Duration = Duration::from_secs(15);
/// … and at most for this long.
const LONGEST: Duration = Duration::from_mins(10);
/// A topic that nothing was heard of for this long is forgotten. The next packet begins another Event.
const QUIET: Duration = Duration::from_mins(15);
/// Events of one pod that name their peer and port. Everything else at that pod is counted together.
pub(super) const TOPICS: usize = 10;
/// Pods that are remembered.
const PODS: usize = 512;
/// Of a pod: as many at once …
const POD_BURST: u32 = 25;
/// … and one more after each of these: what client-go's `EventSourceObjectSpamFilter` allows a component for an object.
const POD_REFILL: Duration = Duration::from_mins(5);
/// Of a pod's tokens so many are kept for what was not told at all yet.
const SPARED: u32 = 5;
/// Of this node: as many at once, and one more a second.
const NODE_BURST: u32 = 25;
const NODE_REFILL: Duration = Duration::from_secs(1);
/// What is quiet is looked for this often.
const SWEEP: Duration = Duration::from_mins(1);

/// A pod as distinct from a later one of the same name.
type Subject = (PodKey, i64);

/// Something to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Publication {
    /// Packets were denied at a pod.
    Denied(Series),
    /// A policy was not understood.
    Misunderstood(Misunderstood),
}

/// An Event about a pod, and how often it happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Series {
    /// The pod.
    pub pod: PodKey,
    /// When it was created, in seconds since 1970; 0: not known.
    pub created: i64,
    /// What about it.
    pub topic: Topic,
    /// It stands for all that the pod has no further Events for.
    pub merged: bool,
    /// The first time.
    pub first: SystemTime,
    /// The last time.
    pub last: SystemTime,
    /// Packets.
    pub count: u64,
    /// Distinguishes this agent's Events of the pod.
    pub id: u64,
    /// It was written before.
    pub update: bool,
}

/// Gathers; see the module.
#[derive(Debug)]
pub struct Aggregator {
    pods: HashMap<Subject, Pod>,
    policies: Policies,
    node: Bucket,
    /// Topics so far.
    begun: u64,
    /// Nothing is due before.
    soonest: Option<Instant>,
    swept: Instant,
}

#[derive(Debug)]
struct Pod {
    lines: Vec<Line>,
    bucket: Bucket,
}

#[derive(Debug)]
struct Line {
    topic: Topic,
    merged: bool,
    id: u64,
    first: SystemTime,
    last: SystemTime,
    count: u64,
    told: u64,
    update: bool,
    /// Not to be told before.
    not_before: Instant,
    silence: Duration,
    heard: Instant,
    in_flight: bool,
}

impl Line {
    fn is_due(&self, now: Instant) -> bool {
        self.has_news() && self.not_before <= now
    }

    fn has_news(&self) -> bool {
        self.count > self.told && !self.in_flight
    }

    /// Tokens that it must leave to others.
    fn spares(&self) -> u32 {
        if self.update { SPARED } else { 0 }
    }

    fn is_about(&self, topic: &Topic) -> bool {
        !self.merged && self.topic == *topic
    }

    fn is_rest_of(&self, direction: Direction, reason: Reason) -> bool {
        self.merged && self.topic.direction == direction && self.topic.reason == reason
    }
}

impl Aggregator {
    /// Knows nothing yet.
    pub fn new(now: Instant) -> Self {
        let node = Bucket::new(NODE_BURST, NODE_REFILL, now);
        Self { pods: HashMap::new(), policies: Policies::default(), node, begun: 0, soonest: None, swept: now }
    }

    /// Counts packets.
    ///
    /// # Errors
    /// Where too many pods are remembered already: they are not told of.
    pub fn denied(&mut self, denied: Denied, now: Instant) -> Result<(), Dropped> {
        let subject = (denied.pod, denied.created);
        if !self.pods.contains_key(&subject) && self.pods.len() >= PODS {
            self.pods.retain(|_, pod| !pod.lines.is_empty());
            if self.pods.len() >= PODS {
                return Err(Dropped::Memory);
            }
        }
        let new = || Pod { lines: Vec::new(), bucket: Bucket::new(POD_BURST, POD_REFILL, now) };
        let pod = self.pods.entry(subject).or_insert_with(new);
        let (direction, reason) = (denied.topic.direction, denied.topic.reason);
        let known = pod.lines.iter().position(|line| line.is_about(&denied.topic));
        let full = pod.lines.iter().filter(|line| !line.merged).count() >= TOPICS;
        let known = known
            .or_else(|| full.then(|| pod.lines.iter().position(|line| line.is_rest_of(direction, reason))).flatten());
        let line = if let Some(known) = known {
            &mut pod.lines[known]
        } else {
            self.begun += 1;
            let id = id(self.begun, &denied.topic, denied.at);
            pod.lines.push(Line {
                topic: denied.topic,
                merged: full,
                id,
                first: denied.at,
                last: denied.at,
                count: 0,
                told: 0,
                update: false,
                not_before: now + SETTLE,
                silence: SILENCE,
                heard: now,
                in_flight: false,
            });
            let last = pod.lines.len() - 1;
            &mut pod.lines[last]
        };
        line.count = line.count.saturating_add(denied.packets);
        line.last = line.last.max(denied.at);
        line.heard = now;
        if line.has_news() {
            let due = line.not_before;
            self.soonest = Some(self.soonest.map_or(due, |soonest| soonest.min(due)));
        }
        Ok(())
    }

    /// Takes all there is to say about policies.
    pub fn policies(&mut self, all: Vec<Misunderstood>, now: Instant) {
        self.policies.are(all, now);
    }

    /// Takes one that is to be written now: what is new before what is known, and what waits longest first.
    pub fn take(&mut self, now: Instant) -> Option<Publication> {
        if self.wake().is_none_or(|wake| wake > now) {
            return None;
        }
        if !self.node.take(0, now) {
            return None;
        }
        if let Some(each) = self.policies.take(now) {
            return Some(Publication::Misunderstood(each));
        }
        let mut best: Option<(bool, Instant, Subject, usize)> = None;
        for (subject, pod) in &mut self.pods {
            for (index, line) in pod.lines.iter().enumerate().filter(|(_, line)| line.is_due(now)) {
                let rank = (line.update, line.not_before);
                if best.as_ref().is_none_or(|(update, due, ..)| rank < (*update, *due))
                    && pod.bucket.ready(line.spares(), now) <= now
                {
                    best = Some((line.update, line.not_before, subject.clone(), index));
                }
            }
        }
        let taken = best.and_then(|(_, _, subject, index)| {
            let pod = self.pods.get_mut(&subject)?;
            let line = &mut pod.lines[index];
            pod.bucket.take(line.spares(), now);
            line.in_flight = true;
            Some(Publication::Denied(Series {
                pod: subject.0,
                created: subject.1,
                topic: line.topic.clone(),
                merged: line.merged,
                first: line.first,
                last: line.last,
                count: line.count,
                id: line.id,
                update: line.update,
            }))
        });
        if taken.is_none() {
            self.node.give_back();
            self.look_ahead(now);
        }
        taken
    }

    /// When [`Self::take`] may have something.
    pub fn wake(&self) -> Option<Instant> {
        [self.soonest, self.policies.soonest()].into_iter().flatten().min()
    }

    /// When the node's next token is there.
    pub fn allowed(&mut self, now: Instant) -> Instant {
        self.node.ready(0, now)
    }

    /// It is written.
    pub fn published(&mut self, publication: &Publication, now: Instant) {
        match publication {
            Publication::Denied(series) => {
                let Some(line) = self.line(series) else { return };
                line.in_flight = false;
                line.told = series.count;
                line.update = true;
                line.not_before = now + line.silence;
                line.silence = (line.silence * 3).min(LONGEST);
                self.look_ahead(now);
            }
            Publication::Misunderstood(each) => self.policies.said(each, now),
        }
    }

    /// It could not be written, and is due again.
    pub fn failed(&mut self, publication: &Publication, now: Instant) {
        self.node.give_back();
        match publication {
            Publication::Denied(series) => {
                if let Some(line) = self.line(series) {
                    line.in_flight = false;
                }
                if let Some(pod) = self.pods.get_mut(&(series.pod.clone(), series.created)) {
                    pod.bucket.give_back();
                }
                self.look_ahead(now);
            }
            Publication::Misunderstood(each) => self.policies.failed(each, now),
        }
    }

    /// It will never be written: its object is gone, or the API server does not take it. What it stood for is forgotten.
    pub fn lost(&mut self, publication: &Publication, why: Dropped, now: Instant) {
        match publication {
            Publication::Denied(series) => {
                if let Some(pod) = self.pods.get_mut(&(series.pod.clone(), series.created)) {
                    pod.lines.retain(|line| why != Dropped::Gone && line.id != series.id);
                }
            }
            Publication::Misunderstood(each) => self.policies.said(each, now),
        }
    }

    /// What was not told yet is due now, as this is the end.
    pub fn hurry(&mut self, now: Instant) {
        for line in self.pods.values_mut().flat_map(|pod| &mut pod.lines) {
            line.not_before = line.not_before.min(now);
        }
        self.look_ahead(now);
    }

    fn line(&mut self, series: &Series) -> Option<&mut Line> {
        let pod = self.pods.get_mut(&(series.pod.clone(), series.created))?;
        pod.lines.iter_mut().find(|line| line.id == series.id)
    }

    /// Finds out when something is due next, and forgets what is quiet.
    fn look_ahead(&mut self, now: Instant) {
        if now.saturating_duration_since(self.swept) >= SWEEP {
            self.swept = now;
            for pod in self.pods.values_mut() {
                let quiet = |line: &Line| now.saturating_duration_since(line.heard) >= QUIET;
                pod.lines.retain(|line| line.in_flight || line.has_news() || !quiet(line));
            }
            self.pods.retain(|_, pod| !pod.lines.is_empty() || !pod.bucket.is_full(now));
        }
        self.soonest = None;
        for pod in self.pods.values_mut() {
            for line in pod.lines.iter().filter(|line| line.has_news()) {
                let due = line.not_before.max(pod.bucket.ready(line.spares(), now));
                self.soonest = Some(self.soonest.map_or(due, |soonest| soonest.min(due)));
            }
        }
        // Where nothing is to be said, what is quiet is still to be forgotten.
        if !self.pods.is_empty() {
            let sweep = self.swept + SWEEP;
            self.soonest = Some(self.soonest.map_or(sweep, |soonest| soonest.min(sweep)));
        }
    }
}

/// The names of Events end with it: also an agent that starts anew must not give one away twice.
fn id(number: u64, topic: &Topic, at: SystemTime) -> u64 {
    let mut hasher = DefaultHasher::new();
    (number, topic, at).hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests;
