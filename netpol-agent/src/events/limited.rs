//! Counts, for each pod, what has no flow record: denied packets, allowed flows, and flows that policies in shadow mode
//! would deny. Creates summaries of these counts. Records are missing because the eBPF programs limit the number of
//! events, and the agent limits the number of records.

use std::collections::HashMap;
use std::time::{Duration, Instant, SystemTime};

use netpol_api::{FlowVerdict, RateLimitedRecord};
use netpol_common::{Direction, EventKind, event_budget};
use netpol_dataplane::Dataplane;
use netpol_policy::model::{NamespaceName, PodKey};

use super::describe::{flow_direction, header};
use crate::reconcile::Reconciler;

/// Interval of the summaries.
const INTERVAL: Duration = Duration::from_secs(10);

/// The packets and flows without a record.
#[derive(Debug)]
pub(super) struct Limited {
    /// The counters of the eBPF programs at the last summary, by event budget. A pod has an event budget for each
    /// direction and each kind of event: see [`event_budget`].
    counted: HashMap<u32, (PodKey, u64)>,
    /// Packets and flows that the agent did not record since the last summary, by event budget.
    unrecorded: HashMap<u32, u64>,
    /// Number of events that the agent did not record, since its start.
    skipped_events: u64,
    last_summary: Instant,
}

/// A summary of a pod.
#[derive(Debug)]
pub(super) struct LimitedSummary {
    pub(super) record: RateLimitedRecord,
    /// The namespace of the pod.
    pub(super) namespace: NamespaceName,
    /// Packets or flows for which the eBPF programs sent no event.
    pub(super) without_event: u64,
}

impl Default for Limited {
    fn default() -> Self {
        Self { counted: HashMap::new(), unrecorded: HashMap::new(), skipped_events: 0, last_summary: Instant::now() }
    }
}

impl Limited {
    /// Counts an event that the agent does not record. The event stands for `count` packets or flows.
    pub(super) fn skip(&mut self, budget: u32, count: u64) {
        *self.unrecorded.entry(budget).or_default() += count;
        self.skipped_events += 1;
    }

    /// Returns the number of events that the agent did not record.
    pub(super) fn skipped(&self) -> u64 {
        self.skipped_events
    }

    /// Returns the summaries if they are due. `suppressed` returns a counter of the eBPF programs for an endpoint ID:
    /// the packets or flows for which the programs sent no event.
    pub(super) fn due<D: Dataplane>(
        &mut self,
        now: Instant,
        time: SystemTime,
        reconciler: &Reconciler<D>,
        suppressed: impl Fn(u32, Direction, EventKind) -> u64,
    ) -> Vec<LimitedSummary> {
        if now.saturating_duration_since(self.last_summary) < INTERVAL {
            return Vec::new();
        }
        self.last_summary = now;
        let mut counted = HashMap::new();
        let mut summaries = Vec::new();
        for pod_endpoint in reconciler.pod_endpoints() {
            let Some(pod) = &pod_endpoint.pod else { continue };
            for (direction, kind) in budgets() {
                let budget = event_budget(pod_endpoint.endpoint.id, direction, kind);
                let count = suppressed(pod_endpoint.endpoint.id, direction, kind);
                // The earlier value is not used if the endpoint ID belonged to another pod, or if the counter has
                // started at 0 again.
                let before =
                    self.counted.get(&budget).filter(|(counted_pod, before)| counted_pod == pod && *before <= count);
                let without_event = count - before.map_or(0, |(_, before)| *before);
                let without_record = without_event + self.unrecorded.remove(&budget).unwrap_or(0);
                if without_record > 0 {
                    let record = RateLimitedRecord {
                        header: header(time, reconciler.node()),
                        verdict: verdict_of(kind, reconciler.observes()),
                        direction: flow_direction(direction),
                        pod: pod.to_string(),
                        suppressed: without_record,
                    };
                    summaries.push(LimitedSummary { record, namespace: pod.namespace.clone(), without_event });
                }
                if count > 0 {
                    counted.insert(budget, (pod.clone(), count));
                }
            }
        }
        self.counted = counted;
        // The remaining counts belong to endpoints that were removed.
        self.unrecorded.clear();
        summaries
    }
}

fn budgets() -> impl Iterator<Item = (Direction, EventKind)> {
    EventKind::ALL.into_iter().flat_map(|kind| Direction::BOTH.map(|direction| (direction, kind)))
}

/// Returns the verdict of events of a kind. If `observes` is true (option `--observe`), nothing is enforced, so packets
/// of the kind `Denied` have passed.
const fn verdict_of(kind: EventKind, observes: bool) -> FlowVerdict {
    match kind {
        EventKind::Denied if observes => FlowVerdict::Shadow,
        EventKind::Denied => FlowVerdict::Denied,
        EventKind::Allowed => FlowVerdict::Allowed,
        EventKind::Shadow => FlowVerdict::Shadow,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn with_the_option_observe_no_verdict_is_denied() {
        let verdicts = |observes| EventKind::ALL.map(|kind| verdict_of(kind, observes));
        assert_eq!(verdicts(false), [FlowVerdict::Denied, FlowVerdict::Allowed, FlowVerdict::Shadow]);
        assert_eq!(verdicts(true), [FlowVerdict::Shadow, FlowVerdict::Allowed, FlowVerdict::Shadow]);
    }
}
