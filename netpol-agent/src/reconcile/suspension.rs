//! Suspensions: until a time in an annotation, the policies of a namespace or of the cluster are not enforced
//! (docs/semantics.md, item 44). This module passes the time to the engine (the compiler of policies), which has no
//! clock, and logs when suspensions start or end.

use std::time::Duration;

use netpol_dataplane::Dataplane;
use netpol_policy::cluster_state::Event;
use netpol_policy::model::{Suspension, Timestamp};

use super::Reconciler;

/// The longest wait before the clock is read again, in case the clock was changed.
const MAX_WAIT: Duration = Duration::from_secs(10);

impl<D: Dataplane> Reconciler<D> {
    /// Passes the current time to the engine. The engine compares it with the times of suspensions.
    pub fn set_clock(&mut self) {
        self.apply(vec![Event::Clock(jiff::Timestamp::now().into())]);
    }

    /// Reads the suspensions from the engine, and logs suspensions that have started or ended.
    pub(super) fn log_suspensions(&mut self) {
        let current = self.engine.suspensions();
        // A suspension with a new end or reason is logged again.
        for suspension in current.iter().filter(|suspension| !self.suspensions.contains(suspension)) {
            let Suspension { namespace, cluster, until, reason } = suspension;
            let reason = reason.as_deref().unwrap_or_default();
            tracing::warn!(%namespace, cluster, %until, reason, "enforcement is suspended");
        }
        for suspension in &self.suspensions {
            let Suspension { namespace, cluster, until, .. } = suspension;
            // With a new end or reason, it is still the same suspension: enforcement has not resumed.
            if !current.iter().any(|still| still.is_from_same_annotation(suspension)) {
                tracing::warn!(%namespace, cluster, %until, "enforcement resumed");
            }
        }
        self.suspensions = current;
        self.next_suspension_change = self.engine.next_suspension_change();
        let pending = self.engine.cluster_state().pending_suspensions();
        for suspension in pending.iter().filter(|suspension| !self.pending_suspensions.contains(suspension)) {
            let Suspension { namespace, cluster, until, .. } = suspension;
            tracing::warn!(
                %namespace, cluster, %until,
                "policies are still enforced; the suspension starts 24 hours before its end; to start it now, set an earlier \
                 end; to cancel it, remove the annotation"
            );
        }
        self.pending_suspensions = pending;
    }

    /// Passes the current time to the engine if a suspension has ended or taken effect since the engine last received
    /// the time. The agent's main loop calls this in each round, because a flood of flow events could delay the timers
    /// of the loop.
    pub fn set_clock_if_due(&mut self) {
        if self.until_suspension_changes() == Some(Duration::ZERO) {
            self.set_clock();
        }
    }

    /// Returns how long to wait before the next [`Reconciler::set_clock_if_due`]. `None` if no suspension will start or
    /// end, or while policies are compiled or written.
    pub fn until_suspension_changes(&self) -> Option<Duration> {
        if !self.has_engine() || self.is_busy() {
            return None;
        }
        let seconds = Timestamp::from(jiff::Timestamp::now()).seconds_until(self.next_suspension_change?);
        Some(Duration::from_secs(seconds).min(MAX_WAIT))
    }
}
