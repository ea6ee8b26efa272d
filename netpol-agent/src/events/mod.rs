//! Reports denied packets as JSON lines, with the names of pods and policies. The BPF programs limit the number of events
//! of each pod. The reporter has its own limits for lines and for explanations, and divides them among the pods.

mod groups;
pub mod kubernetes;
mod out;
mod report;
mod shares;

use std::collections::HashMap;
use std::time::{Duration, Instant, SystemTime};

use netpol_common::{Direction, FlowEvent, Reason};
use netpol_policy::model::PodKey;

use crate::reconcile::Reconciler;
use groups::{Groups, LimitSummary};
use kubernetes::Sink;
use netpol_dataplane::Dataplane;
pub use out::Lines;
pub(crate) use report::rfc3339;
pub use report::{Denial, End, PolicyRef};
use shares::Shares;

/// Turns events into lines.
#[derive(Debug)]
pub struct Reporter {
    lines: Lines,
    /// Offset of the wall clock from the kernel's boot clock.
    boot: SystemTime,
    reported: u64,
    /// Lines per second.
    written: Shares,
    /// Microseconds per second spent on explanations.
    explained: Shares,
    groups: Groups,
    summarized: Instant,
    /// Counters of packets without an event at the last summary, by endpoint ID and direction.
    limited: HashMap<(u32, u32), (PodKey, u64)>,
    limited_at: Instant,
    /// Pods of recently removed endpoints. Their last events may still be in the ring buffer.
    recent_pods: HashMap<u32, PodKey>,
    kubernetes: Option<Sink>,
}

impl Reporter {
    /// Creates a reporter that writes to `lines`.
    pub fn new(lines: Lines) -> Self {
        let now = Instant::now();
        Self {
            lines,
            boot: boot_time(),
            reported: 0,
            written: Shares::new(MAX_LINES),
            explained: Shares::new(MAX_EXPLAIN_MICROS),
            groups: Groups::default(),
            summarized: now,
            limited: HashMap::new(),
            limited_at: now,
            recent_pods: HashMap::new(),
            kubernetes: None,
        }
    }

    /// Also writes Kubernetes Events.
    #[must_use]
    pub fn with_kube_events(mut self, sink: Option<Sink>) -> Self {
        self.kubernetes = sink;
        self
    }

    /// Reports a denied packet.
    pub fn deny<D: Dataplane>(&mut self, event: &FlowEvent, reconciler: &Reconciler<D>) {
        let pod = reconciler.endpoint(event.ifindex).and_then(|held| held.pod.clone());
        if let Some(pod) = &pod {
            self.recent_pods.insert(event.ifindex.0, pod.clone());
        }
        let pod = pod.or_else(|| self.recent_pods.get(&event.ifindex.0).cloned());
        if self.recent_pods.len() > 1024 {
            self.recent_pods.clear();
        }
        let now = Instant::now();
        let mut denial =
            report::denial(event, pod.as_ref(), reconciler.engine(), self.boot + Duration::from_nanos(event.time_ns));
        self.reported += 1;
        if Groups::is_summarized(event) {
            self.groups.count(event, &denial, now);
            return;
        }
        denial.sender = sender(event, &denial, reconciler);
        if let (Some(sink), Some(pod)) = (&self.kubernetes, &pod) {
            sink.denied(event, &denial, pod, reconciler.engine().cluster_state());
        }
        let key = event.budget();
        if !self.written.allow(key, now) {
            self.lines.skip();
            return;
        }
        self.written.spend(key, 1);
        let by_rules = [Reason::NoRule, Reason::NoAllowedBackend, Reason::BackendDenied].map(|reason| reason as u8);
        if let Some(pod) = pod.filter(|_| by_rules.contains(&event.reason) && self.explained.allow(key, now)) {
            report::explain(&mut denial, event, &pod, reconciler.engine());
            self.explained.spend(key, u64::try_from(now.elapsed().as_micros()).unwrap_or(u64::MAX));
        }
        self.lines.push(key, &denial);
    }

    /// Writes the summaries that are due. May be called at any time, and usually does nothing. `suppressed` returns the
    /// number of packets without an event for an endpoint ID.
    pub fn summarize<D: Dataplane>(&mut self, reconciler: &Reconciler<D>, suppressed: impl Fn(u32, Direction) -> u64) {
        let now = Instant::now();
        if now.saturating_duration_since(self.summarized) < SUMMARY_INTERVAL {
            return;
        }
        self.summarized = now;
        for summary in self.groups.due(now, SystemTime::now()) {
            self.lines.push(SUMMARY_KEY, &summary);
        }
        if now.saturating_duration_since(self.limited_at) < LIMITED_INTERVAL {
            return;
        }
        self.limited_at = now;
        let mut limited = HashMap::new();
        for held in reconciler.pod_endpoints() {
            let Some(pod) = &held.pod else { continue };
            for direction in Direction::BOTH {
                let id = (held.endpoint.id, direction as u32);
                let count = suppressed(held.endpoint.id, direction);
                // The ID or the counter may belong to another pod now.
                let before = self.limited.get(&id).filter(|(of, before)| of == pod && *before <= count);
                let new = count - before.map_or(0, |(_, before)| *before);
                if new > 0 {
                    let summary = LimitSummary::new(SystemTime::now(), pod.to_string(), direction, new);
                    self.lines.push(SUMMARY_KEY, &summary);
                }
                if count > 0 {
                    limited.insert(id, (pod.clone(), count));
                }
            }
        }
        self.limited = limited;
    }

    /// Writes Kubernetes Events about diagnostics of policies. May be called at any time.
    pub fn report_diagnostics<D: Dataplane>(&mut self, reconciler: &Reconciler<D>) {
        if let Some(sink) = &mut self.kubernetes {
            sink.send_changed_diagnostics(reconciler.engine().cluster_state(), Instant::now());
        }
    }

    /// Returns the counters of Kubernetes Events, if they are written.
    pub fn kubernetes(&self) -> Option<&kubernetes::EventCounters> {
        self.kubernetes.as_ref().map(Sink::numbers)
    }

    /// Returns the number of events reported since the start.
    pub fn reported(&self) -> u64 {
        self.reported
    }

    /// Returns the number of lines that were not written, because standard output is read too slowly.
    pub fn unwritten(&self) -> u64 {
        self.lines.lost()
    }
}

/// Maximum lines per second.
const MAX_LINES: u64 = 1000;
/// Microseconds per second for explanations, which evaluate every rule of a pod's policies. They must not cost more
/// than enforcement.
const MAX_EXPLAIN_MICROS: u64 = 200_000;
/// Minimum time between two checks for summaries that are due.
const SUMMARY_INTERVAL: Duration = Duration::from_millis(500);
/// Interval of summaries of packets without an event.
const LIMITED_INTERVAL: Duration = Duration::from_secs(10);
/// Queue key of summaries. It is not the key of a pod, so summaries have their own share of the queue.
const SUMMARY_KEY: u32 = u32::MAX;

/// Returns the local pod that sent the packet, if the source address is not that pod's.
fn sender<D: Dataplane>(event: &FlowEvent, denial: &Denial, reconciler: &Reconciler<D>) -> Option<String> {
    let id = u32::from(event.source_endpoint);
    if id == 0 || event.direction != Direction::Ingress as u8 {
        return None;
    }
    let held = reconciler.pod_endpoints().find(|held| held.endpoint.id == id)?;
    let sender = held.pod.as_ref()?.to_string();
    (denial.from.pod.as_ref() != Some(&sender)).then_some(sender)
}

fn boot_time() -> SystemTime {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a local variable; the clock exists since Linux 2.6.39.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut now) };
    let since_boot = Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or(0));
    SystemTime::now() - since_boot
}
