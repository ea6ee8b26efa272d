//! Accepts reports from the main loop, and queues them for the thread that writes Kubernetes Events. Never blocks the
//! main loop. A report is about denied packets, or is a notice (a policy's diagnostic, or a suspension of enforcement).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use netpol_api::FlowRecord;
use netpol_common::{Direction, FlowEvent, Reason};
use netpol_policy::cluster_state::ClusterState;
use netpol_policy::model::{Diagnostic, PodKey, PolicyKey, Suspension};
use tokio::sync::mpsc;

use super::notice::Notice;
use super::reporters;
use super::topic::{self, Topic};

/// Maximum number of messages that wait for the thread.
pub(super) const MAX_QUEUED_MESSAGES: usize = 1024;

/// Packets that were denied at a pod, or that policies in shadow mode would deny.
#[derive(Clone, Debug)]
pub struct Denied {
    /// The pod.
    pub pod: PodKey,
    /// The pod's creation time, in seconds since 1970. Distinguishes a pod from a later one with the same name.
    pub created: i64,
    /// What the packets have in common.
    pub topic: Topic,
    /// The number of packets.
    pub packets: u64,
    /// The time of the last packet.
    pub at: SystemTime,
}

/// A message to the thread that writes Events.
#[derive(Clone, Debug)]
pub(super) enum Message {
    Denied(Box<Denied>),
    /// All notices that this agent currently reports.
    Notices(Vec<Notice>),
}

/// Why packets or a notice are never reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DropReason {
    /// The queue was full.
    QueueFull,
    /// The thread stores the Events of too many pods.
    TooManyPods,
    /// The pod, the policy or its namespace was deleted.
    Deleted,
    /// The API server rejects the Event as invalid.
    Invalid,
}

impl DropReason {
    /// All reasons.
    pub const ALL: [Self; 4] = [Self::QueueFull, Self::TooManyPods, Self::Deleted, Self::Invalid];

    /// Returns the metric label.
    pub const fn name(self) -> &'static str {
        match self {
            Self::QueueFull => "queue-full",
            Self::TooManyPods => "too-many-pods",
            Self::Deleted => "deleted",
            Self::Invalid => "invalid",
        }
    }
}

/// Counts written and dropped Events.
#[derive(Debug, Default)]
pub struct EventCounters {
    published: AtomicU64,
    dropped: [AtomicU64; DropReason::ALL.len()],
}

impl EventCounters {
    /// Returns the number of Events written, both new ones and updates.
    pub fn published(&self) -> u64 {
        self.published.load(Ordering::Relaxed)
    }

    /// Returns the number of Events dropped for a reason.
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.dropped[reason as usize].load(Ordering::Relaxed)
    }

    pub(super) fn count_published(&self) {
        self.published.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_dropped(&self, reason: DropReason, events: u64) {
        self.dropped[reason as usize].fetch_add(events, Ordering::Relaxed);
    }
}

/// Minimum time between two checks for changed notices.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Time for which the end of a suspension is reported.
const ENDED_TIME: Duration = Duration::from_mins(10);
/// The agents that report about a policy are selected again after this time, because its pods may be on other nodes by
/// then.
const RESELECT_INTERVAL: Duration = Duration::from_mins(10);

/// The sending side of the queue, for the main loop.
#[derive(Debug)]
pub struct Sink {
    sender: mpsc::Sender<Message>,
    counters: Arc<EventCounters>,
    node: Arc<str>,
    /// When notices were last compared with those that were sent.
    checked_at: Option<Instant>,
    /// When notices were last sent. Each time, the agents that report about policies are selected again.
    selected_at: Option<Instant>,
    /// The policies that had errors when notices were last sent to the thread, and their diagnostics at that time.
    diagnostics: Vec<(PolicyKey, Vec<Diagnostic>)>,
    suspensions: Suspensions,
}

/// All suspensions of enforcement when notices were last sent to the thread.
#[derive(Debug, Default)]
struct Suspensions {
    active: Vec<Suspension>,
    pending: Vec<Suspension>,
    /// Suspensions that have ended, and when. Each is kept for [`ENDED_TIME`].
    ended: Vec<(Suspension, Instant)>,
}

impl Suspensions {
    /// Updates the suspensions. Returns whether they have changed.
    fn update(&mut self, cluster_state: &ClusterState, now: Instant) -> bool {
        let (active, pending) = (cluster_state.suspensions(), cluster_state.pending_suspensions());
        let ended_before = self.ended.len();
        self.ended.retain(|(_, at)| now.saturating_duration_since(*at) < ENDED_TIME);
        if active == self.active && pending == self.pending {
            return self.ended.len() != ended_before;
        }
        let is_active = |before: &Suspension| active.iter().any(|still| still.is_from_same_annotation(before));
        let ended = self.active.iter().filter(|before| !is_active(before)).cloned();
        self.ended.extend(ended.map(|suspension| (suspension, now)));
        (self.active, self.pending) = (active, pending);
        true
    }
}

impl Sink {
    pub(super) fn new(sender: mpsc::Sender<Message>, counters: Arc<EventCounters>, node: &str) -> Self {
        Self {
            sender,
            counters,
            node: node.into(),
            checked_at: None,
            selected_at: None,
            diagnostics: Vec::new(),
            suspensions: Suspensions::default(),
        }
    }

    /// Returns the counters.
    pub fn counters(&self) -> &EventCounters {
        &self.counters
    }

    /// Reports a packet that was denied at `pod`, or that would be denied if policies in shadow mode were enforced. In
    /// the second case, `shadow` has the policies that are not enforced; otherwise it is `None`.
    pub(in crate::events) fn denied(
        &self,
        event: &FlowEvent,
        record: &FlowRecord,
        pod: &PodKey,
        shadow: Option<&[PolicyKey]>,
        cluster_state: &ClusterState,
    ) {
        let Some(reason) = Reason::from_code(event.reason).filter(|reason| topic::has_event(*reason)) else {
            return;
        };
        let Some(direction) = Direction::from_code(event.direction) else { return };
        // Reserves a place in the queue first, so that nothing is copied if the queue is full.
        let Ok(permit) = self.sender.try_reserve() else {
            self.counters.count_dropped(DropReason::QueueFull, 1);
            return;
        };
        let mut peer = match direction {
            Direction::Ingress => Box::new(record.from.clone()),
            Direction::Egress => Box::new(record.to.clone()),
        };
        peer.port = None;
        permit.send(Message::Denied(Box::new(Denied {
            created: cluster_state.pods.get(pod).map_or(0, |pod| pod.created),
            pod: pod.clone(),
            topic: Topic {
                direction,
                reason,
                shadow: shadow.is_some(),
                peer,
                protocol: record.protocol.clone(),
                port: record.port,
                policies: match shadow {
                    Some(policies) => policies.iter().map(ToString::to_string).collect(),
                    None => record.own_side().map(|side| side.policies.clone()).unwrap_or_default(),
                },
            },
            packets: 1 + u64::from(event.suppressed),
            at: SystemTime::now(),
        })));
    }

    /// Sends all notices to the thread if they may have changed. May be called at any time; most calls return
    /// immediately.
    pub(in crate::events) fn send_changed_notices(&mut self, cluster_state: &ClusterState, now: Instant) {
        let since = |time: Option<Instant>| time.map_or(Duration::MAX, |time| now.saturating_duration_since(time));
        if since(self.checked_at) < CHECK_INTERVAL {
            return;
        }
        self.checked_at = Some(now);
        let current = || {
            reporters::policies_with_errors(cluster_state).map(|policy| (&policy.key, policy.diagnostics.as_slice()))
        };
        let sent = self.diagnostics.iter().map(|(key, diagnostics)| (key, diagnostics.as_slice()));
        let diagnostics_are_current =
            current().eq(sent) && (self.diagnostics.is_empty() || since(self.selected_at) < RESELECT_INTERVAL);
        // If the queue is full, the stored notices stay as they are, so the next check finds the same difference.
        let Ok(permit) = self.sender.try_reserve() else { return };
        if !self.suspensions.update(cluster_state, now) && diagnostics_are_current {
            return;
        }
        let ended: Vec<_> = self.suspensions.ended.iter().map(|(suspension, _)| suspension.clone()).collect();
        let mut notices = reporters::diagnostics(cluster_state, &self.node);
        notices.extend(reporters::suspensions(cluster_state, &ended, &self.node));
        permit.send(Message::Notices(notices));
        self.selected_at = Some(now);
        self.diagnostics = current().map(|(key, diagnostics)| (key.clone(), diagnostics.to_vec())).collect();
    }
}

#[cfg(test)]
mod tests {
    use netpol_policy::cluster_state::Event;
    use netpol_policy::manifest;
    use netpol_policy::model::Timestamp;

    use super::super::notice::NoticeReason;
    use super::super::reporters::tests::cluster_state;
    use super::*;

    #[test]
    fn the_reporters_of_a_policy_are_selected_again_after_ten_minutes() {
        let (sender, mut messages) = mpsc::channel(MAX_QUEUED_MESSAGES);
        let mut sink = Sink::new(sender, Arc::default(), "node-0");
        let start = Instant::now();
        let mut sent = |sink: &mut Sink, cluster_state: &ClusterState, after: Duration| {
            sink.send_changed_notices(cluster_state, start + after);
            match messages.try_recv() {
                Ok(Message::Notices(all)) => Some(all.len()),
                Ok(other) => panic!("{other:?}"),
                Err(_) => None,
            }
        };
        // Both clusters have the same invalid policy. In `here`, the only pod is on this node. In `moved`, the policy
        // selects only pods on other nodes.
        let (here, moved) = (cluster_state(1, 1), cluster_state(4, 4));
        assert_eq!(sent(&mut sink, &here, Duration::ZERO), Some(1));
        let almost = RESELECT_INTERVAL.saturating_sub(Duration::from_millis(1));
        assert_eq!(sent(&mut sink, &here, almost), None, "nothing has changed");
        assert_eq!(sent(&mut sink, &moved, almost + CHECK_INTERVAL), Some(0), "other agents report now");
        assert_eq!(
            sent(&mut sink, &here, almost + CHECK_INTERVAL * 2),
            None,
            "the reporters are not selected again yet"
        );
        assert_eq!(sent(&mut sink, &here, almost + CHECK_INTERVAL + RESELECT_INTERVAL), Some(1));
    }

    /// Returns a cluster with one namespace. With `until`, enforcement is suspended there until this time.
    fn suspended(until: Option<&str>) -> ClusterState {
        let annotations = until.map_or_else(String::new, |until| format!("netpol.io/suspended-until: '{until}'"));
        let namespace =
            format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: shop, annotations: {{{annotations}}}}}}}");
        let parsed = manifest::parse(&namespace, "shop.yaml");
        let mut state = ClusterState::from_objects(parsed.objects.into_iter().map(|located| located.object));
        state.apply(Event::Clock(Timestamp::parse("2026-11-29T12:00:00Z").expect("not a time")));
        state
    }

    #[test]
    fn the_end_of_a_suspension_is_reported_for_ten_minutes_and_an_extension_is_not_an_end() {
        let (sender, mut messages) = mpsc::channel(MAX_QUEUED_MESSAGES);
        let mut sink = Sink::new(sender, Arc::default(), "node-0");
        let start = Instant::now();
        let mut sent = |until, after| {
            sink.send_changed_notices(&suspended(until), start + after);
            match messages.try_recv() {
                Ok(Message::Notices(all)) => Some(all.iter().map(|notice| notice.reason).collect::<Vec<_>>()),
                Ok(other) => panic!("{other:?}"),
                Err(_) => None,
            }
        };
        let (active, ended) = (NoticeReason::EnforcementSuspended, NoticeReason::EnforcementResumed);
        let second = Duration::from_secs;
        assert_eq!(sent(Some("2026-11-29T13:00:00Z"), second(0)), Some(vec![active]));
        assert_eq!(
            sent(Some("2026-11-29T14:00:00Z"), second(1)),
            Some(vec![active]),
            "a longer suspension is not reported as ended"
        );
        assert_eq!(sent(None, second(2)), Some(vec![ended]));
        assert_eq!(sent(None, second(1) + ENDED_TIME), None);
        assert_eq!(sent(None, second(2) + ENDED_TIME), Some(Vec::new()), "the end is not reported any more");
        assert_eq!(sent(None, second(3) + ENDED_TIME), None);
    }
}
