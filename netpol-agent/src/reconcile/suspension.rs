//! Suspensions of enforcement: their clock, because the engine has none of its own, and log lines.

use std::time::{Duration, SystemTime};

use netpol_dataplane::Dataplane;
use netpol_policy::cluster_state::Event;
use netpol_policy::model::{Suspension, Timestamp};

use super::Reconciler;

/// The longest wait before the clock is read again, in case it was set.
const MAX_WAIT: Duration = Duration::from_secs(10);
/// The shortest wait: the clock has a resolution of a second.
const MIN_WAIT: Duration = Duration::from_millis(100);

impl<D: Dataplane> Reconciler<D> {
    /// Gives the time to the engine. Suspensions of enforcement start and end by it.
    pub fn set_clock(&mut self) {
        self.apply(vec![Event::Clock(SystemTime::now().into())]);
    }

    /// Reads the suspensions from the engine, and logs those that have started or ended.
    pub(super) fn log_suspensions(&mut self) {
        let now = self.engine.suspensions();
        let of = |suspension: &Suspension| (suspension.namespace.clone(), suspension.cluster);
        for suspension in now.iter().filter(|suspension| !self.suspensions.contains(suspension)) {
            let (namespace, cluster) = of(suspension);
            let reason = suspension.reason.as_deref().unwrap_or_default();
            tracing::warn!(%namespace, cluster, until = %suspension.until, reason, "enforcement is suspended");
        }
        for suspension in &self.suspensions {
            let (namespace, cluster) = of(suspension);
            if !now.iter().any(|still| of(still) == of(suspension)) {
                tracing::warn!(%namespace, cluster, until = %suspension.until, "enforcement resumed");
            }
        }
        self.suspensions = now;
    }

    /// Returns how long to wait before the next [`Reconciler::set_clock`]; `None` without a suspension, or while the
    /// engine is compiling.
    pub fn until_suspension_changes(&self) -> Option<Duration> {
        if !self.has_engine() || self.is_busy() {
            return None;
        }
        let change = self.engine.next_suspension_change()?;
        let seconds = Timestamp::from(SystemTime::now()).seconds_until(change);
        Some(Duration::from_secs(seconds).clamp(MIN_WAIT, MAX_WAIT))
    }
}
