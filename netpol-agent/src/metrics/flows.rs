//! Metrics of flows: events, records, and flows by rule.

use netpol_api::FlowVerdict;
use netpol_common::{Direction, EventKind};

use super::page::{Page, PageTable, pods};
use super::table::{Samples, counter};

pub(super) const FLOW_EVENTS: PageTable = &[
    counter("netpol_deny_events_reported_total", "Number of deny events that were reported.", |page, samples| {
        samples.value(page.reporter.events(FlowVerdict::Denied));
    }),
    counter(
        "netpol_deny_events_suppressed_total",
        "Number of denied packets without a deny event because of the limit for each pod.",
        |page, samples| {
            for (labels, suppressed) in suppressed(page, EventKind::Denied) {
                samples.labeled(&labels.each(), suppressed);
            }
        },
    ),
    counter(
        "netpol_deny_events_lost_total",
        "Number of deny events lost because the ring buffer was full.",
        |page, samples| samples.value(page.meter.counters.lost_events()),
    ),
    counter(
        "netpol_deny_events_unwritten_total",
        "Number of deny events not written because standard output was read too slowly, or because there were too many in one second.",
        |page, samples| samples.value(page.reporter.unwritten()),
    ),
    counter(
        "netpol_flow_events_total",
        "Number of events of flows, by verdict: denied packets, allowed flows that start, and flows that policies in shadow mode \
         would deny.",
        |page, samples| {
            samples.each("verdict", FlowVerdict::ALL.map(|verdict| (verdict.name(), page.reporter.events(verdict))));
        },
    ),
    counter(
        "netpol_flow_events_suppressed_total",
        "Number of flows without an event because of the limit for each pod, by verdict: allowed or shadow.",
        |page, samples| {
            for (verdict, kind) in
                [(FlowVerdict::Allowed, EventKind::Allowed), (FlowVerdict::Shadow, EventKind::Shadow)]
            {
                for (labels, suppressed) in suppressed(page, kind) {
                    samples.labeled(&[&labels.each()[..], &[("verdict", verdict.name())]].concat(), suppressed);
                }
            }
        },
    ),
    counter(
        "netpol_flow_events_skipped_total",
        "Number of flow events that were not recorded because there were too many in one second.",
        |page, samples| samples.value(page.reporter.skipped()),
    ),
    counter(
        "netpol_compared_verdicts_total",
        "Number of verdicts that were compared with those of the reference evaluator.",
        |page, samples| samples.value(page.reporter.compared_verdicts()),
    ),
    counter(
        "netpol_differing_verdicts_total",
        "Number of verdicts that differ from those of the reference evaluator: a bug.",
        |page, samples| samples.value(page.reporter.differing_verdicts()),
    ),
    counter(
        "netpol_flow_totals_not_kept_total",
        "Number of flows without a record of their totals because too many flows were open.",
        |page, samples| samples.value(page.reporter.totals_not_kept()),
    ),
    counter(
        "netpol_rule_flows_total",
        "Number of flows that a rule allowed, for policies that select pods of this node.",
        rule_flows,
    ),
    counter(
        "netpol_other_rule_flows_total",
        "Number of allowed flows of which the rule is not known, or has no counter of its own.",
        |page, samples| samples.value(page.reporter.hits().uncounted_flows()),
    ),
    counter(
        "netpol_shadow_denied_flows_total",
        "Number of allowed flows that policies in shadow mode would deny.",
        |page, samples| {
            for (pod, id, direction) in pods(page) {
                let Ok(counters) = page.meter.counters.packets(id, direction) else { continue };
                if counters.shadow_denied() > 0 {
                    let labels = Labels { namespace: &pod.namespace, pod: &pod.name, direction };
                    samples.labeled(&labels.each(), counters.shadow_denied());
                }
            }
        },
    ),
];

/// The labels of a pod and a direction.
struct Labels<'a> {
    namespace: &'a str,
    pod: &'a str,
    direction: Direction,
}

impl Labels<'_> {
    /// Returns the names and values of the labels.
    fn each(&self) -> [(&'static str, &str); 3] {
        [("namespace", self.namespace), ("pod", self.pod), ("direction", self.direction.name())]
    }
}

/// Returns the number of suppressed events of this kind for each pod and direction that has any.
fn suppressed<'a>(page: &'a Page<'a>, kind: EventKind) -> impl Iterator<Item = (Labels<'a>, u64)> {
    pods(page).filter_map(move |(pod, id, direction)| {
        let suppressed = page.meter.counters.suppressed(id, direction, kind).unwrap_or(0);
        let labels = Labels { namespace: &pod.namespace, pod: &pod.name, direction };
        (suppressed > 0).then_some((labels, suppressed))
    })
}

/// Adds the number of flows (`hits`) of each rule that has a counter of its own.
fn rule_flows(page: &Page<'_>, samples: &mut Samples) {
    for (rule, hits) in page.reporter.hits().local_rules() {
        let path = rule.path();
        let labels = [
            ("namespace", &*rule.policy.namespace),
            ("policy", &*rule.policy.name),
            ("direction", rule.direction.name()),
            ("rule", path.as_str()),
        ];
        samples.labeled(&labels, hits.flows);
    }
}
