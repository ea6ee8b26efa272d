//! The state of the start gate (which delays the start of a pod until its policies are enforced), and the numbers of
//! the starts that it delayed. Both are for metrics and the status.

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

/// How long starts were delayed, as a histogram.
#[derive(Clone, Copy, Debug, Default)]
pub struct StartDelays {
    /// For each of [`BOUNDS`]: the number of starts that were delayed by at most this time.
    pub buckets: [u64; BOUNDS.len()],
    /// Number of starts.
    pub count: u64,
    /// Sum of the delays.
    pub sum: Duration,
}

/// The state of the start gate, and the numbers of starts. Clones share both.
#[derive(Clone, Debug, Default)]
pub struct GateStats(Arc<Mutex<State>>);

/// The fields up to `error`, and `recent`, have the same meaning as in [`GateStatus`].
#[derive(Debug, Default)]
struct State {
    mode: &'static str,
    reason: Option<String>,
    configuration: Option<String>,
    runtime: Option<String>,
    error: Option<String>,
    /// Numbers of starts, see [`GateStats::starts`].
    starts: BTreeMap<(&'static str, StartOutcome), u64>,
    delays: StartDelays,
    recent: VecDeque<RecentStart>,
}

impl GateStats {
    /// Sets how starts are reported to the agent (`nri`, `cni` or `off`). `reason`: why the agent has chosen this mode;
    /// `None` if an option sets the mode.
    pub fn set_mode(&self, mode: &'static str, reason: Option<String>) {
        let mut state = self.lock();
        (state.mode, state.reason) = (mode, reason);
    }

    /// Records that the list of plugins in this CNI configuration file contains `netpol-cni`.
    pub fn record_installed(&self, file: String) {
        let mut state = self.lock();
        (state.configuration, state.error) = (Some(file), None);
    }

    /// Records that a container runtime is connected by NRI.
    pub fn record_connected(&self, runtime: String) {
        let mut state = self.lock();
        (state.runtime, state.error) = (Some(runtime), None);
    }

    /// Records why no runtime is connected, or why the CNI plugin is not installed. Returns whether this error is new:
    /// it differs from the last error, or the gate has worked since the last error.
    pub fn record_error(&self, error: String) -> bool {
        let mut state = self.lock();
        let is_new = state.error.as_ref() != Some(&error);
        (state.runtime, state.configuration, state.error) = (None, None, Some(error));
        is_new
    }

    /// Records a start of a pod. `via`: how the start was reported (`nri` or `cni`). `took`: how long it was delayed.
    /// `reason`: why the pod's policies are not enforced; `None` if they are enforced.
    pub fn record(
        &self,
        pod: &PodKey,
        via: &'static str,
        outcome: StartOutcome,
        took: Duration,
        reason: Option<String>,
    ) {
        let mut state = self.lock();
        *state.starts.entry((via, outcome)).or_default() += 1;
        state.delays.count += 1;
        state.delays.sum += took;
        for (bucket, bound) in state.delays.buckets.iter_mut().zip(BOUNDS) {
            *bucket += u64::from(took <= Duration::from_millis(bound.into()));
        }
        state.recent.truncate(RECENT - 1);
        state.recent.push_front(RecentStart {
            time: rfc3339(SystemTime::now()),
            pod: pod.to_string(),
            via: via.to_owned(),
            outcome,
            took_ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
            reason,
        });
    }

    /// Returns the numbers of starts, by how they were reported (`nri` or `cni`) and by outcome.
    pub fn starts(&self) -> BTreeMap<(&'static str, StartOutcome), u64> {
        self.lock().starts.clone()
    }

    /// Returns how long starts were delayed.
    pub fn times(&self) -> StartDelays {
        self.lock().delays
    }

    /// Returns how starts are reported to the agent, and whether this works now.
    pub fn mode(&self) -> (&'static str, bool) {
        let state = self.lock();
        (state.mode, state.runtime.is_some() || state.configuration.is_some())
    }

    /// Returns the status.
    pub fn status(&self) -> GateStatus {
        let state = self.lock();
        GateStatus {
            mode: state.mode.to_owned(),
            reason: state.reason.clone(),
            configuration: state.configuration.clone(),
            runtime: state.runtime.clone(),
            error: state.error.clone(),
            recent: state.recent.iter().cloned().collect(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is consistent even if a thread panicked while it held the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn starts_are_counted_and_the_latest_starts_are_listed() {
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

    #[test]
    fn the_same_error_is_new_again_after_a_connection() {
        let stats = GateStats::default();
        let closed = || stats.record_error("the runtime closed the connection".into());
        assert!(closed() && !closed());
        stats.record_connected("containerd 2.2".into());
        assert!(closed());
    }
}
