//! The clock of suspensions: the engine has none of its own.

use std::time::{Duration, SystemTime};

use netpol_dataplane::Dataplane;
use netpol_policy::cluster_state::Event;
use netpol_policy::model::Timestamp;

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
