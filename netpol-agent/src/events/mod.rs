//! Denied packets, told: one JSON line each, with names for what the kernel knows by number.

pub mod kubernetes;
mod out;
mod tell;

use std::collections::HashMap;
use std::time::{Duration, Instant, SystemTime};

use netpol_common::{DenyEvent, Reason};
use netpol_policy::model::PodKey;

use crate::dataplane::Dataplane;
use crate::reconcile::Reconciler;
use kubernetes::Sink;
pub use out::Lines;
pub use tell::{Denial, End, PolicyRef};

/// Turns events into lines.
#[derive(Debug)]
pub struct Reporter {
    lines: Lines,
    /// How far the wall clock is ahead of the kernel's boot clock.
    boot: SystemTime,
    told: u64,
    budget: Budget,
    /// Names of endpoints that were let go a moment ago: their last events may still be in the ring.
    past: HashMap<u32, PodKey>,
    kubernetes: Option<Sink>,
}

impl Reporter {
    /// Tells to `lines`.
    pub fn new(lines: Lines) -> Self {
        Self { lines, boot: boot_time(), told: 0, budget: Budget::default(), past: HashMap::new(), kubernetes: None }
    }

    /// Tells the API server as well.
    #[must_use]
    pub fn and_to(mut self, sink: Option<Sink>) -> Self {
        self.kubernetes = sink;
        self
    }

    /// Tells one denied packet.
    pub fn deny<D: Dataplane>(&mut self, event: &DenyEvent, reconciler: &Reconciler<D>) {
        let pod = reconciler.held().get(&event.ifindex).and_then(|held| held.pod.clone());
        if let Some(pod) = &pod {
            self.past.insert(event.ifindex.0, pod.clone());
        }
        let pod = pod.or_else(|| self.past.get(&event.ifindex.0).cloned());
        if self.past.len() > 1024 {
            self.past.clear();
        }
        let mut denial =
            tell::denial(event, pod.as_ref(), reconciler.engine(), self.boot + Duration::from_nanos(event.time_ns));
        if let (Some(sink), Some(pod)) = (&self.kubernetes, &pod) {
            sink.denied(event, &denial, pod, reconciler.engine().world());
        }
        let by_rules = [Reason::NoRule, Reason::NoBackend, Reason::Backend].map(|reason| reason as u8);
        if let Some(pod) = pod.filter(|_| by_rules.contains(&event.reason) && self.budget.spend()) {
            tell::explain(&mut denial, event, &pod, reconciler.engine());
        }
        self.told += 1;
        self.lines.push(&denial);
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

/// Explanations that are given in one second.
const EXPLANATIONS: u32 = 50;

/// Keeps explanations from costing more than enforcement.
#[derive(Debug, Default)]
struct Budget {
    since: Option<Instant>,
    spent: u32,
}

impl Budget {
    fn spend(&mut self) -> bool {
        if self.since.is_none_or(|since| since.elapsed() > Duration::from_secs(1)) {
            *self = Self { since: Some(Instant::now()), spent: 0 };
        }
        self.spent += 1;
        self.spent <= EXPLANATIONS
    }
}

fn boot_time() -> SystemTime {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is ours; the clock exists since Linux 2.6.39.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut now) };
    let since_boot = Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or(0));
    SystemTime::now() - since_boot
}
