//! State of the start gate, and numbers of the starts that it delayed, for metrics and status.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use netpol_api::{GateStatus, RecentStart, StartOutcome};
use netpol_policy::model::PodKey;

use crate::events::rfc3339;

/// Upper bounds of the buckets for delays of starts, in milliseconds.
pub const BOUNDS: [u32; 9] = [1, 2, 5, 10, 15, 25, 50, 250, 1_000];
/// Maximum number of starts in the status.
const RECENT: usize = 10;

/// How long starts were delayed, in cumulative buckets.
#[derive(Clone, Copy, Debug, Default)]
pub struct Times {
    /// Number of starts up to each of [`BOUNDS`].
    pub buckets: [u64; BOUNDS.len()],
    /// Number of starts.
    pub count: u64,
    /// Total time.
    pub sum: Duration,
}

/// State and counts of the gate. Clones share everything.
#[derive(Clone, Debug, Default)]
pub struct GateStats(Arc<Mutex<Counts>>);

#[derive(Debug, Default)]
struct Counts {
    mode: &'static str,
    reason: Option<String>,
    configuration: Option<String>,
    runtime: Option<String>,
    error: Option<String>,
    starts: BTreeMap<(&'static str, StartOutcome), u64>,
    times: Times,
    recent: VecDeque<RecentStart>,
}

impl GateStats {
    /// Sets how the runtime reports starts (`nri`, `cni` or `off`). `reason`: why the agent has chosen this; `None` if
    /// it is set by an option.
    pub fn set_mode(&self, mode: &'static str, reason: Option<String>) {
        let mut counts = self.lock();
        (counts.mode, counts.reason) = (mode, reason);
    }

    /// Records that this list of CNI plugins contains `netpol-cni`.
    pub fn installed(&self, list: String) {
        let mut counts = self.lock();
        (counts.configuration, counts.error) = (Some(list), None);
    }

    /// Records that a runtime is connected.
    pub fn connected(&self, runtime: String) {
        let mut counts = self.lock();
        (counts.runtime, counts.error) = (Some(runtime), None);
    }

    /// Records why no runtime is connected, or why the CNI plugin is not installed.
    pub fn disconnected(&self, error: String) {
        let mut counts = self.lock();
        (counts.runtime, counts.configuration, counts.error) = (None, None, Some(error));
    }

    /// Records a start.
    pub fn record(
        &self,
        pod: &PodKey,
        via: &'static str,
        outcome: StartOutcome,
        took: Duration,
        reason: Option<String>,
    ) {
        let mut counts = self.lock();
        *counts.starts.entry((via, outcome)).or_default() += 1;
        counts.times.count += 1;
        counts.times.sum += took;
        for (bucket, bound) in counts.times.buckets.iter_mut().zip(BOUNDS) {
            *bucket += u64::from(took <= Duration::from_millis(bound.into()));
        }
        counts.recent.truncate(RECENT - 1);
        counts.recent.push_front(RecentStart {
            time: rfc3339(SystemTime::now()),
            pod: pod.to_string(),
            via: via.to_owned(),
            outcome,
            took_ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
            reason,
        });
    }

    /// Returns the number of starts by path (NRI or CNI) and outcome.
    pub fn starts(&self) -> BTreeMap<(&'static str, StartOutcome), u64> {
        self.lock().starts.clone()
    }

    /// Returns how long starts were delayed.
    pub fn times(&self) -> Times {
        self.lock().times
    }

    /// Returns how the runtime reports starts, and whether this works now.
    pub fn mode(&self) -> (&'static str, bool) {
        let counts = self.lock();
        (counts.mode, counts.runtime.is_some() || counts.configuration.is_some())
    }

    /// Returns the status.
    pub fn status(&self) -> GateStatus {
        let counts = self.lock();
        GateStatus {
            mode: counts.mode.to_owned(),
            reason: counts.reason.clone(),
            configuration: counts.configuration.clone(),
            runtime: counts.runtime.clone(),
            error: counts.error.clone(),
            recent: counts.recent.iter().cloned().collect(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        // The counts are consistent after each change.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn starts_are_counted_and_the_last_ones_are_kept() {
        let stats = GateStats::default();
        for took in [0, 2, 3, 2_000] {
            let pod = PodKey::new("shop", format!("web-{took}").as_str());
            stats.record(&pod, "nri", StartOutcome::Enforced, Duration::from_millis(took), None);
        }
        let times = stats.times();
        assert_eq!(times.buckets, [1, 2, 3, 3, 3, 3, 3, 3, 3]);
        assert_eq!((times.count, times.sum), (4, Duration::from_millis(2_005)));
        assert_eq!(stats.status().recent[0].pod, "shop/web-2000");
        for _ in 0..2 * RECENT {
            stats.record(&PodKey::new("shop", "a"), "cni", StartOutcome::Refused, Duration::ZERO, Some("x".into()));
        }
        assert_eq!(stats.status().recent.len(), RECENT);
        assert_eq!(stats.starts()[&("cni", StartOutcome::Refused)], 20);
    }
}
