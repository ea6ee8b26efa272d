//! The metrics of a running agent.

use netpol_common::{Direction, Reason};
use netpol_dataplane::{Kernel, MapName};
use netpol_policy::model::PodKey;

use super::Meter;
use super::convergence::BOUNDS;
use super::export::append_exports;
use super::flows::FLOW_EVENTS;
use super::source::append_source;
use super::table::{Metric, Samples, append, counter, gauge, histogram, summary};
use crate::conflicts::ConflictKind;
use crate::events::Reporter;
use crate::events::kubernetes::DropReason;
use crate::reconcile::{PodEndpoint, Reconciler, UNPROTECTED_BOUNDS, UnprotectedStart};

/// The sources of the values of the metrics.
pub(super) struct Page<'a> {
    pub(super) reconciler: &'a Reconciler<Kernel>,
    pub(super) meter: &'a Meter,
    pub(super) reporter: &'a Reporter,
}

pub(super) type PageTable = &'static [Metric<for<'a> fn(&Page<'a>, &mut Samples)>];

/// Returns all metrics, except the metrics of the start gate.
pub fn render(reconciler: &Reconciler<Kernel>, meter: &Meter, reporter: &Reporter) -> String {
    let page = Page { reconciler, meter, reporter };
    let mut text = String::new();
    for table in [BUILD, PACKETS, MAPS, INTERFACES, FLOW_EVENTS, KUBE_EVENTS, CHANGES, STARTS] {
        append(&mut text, table, &page);
    }
    append_exports(&mut text, &meter.exporters);
    append_source(&mut text, &meter.source, &meter.readiness);
    text
}

const BUILD: PageTable = &[gauge("netpol_build_info", "1, with the version of the agent as a label.", |_, samples| {
    samples.labeled(&[("version", env!("CARGO_PKG_VERSION"))], 1);
})];

const PACKETS: PageTable =
    &[counter("netpol_packets_total", "Packets by pod, direction, reason and verdict.", packets)];

const MAPS: PageTable = &[
    gauge("netpol_map_capacity", "Maximum number of entries of a map.", |page, samples| {
        let capacities = page.reconciler.dataplane().capacities();
        samples.each("map", MapName::ALL.iter().map(|map| (map.name(), capacities.of(*map))));
    }),
    gauge("netpol_map_entries", "Number of entries that a map should have.", |page, samples| {
        samples.each("map", page.reconciler.entries().iter().map(|(map, count)| (map.name(), count)));
    }),
    counter("netpol_map_full_total", "Number of writes that failed because the map was full.", |page, samples| {
        samples.each("map", page.reconciler.failed_writes().full);
    }),
    gauge("netpol_map_missing_entries", "Number of map entries that could not be written yet.", |page, samples| {
        samples.value(page.reconciler.failed_writes().missing);
    }),
    counter("netpol_write_errors_total", "Number of failed writes, except for full maps.", |page, samples| {
        samples.value(page.reconciler.failed_writes().failed);
    }),
    gauge(
        "netpol_policy_omitted_parts",
        "Number of ipBlocks, ports and map entries of a policy that are omitted because of --max-policy-memory.",
        omitted_parts,
    ),
];

const INTERFACES: PageTable = &[
    gauge("netpol_endpoints", "Number of endpoints of known pods on which policies are enforced.", |page, samples| {
        samples.value(enforced(page, |endpoint| endpoint.pod.is_some() && !endpoint.is_orphaned()));
    }),
    gauge(
        "netpol_endpoints_orphaned",
        "Number of orphaned endpoints: the pod was deleted, and its last policies stay enforced.",
        |page, samples| samples.value(enforced(page, PodEndpoint::is_orphaned)),
    ),
    gauge(
        "netpol_endpoints_unknown",
        "Number of interfaces without a known pod, at which all traffic is dropped.",
        |page, samples| samples.value(enforced(page, |endpoint| endpoint.pod.is_none() && !endpoint.is_orphaned())),
    ),
    gauge(
        "netpol_pods_waiting",
        "Number of pods of this node on which policies are not enforced yet.",
        |page, samples| {
            samples.value(page.reconciler.pods_waiting());
        },
    ),
    gauge(
        "netpol_endpoint_conflicts",
        "Number of interfaces with a conflict of addresses, such as an address of a pod to which another interface is bound.",
        |page, samples| samples.value(page.reconciler.conflicts()),
    ),
    gauge(
        "netpol_endpoints_secondary",
        "Number of secondary interfaces in pods' namespaces, to which policies do not apply.",
        |page, samples| samples.value(page.reconciler.secondary_interfaces()),
    ),
    gauge(
        "netpol_unlisted_addresses",
        "Number of addresses of pods that are not in status.podIPs.",
        |page, samples| samples.value(page.reconciler.unlisted_addresses()),
    ),
    gauge(
        "netpol_conflicts",
        "Number of other policy engines on this node, and of settings that conflict with netpol, by kind.",
        |page, samples| {
            let conflicts = &page.meter.conflicts;
            samples.each("kind", ConflictKind::ALL.map(|kind| (kind.name(), conflicts.count(kind))));
        },
    ),
];

/// Metrics with `--kube-events`.
const KUBE_EVENTS: PageTable = &[
    counter(
        "netpol_kube_events_total",
        "Number of Events written to the API server, including updates.",
        |page, samples| {
            if let Some(counters) = page.reporter.kubernetes() {
                samples.value(counters.published());
            }
        },
    ),
    counter(
        "netpol_kube_events_dropped_total",
        "Number of Events that were not written to the API server, by reason.",
        |page, samples| {
            let Some(counters) = page.reporter.kubernetes() else { return };
            samples.each("reason", DropReason::ALL.map(|reason| (reason.name(), counters.dropped(reason))));
        },
    ),
];

const CHANGES: PageTable = &[
    gauge("netpol_observe", "1 if nothing is enforced (--observe), otherwise 0.", |page, samples| {
        samples.value(u8::from(page.reconciler.observes()));
    }),
    gauge(
        "netpol_suspended_until_timestamp_seconds",
        "Unix time when a suspension of enforcement ends. An empty namespace means the whole cluster.",
        |page, samples| {
            for suspension in page.reconciler.suspensions() {
                let namespace = if suspension.cluster { "" } else { &*suspension.namespace };
                samples.labeled(&[("namespace", namespace)], suspension.until.0);
            }
        },
    ),
    gauge("netpol_policy_diagnostics", "Number of invalid fields in policies.", |page, samples| {
        samples.value(page.reconciler.policy_diagnostics());
    }),
    counter(
        "netpol_apply_batches_total",
        "Number of batches of changes that were compiled and written.",
        |page, samples| {
            samples.value(page.meter.batches);
        },
    ),
    counter("netpol_apply_seconds_total", "Total time spent compiling and writing changes.", |page, samples| {
        samples.value(page.meter.writing.as_secs_f64());
    }),
    gauge(
        "netpol_compiling_seconds",
        "Time spent so far on the changes that are being compiled; 0 if there are none.",
        |page, samples| samples.value(page.reconciler.compiling_for().unwrap_or_default().as_secs_f64()),
    ),
    gauge("netpol_generation", "Generation of the last batch of changes that is enforced.", |page, samples| {
        samples.value(page.meter.convergence.enforced.0);
    }),
    gauge(
        "netpol_generation_received",
        "Generation of the last batch of changes that was received.",
        |page, samples| samples.value(page.reconciler.last_received().0),
    ),
    gauge(
        "netpol_last_change_timestamp_seconds",
        "Unix time when the last batch of changes was applied.",
        |page, samples| samples.value(page.meter.convergence.last_change.unwrap_or_default().as_secs_f64()),
    ),
    histogram(
        "netpol_convergence_seconds",
        "Time from the arrival of a batch of changes at the agent to its enforcement.",
        |page, samples| {
            let times = &page.meter.convergence;
            let bounds = BOUNDS.iter().map(|micros| f64::from(*micros) / 1e6);
            samples.histogram(bounds.zip(times.buckets), times.sum, times.count);
        },
    ),
];

const STARTS: PageTable = &[
    histogram(
        "netpol_unprotected_seconds",
        "Time from the appearance of a pod's interface until the pod's policies were enforced. With the start gate, the time starts \
         when the pod's containers could start.",
        |page, samples| {
            for start in UnprotectedStart::ALL {
                let times = page.reconciler.unprotected().since(start);
                let bounds = UNPROTECTED_BOUNDS.iter().map(|millis| f64::from(*millis) / 1e3);
                let since = [("since", start.name())];
                samples.labeled_histogram(&since, bounds.zip(times.buckets), times.sum, times.count);
            }
        },
    ),
    counter(
        "netpol_unprotected_packets_total",
        "Number of packets that passed in the times of netpol_unprotected_seconds.",
        |page, samples| {
            let times = page.reconciler.unprotected();
            samples.each("since", UnprotectedStart::ALL.map(|start| (start.name(), times.since(start).packets)));
        },
    ),
    summary("netpol_attach_seconds", "Time to attach the programs to an interface.", |page, samples| {
        let times = page.reconciler.unprotected();
        samples.summary(times.attaching, times.attached);
    }),
];

fn packets(page: &Page<'_>, samples: &mut Samples) {
    for (pod, id, direction) in pods(page) {
        let Ok(counters) = page.meter.counters.packets(id, direction) else { continue };
        for reason in Reason::ALL {
            let packets = counters.packets[*reason as usize];
            let verdict = if reason.allows() { "allow" } else { "deny" };
            if packets > 0 {
                let labels = [
                    ("namespace", &*pod.namespace),
                    ("pod", &*pod.name),
                    ("direction", direction.name()),
                    ("reason", reason.name()),
                    ("verdict", verdict),
                ];
                samples.labeled(&labels, packets);
            }
        }
    }
}

fn omitted_parts(page: &Page<'_>, samples: &mut Samples) {
    for (policy, counts) in page.reconciler.omitted() {
        for (kind, count) in [("block", counts.blocks), ("port", counts.ports), ("entry", counts.entries)] {
            let labels = [("namespace", &*policy.namespace), ("policy", &*policy.name), ("kind", kind)];
            samples.labeled(&labels, count);
        }
    }
}

/// Returns each known pod with its endpoint ID, once for each direction.
pub(super) fn pods<'a>(page: &Page<'a>) -> impl Iterator<Item = (&'a PodKey, u32, Direction)> {
    let endpoints = page
        .reconciler
        .pod_endpoints()
        .filter_map(|pod_endpoint| Some((pod_endpoint.pod.as_ref()?, pod_endpoint.endpoint.id)));
    endpoints.flat_map(|(pod, id)| Direction::BOTH.map(|direction| (pod, id, direction)))
}

/// Returns the number of matching endpoints with attached programs.
fn enforced(page: &Page<'_>, matches: impl Fn(&PodEndpoint) -> bool) -> usize {
    page.reconciler.attached_endpoints().filter(|endpoint| matches(endpoint)).count()
}
