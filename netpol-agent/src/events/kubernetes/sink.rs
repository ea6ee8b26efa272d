//! Where the loop puts what is to be told; it never waits here.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use netpol_common::{DenyEvent, Direction, Reason};
use netpol_policy::model::{PodKey, PolicyKey, Problem};
use netpol_policy::world::World;
use tokio::sync::mpsc;

use super::policies::Misunderstood;
use super::speaker;
use super::topic::{self, Topic};
use crate::events::Denial;

/// What waits for the thread, at most.
pub(super) const QUEUE: usize = 1024;

/// Packets that were denied at a pod.
#[derive(Clone, Debug)]
pub struct Denied {
    /// The pod.
    pub pod: PodKey,
    /// When it was created, seconds since 1970: another pod may have its name one day.
    pub created: i64,
    /// What they have in common.
    pub topic: Topic,
    /// How many.
    pub packets: u64,
    /// When the last of them came.
    pub at: SystemTime,
}

/// What the thread is told.
#[derive(Clone, Debug)]
pub(super) enum Message {
    Denied(Box<Denied>),
    /// All that this agent has to say about policies now.
    Policies(Vec<Misunderstood>),
}

/// Why something is never told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dropped {
    /// More came at one time than is kept waiting.
    Queue,
    /// More pods than are remembered.
    Memory,
    /// The pod, the policy or its namespace is gone.
    Gone,
    /// The API server calls the Event invalid.
    Invalid,
}

impl Dropped {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Queue, Self::Memory, Self::Gone, Self::Invalid];

    /// The label in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Queue => "queue",
            Self::Memory => "memory",
            Self::Gone => "gone",
            Self::Invalid => "invalid",
        }
    }
}

/// What became of it all.
#[derive(Debug, Default)]
pub struct Numbers {
    published: AtomicU64,
    dropped: [AtomicU64; Dropped::ALL.len()],
}

impl Numbers {
    /// Events written, first ones and updates.
    pub fn published(&self) -> u64 {
        self.published.load(Ordering::Relaxed)
    }

    /// What was not told.
    pub fn dropped(&self, why: Dropped) -> u64 {
        self.dropped[why as usize].load(Ordering::Relaxed)
    }

    pub(super) fn publish(&self) {
        self.published.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn lose(&self, why: Dropped, events: u64) {
        self.dropped[why as usize].fetch_add(events, Ordering::Relaxed);
    }
}

/// Policies are looked through at most this often.
const REVIEW: Duration = Duration::from_secs(1);
/// Who speaks of a policy is asked anew after this long: its pods may have moved.
const RECHOOSE: Duration = Duration::from_mins(10);

/// The loop's end.
#[derive(Debug)]
pub struct Sink {
    sender: mpsc::Sender<Message>,
    numbers: Arc<Numbers>,
    node: Arc<str>,
    reviewed: Option<Instant>,
    chosen: Option<Instant>,
    /// What was not understood when it was last told to the thread.
    problems: Vec<(PolicyKey, Vec<Problem>)>,
}

impl Sink {
    pub(super) fn new(sender: mpsc::Sender<Message>, numbers: Arc<Numbers>, node: &str) -> Self {
        Self { sender, numbers, node: node.into(), reviewed: None, chosen: None, problems: Vec::new() }
    }

    /// What became of it all.
    pub fn numbers(&self) -> &Numbers {
        &self.numbers
    }

    /// Tells of a denied packet at `pod`.
    pub(in crate::events) fn denied(&self, event: &DenyEvent, denial: &Denial, pod: &PodKey, world: &World) {
        let Some(reason) = Reason::from_code(event.reason).filter(|reason| topic::reason(*reason).is_some()) else {
            return;
        };
        let Some(direction) = Direction::from_code(event.direction) else { return };
        // A place first: in a flood nothing is copied only to be thrown away.
        let Ok(place) = self.sender.try_reserve() else {
            self.numbers.lose(Dropped::Queue, 1);
            return;
        };
        let mut peer = match direction {
            Direction::Ingress => denial.from.clone(),
            Direction::Egress => denial.to.clone(),
        };
        peer.port = None;
        place.send(Message::Denied(Box::new(Denied {
            created: world.pods.get(pod).map_or(0, |pod| pod.created),
            pod: pod.clone(),
            topic: Topic {
                direction,
                reason,
                peer,
                protocol: denial.protocol.clone(),
                port: denial.port,
                policies: denial.policies.clone(),
            },
            packets: 1 + u64::from(event.suppressed),
            at: SystemTime::now(),
        })));
    }

    /// Looks for what policies say that was not understood. May be called at any time; costs nothing most times.
    pub(in crate::events) fn review(&mut self, world: &World, now: Instant) {
        let since = |time: Option<Instant>| time.map_or(Duration::MAX, |time| now.saturating_duration_since(time));
        if since(self.reviewed) < REVIEW {
            return;
        }
        self.reviewed = Some(now);
        let problems = || speaker::misunderstood(world).map(|policy| (&policy.key, policy.problems.as_slice()));
        let told = self.problems.iter().map(|(key, problems)| (key, problems.as_slice()));
        if problems().eq(told) && (self.problems.is_empty() || since(self.chosen) < RECHOOSE) {
            return;
        }
        // Where the queue is full, the next look finds the same difference.
        let Ok(place) = self.sender.try_reserve() else { return };
        place.send(Message::Policies(speaker::to_be_said(world, &self.node)));
        self.chosen = Some(now);
        self.problems = problems().map(|(key, problems)| (key.clone(), problems.to_vec())).collect();
    }
}

#[cfg(test)]
mod tests {
    use super::super::speaker::tests::world;
    use super::*;

    #[test]
    fn who_speaks_of_a_policy_is_chosen_anew_after_ten_minutes() {
        let (sender, mut messages) = mpsc::channel(QUEUE);
        let mut sink = Sink::new(sender, Arc::default(), "node-0");
        let begun = Instant::now();
        let mut said = |sink: &mut Sink, world: &World, after: Duration| {
            sink.review(world, begun + after);
            match messages.try_recv() {
                Ok(Message::Policies(all)) => Some(all.len()),
                Ok(other) => panic!("{other:?}"),
                Err(_) => None,
            }
        };
        // The one pod is on this node, which then has none, as it moved.
        let (here, moved) = (world(1, 1), world(4, 4));
        assert_eq!(said(&mut sink, &here, Duration::ZERO), Some(1));
        let almost = RECHOOSE.saturating_sub(Duration::from_millis(1));
        assert_eq!(said(&mut sink, &here, almost), None, "nothing is new");
        assert_eq!(said(&mut sink, &moved, almost + REVIEW), Some(0), "others speak now");
        assert_eq!(said(&mut sink, &here, almost + REVIEW * 2), None, "it is not yet time again");
        assert_eq!(said(&mut sink, &here, almost + REVIEW + RECHOOSE), Some(1));
    }
}
