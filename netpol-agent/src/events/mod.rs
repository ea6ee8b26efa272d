//! Reports of denied packets: one JSON line each, with names for what the kernel knows by number. The kernel limits how many
//! events one pod causes; what they cost here is shared fairly as well.

mod groups;
pub mod kubernetes;
mod out;
mod shares;
mod tell;

use std::collections::HashMap;
use std::time::{Duration, Instant, SystemTime};

use netpol_common::{DenyEvent, Direction, Reason};
use netpol_policy::model::PodKey;

use crate::dataplane::Dataplane;
use crate::reconcile::Reconciler;
use groups::{Groups, LimitSummary};
use kubernetes::Sink;
pub use out::Lines;
use shares::Shares;
pub use tell::{Denial, End, PolicyRef};

/// Turns events into lines.
#[derive(Debug)]
pub struct Reporter {
    lines: Lines,
    /// How far the wall clock is ahead of the kernel's boot clock.
    boot: SystemTime,
    told: u64,
    /// Lines a second.
    written: Shares,
    /// Microseconds a second that go into explanations.
    explained: Shares,
    groups: Groups,
    summarized: Instant,
    /// What is reported already of packets without an event, by endpoint ID and direction.
    limited: HashMap<(u32, u32), (PodKey, u64)>,
    limited_at: Instant,
    /// Names of endpoints that were let go a moment ago: their last events may still be in the ring.
    past: HashMap<u32, PodKey>,
    kubernetes: Option<Sink>,
}

impl Reporter {
    /// Reports to `lines`.
    pub fn new(lines: Lines) -> Self {
        let now = Instant::now();
        Self {
            lines,
            boot: boot_time(),
            told: 0,
            written: Shares::new(LINES),
            explained: Shares::new(EXPLAINING),
            groups: Groups::default(),
            summarized: now,
            limited: HashMap::new(),
            limited_at: now,
            past: HashMap::new(),
            kubernetes: None,
        }
    }

    /// Tells the API server as well.
    #[must_use]
    pub fn and_to(mut self, sink: Option<Sink>) -> Self {
        self.kubernetes = sink;
        self
    }

    /// Reports one denied packet.
    pub fn deny<D: Dataplane>(&mut self, event: &DenyEvent, reconciler: &Reconciler<D>) {
        let pod = reconciler.held().get(&event.ifindex).and_then(|held| held.pod.clone());
        if let Some(pod) = &pod {
            self.past.insert(event.ifindex.0, pod.clone());
        }
        let pod = pod.or_else(|| self.past.get(&event.ifindex.0).cloned());
        if self.past.len() > 1024 {
            self.past.clear();
        }
        let now = Instant::now();
        let mut denial =
            tell::denial(event, pod.as_ref(), reconciler.engine(), self.boot + Duration::from_nanos(event.time_ns));
        self.told += 1;
        if Groups::take(event) {
            self.groups.count(event, &denial, now);
            return;
        }
        denial.sender = sender(event, &denial, reconciler);
        if let (Some(sink), Some(pod)) = (&self.kubernetes, &pod) {
            sink.denied(event, &denial, pod, reconciler.engine().world());
        }
        let spender = event.budget();
        if !self.written.allow(spender, now) {
            self.lines.skip();
            return;
        }
        self.written.spend(spender, 1);
        let by_rules = [Reason::NoRule, Reason::NoBackend, Reason::Backend].map(|reason| reason as u8);
        if let Some(pod) = pod.filter(|_| by_rules.contains(&event.reason) && self.explained.allow(spender, now)) {
            tell::explain(&mut denial, event, &pod, reconciler.engine());
            self.explained.spend(spender, u64::try_from(now.elapsed().as_micros()).unwrap_or(u64::MAX));
        }
        self.lines.push(spender, &denial);
    }

    /// Writes the summaries that are due. May be called at any time; costs nothing most times. `suppressed` returns how many
    /// packets of an endpoint ID have no event.
    pub fn summarize<D: Dataplane>(&mut self, reconciler: &Reconciler<D>, suppressed: impl Fn(u32, Direction) -> u64) {
        let now = Instant::now();
        if now.saturating_duration_since(self.summarized) < SUMMARIES {
            return;
        }
        self.summarized = now;
        for summary in self.groups.due(now, SystemTime::now()) {
            self.lines.push(SUMMARY, &summary);
        }
        if now.saturating_duration_since(self.limited_at) < LIMITED {
            return;
        }
        self.limited_at = now;
        let mut limited = HashMap::new();
        for held in reconciler.held().values() {
            let Some(pod) = &held.pod else { continue };
            for direction in Direction::BOTH {
                let id = (held.endpoint.id, direction as u32);
                let count = suppressed(held.endpoint.id, direction);
                // The ID, or the count, may be another pod's by now.
                let before = self.limited.get(&id).filter(|(of, before)| of == pod && *before <= count);
                let new = count - before.map_or(0, |(_, before)| *before);
                if new > 0 {
                    let summary = LimitSummary::new(SystemTime::now(), pod.to_string(), direction, new);
                    self.lines.push(SUMMARY, &summary);
                }
                if count > 0 {
                    limited.insert(id, (pod.clone(), count));
                }
            }
        }
        self.limited = limited;
    }

    /// Tells the API server what policies say that was not understood. May be called at any time.
    pub fn review<D: Dataplane>(&mut self, reconciler: &Reconciler<D>) {
        if let Some(sink) = &mut self.kubernetes {
            sink.review(reconciler.engine().world(), Instant::now());
        }
    }

    /// What became of Events of the API server, where they are written.
    pub fn kubernetes(&self) -> Option<&kubernetes::Numbers> {
        self.kubernetes.as_ref().map(Sink::numbers)
    }

    /// Events told since the start.
    pub fn told(&self) -> u64 {
        self.told
    }

    /// Events that could not be written, as whoever reads standard output is too slow.
    pub fn unwritten(&self) -> u64 {
        self.lines.lost()
    }
}

/// Lines in one second.
const LINES: u64 = 1000;
/// Microseconds in one second for looks at every rule of a pod's policies: explanations must not cost more than enforcement.
const EXPLAINING: u64 = 200_000;
/// Summaries are looked for this often …
const SUMMARIES: Duration = Duration::from_millis(500);
/// … and those of packets without an event written this often.
const LIMITED: Duration = Duration::from_secs(10);
/// No budget's number: summaries have a share of their own of the lines that wait.
const SUMMARY: u32 = u32::MAX;

/// The pod of this node that sent a packet in the name of another address.
fn sender<D: Dataplane>(event: &DenyEvent, denial: &Denial, reconciler: &Reconciler<D>) -> Option<String> {
    let id = u32::from(event.source_endpoint);
    if id == 0 || event.direction != Direction::Ingress as u8 {
        return None;
    }
    let held = reconciler.held().values().find(|held| held.endpoint.id == id)?;
    let sender = held.pod.as_ref()?.to_string();
    (denial.from.pod.as_ref() != Some(&sender)).then_some(sender)
}

fn boot_time() -> SystemTime {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is ours; the clock exists since Linux 2.6.39.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut now) };
    let since_boot = Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or(0));
    SystemTime::now() - since_boot
}
