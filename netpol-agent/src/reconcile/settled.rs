//! Determines since when the tables have all objects that the agent received.

use std::time::Duration;

use super::Reconciler;
use super::interface::Phase;
use crate::clock::boot_clock;
use netpol_common::FlowEvent;
use netpol_dataplane::Dataplane;

/// An event may have a time shortly after a change, although its packet was evaluated shortly before the change. A
/// program runs for a much shorter time than this margin.
const MARGIN: Duration = Duration::from_millis(10);

impl<D: Dataplane> Reconciler<D> {
    /// Records whether all objects are in the tables now. Must be called before events are read. `is_fully_applied`:
    /// the result of [`Self::is_fully_applied`].
    pub fn update_settled(&mut self, is_fully_applied: bool) {
        let settled = !self.is_busy() && is_fully_applied;
        self.settled_since = settled.then(|| self.settled_since.unwrap_or_else(boot_clock));
    }

    /// Returns whether an event's packet was evaluated with the same objects that the engine has now.
    pub fn was_evaluated_with_current_objects(&self, event: &FlowEvent) -> bool {
        let is_current =
            |ifindex| self.endpoint(ifindex).is_some_and(|pod_endpoint| pod_endpoint.phase == Phase::Current);
        !self.is_busy()
            && is_current(event.ifindex)
            && self.settled_since.is_some_and(|since| Duration::from_nanos(event.time_ns) > since + MARGIN)
    }
}
