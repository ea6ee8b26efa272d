//! Turns the events of the eBPF programs into flow records, with the names of pods and policies. The records are kept
//! in memory for clients of the API. Records of denied flows are also written as JSON lines.
//!
//! The eBPF programs limit the number of events of each pod. The reporter limits the number of records and the time for
//! explanations (which policies and rules led to a verdict), and divides each limit among the pods. Events without a
//! record are counted.

mod agreement;
mod bounds;
mod buffer;
mod cache;
mod describe;
mod explain;
mod explainer;
mod groups;
mod hits;
pub mod kubernetes;
mod limited;
mod observed;
mod out;
mod packet;
mod policies;
mod queue;
mod quota;
mod revoked;
mod shadow;
mod shares;
mod totals;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use netpol_api::{FlowDirection, FlowRecord, FlowVerdict, Record};
use netpol_common::{Direction, EventKind, FlowEvent, IfIndex, Reason};
use netpol_policy::model::PodKey;

use crate::clock::boot_time;
use crate::export::Exporters;
use crate::reconcile::Reconciler;
#[cfg(test)]
pub(crate) use buffer::tests::record as test_record;
pub use buffer::{BufferedRecord, FlowBuffer};
use describe::{Described, Names, describe, verdict};
pub(crate) use describe::{flow_direction, rfc3339, workload};
use explain::Explanation;
use explainer::Explainer;
use groups::MulticastGroups;
pub use hits::{HitCounters, Hits};
use kubernetes::Sink;
use limited::{Limited, LimitedSummary};
use netpol_dataplane::{Dataplane, FlowTotals, FlowTotalsReader};
use observed::Observed;
pub use out::Lines;
use policies::{ShadowPolicies, ShadowPolicyCache};
use revoked::RevokedFlows;
pub use shadow::ShadowFlows;
use shares::Shares;

/// The default of `--flow-buffer`: the size of the buffer in memory.
pub const DEFAULT_FLOW_BUFFER: usize = 10_000;
/// Maximum number of records of each verdict, per second.
const MAX_RECORDS: u64 = 1000;
/// Minimum time between two checks for summaries that are due. A summary is a record that counts several events.
const SUMMARY_INTERVAL: Duration = Duration::from_millis(500);
/// The key of summaries. The buffer and the queue of lines divide their memory among keys. The key of a flow record is
/// the index of an event budget ([`FlowEvent::budget`]). Each budget belongs to a pod, a direction and a kind of event.
const SUMMARY_KEY: u32 = u32::MAX;

/// If [`Reporter::recent_pods`] has more entries than this, all entries are removed.
const MAX_RECENT_PODS: usize = 16_384;

/// Turns events into records.
#[derive(Debug)]
pub struct Reporter {
    /// JSON lines on standard output.
    lines: Lines,
    /// The records in memory.
    buffer: FlowBuffer,
    /// Files and collectors that also receive the records.
    exporters: Exporters,
    /// When the node started, by the wall clock.
    boot: SystemTime,
    /// Number of events of each verdict.
    events: [u64; FlowVerdict::ALL.len()],
    /// Limits the records per second, for each verdict.
    record_limits: [Shares; FlowVerdict::ALL.len()],
    explainer: Explainer,
    /// Counters of the flows of each rule and each policy.
    hits: HitCounters,
    /// Counters of the flows that policies in shadow mode would deny.
    shadow: ShadowFlows,
    shadow_policies: ShadowPolicyCache,
    revoked: RevokedFlows,
    /// Denied multicast and broadcast packets, which are only summarized.
    groups: MulticastGroups,
    /// Counters of the packets and flows without a record, because of the rate limits.
    limited: Limited,
    /// When `summarize` last checked for summaries that are due.
    last_summarized: Instant,
    /// Pods by interface, also of removed endpoints: their last events may still be in the ring buffer.
    recent_pods: HashMap<u32, PodKey>,
    /// The writer of Kubernetes Events.
    kubernetes: Option<Sink>,
    /// Whether allowed flows are recorded.
    records_allowed: bool,
    /// Number of flows without a record of their totals (packets and bytes). `None`: the agent records no totals of
    /// flows.
    totals_not_kept: Option<Arc<AtomicU64>>,
}

impl Reporter {
    /// Creates a reporter that writes denied flows to `lines`, and all records to `buffer`.
    pub fn new(lines: Lines, buffer: FlowBuffer) -> Self {
        Self {
            lines,
            buffer,
            exporters: Exporters::default(),
            boot: boot_time(),
            events: [0; FlowVerdict::ALL.len()],
            record_limits: FlowVerdict::ALL.map(|_| Shares::new(MAX_RECORDS)),
            explainer: Explainer::default(),
            hits: HitCounters::default(),
            shadow: ShadowFlows::default(),
            shadow_policies: ShadowPolicyCache::default(),
            revoked: RevokedFlows::default(),
            groups: MulticastGroups::default(),
            limited: Limited::default(),
            last_summarized: Instant::now(),
            recent_pods: HashMap::new(),
            kubernetes: None,
            records_allowed: false,
            totals_not_kept: None,
        }
    }

    /// Also exports each record.
    #[must_use]
    pub fn with_exporters(mut self, exporters: Exporters) -> Self {
        self.exporters = exporters;
        self
    }

    /// Also writes Kubernetes Events.
    #[must_use]
    pub fn with_kube_events(mut self, sink: Option<Sink>) -> Self {
        self.kubernetes = sink;
        self
    }

    /// Sets whether allowed flows are recorded.
    #[must_use]
    pub fn with_allowed_flows(mut self, records_allowed: bool) -> Self {
        self.records_allowed = records_allowed;
        self
    }

    /// Returns whether allowed flows are recorded.
    pub fn records_allowed(&self) -> bool {
        self.records_allowed
    }

    /// Also records totals of flows, if there is a reader. The main loop passes the totals to
    /// [`Self::record_totals`].
    #[must_use]
    pub fn with_flow_totals(mut self, reader: Option<&FlowTotalsReader>) -> Self {
        self.totals_not_kept = reader.map(FlowTotalsReader::not_kept);
        self
    }

    /// Records the totals of a flow: its packets and bytes.
    pub fn record_totals<D: Dataplane>(&mut self, totals: &FlowTotals, reconciler: &Reconciler<D>) {
        let pod = self.pod_of(&totals.first_packet, reconciler);
        let buffered = totals::record(totals, pod.as_ref(), reconciler, SystemTime::now());
        self.keep(totals.first_packet.budget(), true, buffered);
    }

    /// Returns the number of flows without a record of their totals, because too many other flows had not ended.
    pub fn totals_not_kept(&self) -> u64 {
        self.totals_not_kept.as_ref().map_or(0, |count| count.load(Ordering::Relaxed))
    }

    /// Records the flow of an event.
    pub fn record<D: Dataplane>(&mut self, event: &FlowEvent, reconciler: &Reconciler<D>) {
        let observed = Observed {
            event,
            verdict: verdict(event),
            pod: self.pod_of(event, reconciler),
            time: self.boot + Duration::from_nanos(event.time_ns),
            now: Instant::now(),
        };
        let names = Names { engine: reconciler.engine(), node: reconciler.node() };
        self.events[observed.verdict as usize] += 1;
        self.count_policies(&observed, reconciler);
        if observed.verdict != FlowVerdict::Allowed && MulticastGroups::is_summarized(event) {
            let mut described = describe(event, observed.pod.as_ref(), names, observed.time);
            self.count_shadow(&observed, &mut described.record, reconciler);
            return self.groups.count(event, &described.record, observed.now);
        }
        let within_limit = self.record_limits[observed.verdict as usize].allow(event.budget(), observed.now);
        // A Kubernetes Event is written even if the limit allows no record.
        if !within_limit && (observed.verdict == FlowVerdict::Allowed || self.kubernetes.is_none()) {
            return self.skip(&observed, reconciler);
        }
        let mut described = describe(event, observed.pod.as_ref(), names, observed.time);
        described.record.sender = observed.sender(&described.record.from, reconciler);
        self.report_to_kubernetes(&observed, &described, reconciler);
        if !within_limit {
            return self.skip(&observed, reconciler);
        }
        self.record_limits[observed.verdict as usize].spend(event.budget(), 1);
        self.add_explanation(&observed, &mut described, reconciler);
        if event.reason == Reason::Revoked as u8 {
            let last_change = reconciler.last_change(event.ifindex);
            described.record.revoked_by = self.revoked.revoked_by(event, last_change, observed.now);
        }
        self.count_shadow(&observed, &mut described.record, reconciler);
        let Described { record, labels } = described;
        let record = Arc::new(Record::Flow(Box::new(record)));
        let is_line = observed.verdict != FlowVerdict::Allowed;
        self.keep(event.budget(), is_line, BufferedRecord { record, labels, time: observed.time });
    }

    /// Returns the pod of the event's interface, even if its endpoint was removed recently.
    fn pod_of<D: Dataplane>(&mut self, event: &FlowEvent, reconciler: &Reconciler<D>) -> Option<PodKey> {
        match reconciler.endpoint(event.ifindex).and_then(|pod_endpoint| pod_endpoint.pod.as_ref()) {
            Some(pod) => {
                self.remember_pod(event.ifindex, pod);
                Some(pod.clone())
            }
            None => self.recent_pods.get(&event.ifindex.0).cloned(),
        }
    }

    /// Keeps the name of an interface's pod, because the last events of the pod and the totals of its flows may be
    /// recorded after its endpoint is removed.
    fn remember_pod(&mut self, ifindex: IfIndex, pod: &PodKey) {
        if self.recent_pods.get(&ifindex.0) == Some(pod) {
            return;
        }
        if self.recent_pods.len() > MAX_RECENT_PODS {
            self.recent_pods.clear();
        }
        self.recent_pods.insert(ifindex.0, pod.clone());
    }

    /// Counts a denied flow for each policy that isolates the pod. Counts a would-be denial (a flow that policies in
    /// shadow mode would deny) for each policy in shadow mode.
    fn count_policies<D: Dataplane>(&mut self, observed: &Observed<'_>, reconciler: &Reconciler<D>) {
        match observed.verdict {
            FlowVerdict::Denied => {
                let policies = reconciler.engine().rule_set(observed.event.rule_set).unwrap_or_default();
                self.hits.count_denied(policies, observed.time);
            }
            FlowVerdict::Shadow => {
                let policies = self.shadow_policies(observed, reconciler);
                self.hits.count_shadow_denied(&policies.counted, observed.count(), observed.time);
            }
            FlowVerdict::Allowed => {}
        }
    }

    /// Returns the policies to count and to list for a flow that policies in shadow mode would deny.
    fn shadow_policies<D: Dataplane>(
        &mut self,
        observed: &Observed<'_>,
        reconciler: &Reconciler<D>,
    ) -> Arc<ShadowPolicies> {
        let (engine, version) = (reconciler.engine(), reconciler.engine_version());
        self.shadow_policies.get(engine, version, observed.event.rule_set, reconciler.observes())
    }

    /// Counts a would-be denial, in the counter of its policies, workloads and port. If the record does not list all
    /// policies, replaces its list by one that starts with the policies in shadow mode.
    fn count_shadow<D: Dataplane>(
        &mut self,
        observed: &Observed<'_>,
        record: &mut FlowRecord,
        reconciler: &Reconciler<D>,
    ) {
        if observed.verdict != FlowVerdict::Shadow {
            return;
        }
        let policies = self.shadow_policies(observed, reconciler);
        if let Some(side) = record.own_side_mut()
            && side.policy_count.is_some()
        {
            side.policies.clone_from(&policies.listed);
        }
        if policies.is_complete {
            self.shadow.count(record, observed.count(), observed.time);
        } else {
            self.shadow.count_other(Some(observed.namespace()), observed.count(), observed.time);
        }
    }

    /// Counts an event for which no record is written, because of the rate limit.
    fn skip<D: Dataplane>(&mut self, observed: &Observed<'_>, reconciler: &Reconciler<D>) {
        self.limited.skip(observed.event.budget(), observed.count());
        match observed.verdict {
            FlowVerdict::Denied => self.lines.skip(),
            FlowVerdict::Shadow => {
                self.lines.skip();
                self.shadow.count_other(Some(observed.namespace()), observed.count(), observed.time);
            }
            FlowVerdict::Allowed => {
                let cached = self.explainer.known(observed, reconciler);
                self.count_rule(observed, cached.as_deref());
            }
        }
    }

    /// Writes a Kubernetes Event about a denial or a would-be denial.
    fn report_to_kubernetes<D: Dataplane>(
        &mut self,
        observed: &Observed<'_>,
        described: &Described,
        reconciler: &Reconciler<D>,
    ) {
        if self.kubernetes.is_none() || observed.verdict == FlowVerdict::Allowed {
            return;
        }
        let is_shadow = observed.verdict == FlowVerdict::Shadow;
        let policies = is_shadow.then(|| self.shadow_policies(observed, reconciler));
        if let (Some(sink), Some(pod)) = (&self.kubernetes, &observed.pod) {
            let shadow = policies.as_ref().map(|policies| &policies.counted[..]);
            sink.denied(observed.event, &described.record, pod, shadow, reconciler.engine().cluster_state());
        }
    }

    /// Adds the policies and rules of the source and the destination to a record, within the time limit for
    /// explanations. Counts an allowed flow for the rule that allows it.
    fn add_explanation<D: Dataplane>(
        &mut self,
        observed: &Observed<'_>,
        described: &mut Described,
        reconciler: &Reconciler<D>,
    ) {
        let key = observed.explanation_key();
        let explanation = key.map(|key| self.explainer.explain(key, observed, reconciler));
        match &explanation {
            None => {}
            Some(Ok(explanation)) => explanation.add_to(&mut described.record),
            Some(Err(reason)) => described.record.unexplained = Some((*reason).to_owned()),
        }
        if observed.verdict == FlowVerdict::Allowed {
            self.count_rule(observed, explanation.and_then(Result::ok).as_deref());
        }
    }

    /// Counts an allowed flow for the rule that allows it. The explanation names this rule. Without an explanation, the
    /// rule is unknown. A flow of a pod that no policy isolates has no rule.
    fn count_rule(&mut self, observed: &Observed<'_>, explanation: Option<&Explanation>) {
        let by_rule = [Reason::Rule, Reason::Service].iter().any(|reason| *reason as u8 == observed.event.reason);
        match explanation.and_then(|explanation| explanation.rule.as_ref()) {
            Some(rule) => self.hits.count_allowed(rule, observed.count(), observed.time),
            None if by_rule => self.hits.count_allowed_by_unknown(observed.count()),
            None => {}
        }
    }

    /// Adds a record to the buffer, exports it, and writes it as a line if `is_line`. `key` identifies the share of
    /// the buffer that the record uses: see [`SUMMARY_KEY`].
    fn keep(&self, key: u32, is_line: bool, buffered: BufferedRecord) {
        if is_line {
            self.lines.push(key, &*buffered.record);
        }
        self.exporters.push(&buffered.record);
        self.buffer.push(key, buffered);
    }

    /// Same as [`Self::keep`], for a summary. Summaries of allowed flows are not written as lines.
    fn keep_summary(&self, verdict: FlowVerdict, record: Record, time: SystemTime) {
        let buffered = BufferedRecord { record: Arc::new(record), labels: [None, None], time };
        self.keep(SUMMARY_KEY, verdict != FlowVerdict::Allowed, buffered);
    }

    /// Writes the summaries that are due. May be called at any time, and usually does nothing. `suppressed` returns,
    /// for an endpoint ID, a direction and a kind of event, the number of packets or flows for which the eBPF programs
    /// sent no event.
    pub fn summarize<D: Dataplane>(
        &mut self,
        reconciler: &Reconciler<D>,
        now: Instant,
        suppressed: impl Fn(u32, Direction, EventKind) -> u64,
    ) {
        if now.saturating_duration_since(self.last_summarized) < SUMMARY_INTERVAL {
            return;
        }
        self.last_summarized = now;
        self.read_clock();
        // Keeps the names of all pods, also of pods without events: the totals of a flow may be recorded after the
        // endpoint is removed.
        if self.totals_not_kept.is_some() {
            for pod_endpoint in reconciler.pod_endpoints() {
                if let Some(pod) = &pod_endpoint.pod {
                    self.remember_pod(pod_endpoint.endpoint.ifindex, pod);
                }
            }
        }
        let time = SystemTime::now();
        self.shadow.review(reconciler, time);
        self.hits.refresh(reconciler, now);
        for summary in self.groups.due(now, time, reconciler.node()) {
            self.keep_summary(summary.verdict, Record::Multicast(Box::new(summary)), time);
        }
        for LimitedSummary { record: limited, namespace, without_event } in
            self.limited.due(now, time, reconciler, suppressed)
        {
            // Adds only flows without an event: `skip` has already counted the events without a record.
            if limited.verdict == FlowVerdict::Shadow {
                // A packet from a pod of this node uses the egress budget of this pod, even if policies for the
                // receiving pod would deny it. So only for the ingress budget, the namespace of the policies is known.
                let namespace = (limited.direction == FlowDirection::Ingress).then_some(&*namespace);
                self.shadow.count_other(namespace, without_event, time);
            }
            self.keep_summary(limited.verdict, Record::RateLimited(limited), time);
        }
    }

    /// Computes `boot` again, because the wall clock may have been set meanwhile.
    fn read_clock(&mut self) {
        self.boot = boot_time();
    }

    /// Writes Kubernetes Events about diagnostics of policies, and about suspensions. May be called at any time.
    pub fn report_notices<D: Dataplane>(&mut self, reconciler: &Reconciler<D>) {
        if let Some(sink) = &mut self.kubernetes {
            sink.send_changed_notices(reconciler.engine().cluster_state(), Instant::now());
        }
    }

    /// Returns the counters of Kubernetes Events, if they are written.
    pub fn kubernetes(&self) -> Option<&kubernetes::EventCounters> {
        self.kubernetes.as_ref().map(Sink::counters)
    }

    /// Returns the number of events with this verdict since the start.
    pub fn events(&self, verdict: FlowVerdict) -> u64 {
        self.events[verdict as usize]
    }

    /// Returns the number of lines that were not written, because standard output is read too slowly, or because there
    /// were too many lines in one second.
    pub fn unwritten(&self) -> u64 {
        self.lines.lost()
    }

    /// Returns the number of events without a record, because there were too many events in one second.
    pub fn skipped(&self) -> u64 {
        self.limited.skipped()
    }

    /// Returns the number of verdicts that differ from the verdicts of the reference evaluator.
    pub fn differing_verdicts(&self) -> u64 {
        self.explainer.agreement().differences()
    }

    /// Returns the number of verdicts that were compared with the verdicts of the reference evaluator.
    pub fn compared_verdicts(&self) -> u64 {
        self.explainer.agreement().compared()
    }

    /// Returns the counters of the flows of each rule and each policy.
    pub fn hits(&self) -> &HitCounters {
        &self.hits
    }

    /// Returns the counters of the flows that policies in shadow mode would deny.
    pub fn shadow(&self) -> &ShadowFlows {
        &self.shadow
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_have_correct_times_after_the_wall_clock_was_set() {
        let mut reporter = Reporter::new(Lines::to(std::io::sink()), FlowBuffer::new(1));
        let before = reporter.boot;
        reporter.boot = before + Duration::from_hours(24);
        reporter.read_clock();
        let difference = reporter.boot.duration_since(before).unwrap_or_else(|error| error.duration());
        assert!(difference < Duration::from_hours(1), "{difference:?}");
    }
}
