//! Writes the metrics in the Prometheus text format.

use std::fmt::Write;

use netpol_common::{Direction, Reason};
use netpol_policy::text::Safe;

use super::Meter;
use super::convergence::{BOUNDS, Convergence};
use crate::api::Readiness;
use crate::conflicts::ConflictKind;
use crate::events::Reporter;
use crate::events::kubernetes::{Dropped, Numbers};
use crate::reconcile::{Reconciler, UNPROTECTED_BOUNDS, UnprotectedTimes};
use netpol_dataplane::{Kernel, MapName};

/// Returns all metrics.
pub fn render(reconciler: &Reconciler<Kernel>, meter: &Meter, reporter: &Reporter) -> String {
    let mut metrics = MetricsText::default();
    packets(&mut metrics, reconciler, meter);
    suppressed(&mut metrics, reconciler, meter);
    maps(&mut metrics, reconciler);
    omitted_parts(&mut metrics, reconciler);
    let endpoints = reconciler.enforced().filter(|known| known.pod.is_some() && !known.is_orphaned()).count();
    let orphans = reconciler.enforced().filter(|known| known.is_orphaned()).count();
    let unknown = reconciler.enforced().count() - endpoints - orphans;
    let (conflicts, secondary) = (reconciler.conflicts(), reconciler.secondary_interfaces());
    let failed_writes = reconciler.failed_writes();
    let policy_diagnostics = reconciler.policy_diagnostics();
    for (name, kind, help, value) in [
        (
            "netpol_map_missing_entries",
            "gauge",
            "Number of map entries that could not be written yet.",
            failed_writes.missing as u64,
        ),
        (
            "netpol_write_errors_total",
            "counter",
            "Number of failed writes, except for full maps.",
            failed_writes.failed,
        ),
        ("netpol_endpoints", "gauge", "Number of endpoints of known pods that are enforced.", endpoints as u64),
        (
            "netpol_endpoints_orphaned",
            "gauge",
            "Number of orphaned endpoints: the pod is gone, the interface is enforced as before.",
            orphans as u64,
        ),
        (
            "netpol_endpoints_unknown",
            "gauge",
            "Number of interfaces without a known pod, where all traffic is dropped.",
            unknown as u64,
        ),
        (
            "netpol_pods_waiting",
            "gauge",
            "Number of pods of this node that are not enforced yet.",
            reconciler.pods_waiting() as u64,
        ),
        (
            "netpol_endpoint_conflicts",
            "gauge",
            "Number of interfaces that claim a pod or an address to which another interface is bound.",
            conflicts as u64,
        ),
        (
            "netpol_endpoints_secondary",
            "gauge",
            "Number of further interfaces in pods' namespaces, to which policies do not apply.",
            secondary as u64,
        ),
        ("netpol_policy_diagnostics", "gauge", "Number of invalid fields in policies.", policy_diagnostics as u64),
        (
            "netpol_deny_events_reported_total",
            "counter",
            "Number of deny events that were reported.",
            reporter.reported(),
        ),
        (
            "netpol_deny_events_lost_total",
            "counter",
            "Number of deny events lost because the ring buffer was full.",
            meter.counters.lost_events(),
        ),
        (
            "netpol_deny_events_unwritten_total",
            "counter",
            "Number of deny events not written because the reader of standard output was too slow.",
            reporter.unwritten(),
        ),
        ("netpol_apply_batches_total", "counter", "Number of batches of changes that were enforced.", meter.batches),
    ] {
        metrics.header(name, kind, help);
        metrics.value(name, &[], value);
    }
    unlisted(&mut metrics, reconciler.unlisted_addresses());
    let name = "netpol_evaluating_seconds";
    metrics.header(name, "gauge", "Time spent so far on the changes that are being compiled; 0 if there are none.");
    metrics.value(name, &[], reconciler.evaluating().unwrap_or_default().as_secs_f64());
    metrics.header("netpol_apply_seconds_total", "counter", "Total time spent enforcing changes.");
    metrics.value("netpol_apply_seconds_total", &[], meter.applying.as_secs_f64());
    convergence(&mut metrics, &meter.convergence);
    if let Some(numbers) = reporter.kubernetes() {
        kube_events(&mut metrics, numbers);
    }
    unprotected(&mut metrics, reconciler.unprotected());
    super::source::render(&mut metrics, &meter.source);
    conflicting_components(&mut metrics, meter);
    metrics.header("netpol_ready", "gauge", "1 if everything known at the start is enforced, else 0.");
    metrics.value("netpol_ready", &[], u8::from(meter.readiness == Readiness::Ready));
    metrics.text
}

fn conflicting_components(metrics: &mut MetricsText, meter: &Meter) {
    metrics.header(
        "netpol_conflicts",
        "gauge",
        "Number of other policy engines on this node, and of settings that conflict with netpol, by kind.",
    );
    for kind in ConflictKind::ALL {
        metrics.value("netpol_conflicts", &[("kind", kind.name())], meter.conflicts.of(kind));
    }
}

fn packets(metrics: &mut MetricsText, reconciler: &Reconciler<Kernel>, meter: &Meter) {
    metrics.header("netpol_packets_total", "counter", "Packets at pods by direction, reason and verdict.");
    for held in reconciler.pod_endpoints() {
        let Some(pod) = &held.pod else { continue };
        for direction in Direction::BOTH {
            let Ok(counters) = meter.counters.packets(held.endpoint.id, direction) else { continue };
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
                    metrics.value("netpol_packets_total", &labels, packets);
                }
            }
        }
    }
}

fn maps(metrics: &mut MetricsText, reconciler: &Reconciler<Kernel>) {
    metrics.header("netpol_map_capacity", "gauge", "Maximum number of entries of a map.");
    for map in MapName::ALL {
        metrics.value("netpol_map_capacity", &[("map", map.name())], reconciler.dataplane().capacities().of(*map));
    }
    metrics.header("netpol_map_entries", "gauge", "Number of entries that a map should have.");
    for (map, entries) in reconciler.entries() {
        metrics.value("netpol_map_entries", &[("map", map.name())], entries);
    }
    metrics.header("netpol_map_full_total", "counter", "Number of writes that failed because the map was full.");
    for (map, count) in &reconciler.failed_writes().full {
        metrics.value("netpol_map_full_total", &[("map", map)], count);
    }
}

fn unlisted(metrics: &mut MetricsText, addresses: usize) {
    metrics.header("netpol_unlisted_addresses", "gauge", "Number of addresses of pods that their objects do not list.");
    metrics.value("netpol_unlisted_addresses", &[], addresses);
}

fn suppressed(metrics: &mut MetricsText, reconciler: &Reconciler<Kernel>, meter: &Meter) {
    let name = "netpol_deny_events_suppressed_total";
    metrics.header(name, "counter", "Number of denied packets without a deny event because of the limit for each pod.");
    for held in reconciler.pod_endpoints() {
        let Some(pod) = &held.pod else { continue };
        for direction in Direction::BOTH {
            let suppressed = meter.counters.suppressed(held.endpoint.id, direction).unwrap_or(0);
            let labels = [("namespace", &*pod.namespace), ("pod", &*pod.name), ("direction", direction.name())];
            if suppressed > 0 {
                metrics.value(name, &labels, suppressed);
            }
        }
    }
}

fn omitted_parts(metrics: &mut MetricsText, reconciler: &Reconciler<Kernel>) {
    metrics.header(
        "netpol_policy_omitted_parts",
        "gauge",
        "Number of ipBlocks, ports and map entries of a policy that are omitted because of --max-policy-memory.",
    );
    for (policy, counts) in reconciler.left_out() {
        for (kind, count) in [("block", counts.blocks), ("port", counts.ports), ("entry", counts.entries)] {
            let labels = [("namespace", &*policy.namespace), ("policy", &*policy.name), ("kind", kind)];
            metrics.value("netpol_policy_omitted_parts", &labels, count);
        }
    }
}

fn convergence(metrics: &mut MetricsText, convergence: &Convergence) {
    for (name, help, value) in [
        ("netpol_generation", "Last batch of changes that is enforced.", convergence.enforced),
        ("netpol_generation_received", "Last batch of changes that was received and applied.", convergence.received),
    ] {
        metrics.header(name, "gauge", help);
        metrics.value(name, &[], value.0);
    }
    let name = "netpol_last_change_timestamp_seconds";
    metrics.header(name, "gauge", "Unix time when the last batch of changes was received and applied.");
    metrics.value(name, &[], convergence.last_change.unwrap_or_default().as_secs_f64());
    let name = "netpol_convergence_seconds";
    metrics.header(name, "histogram", "Time from the arrival of a batch of changes at the agent to its enforcement.");
    for (bound, count) in BOUNDS.iter().zip(convergence.buckets) {
        let bound = (f64::from(*bound) / 1e6).to_string();
        metrics.value(&format!("{name}_bucket"), &[("le", &bound)], count);
    }
    metrics.value(&format!("{name}_bucket"), &[("le", "+Inf")], convergence.count);
    metrics.value(&format!("{name}_sum"), &[], convergence.sum.as_secs_f64());
    metrics.value(&format!("{name}_count"), &[], convergence.count);
}

fn kube_events(metrics: &mut MetricsText, numbers: &Numbers) {
    metrics.header(
        "netpol_kube_events_total",
        "counter",
        "Number of Events written to the API server, including updates.",
    );
    metrics.value("netpol_kube_events_total", &[], numbers.published());
    let name = "netpol_kube_events_dropped_total";
    metrics.header(name, "counter", "Number of Events that were not written to the API server, by reason.");
    for reason in Dropped::ALL {
        metrics.value(name, &[("reason", reason.name())], numbers.dropped(reason));
    }
}

fn unprotected(metrics: &mut MetricsText, unprotected: &UnprotectedTimes) {
    let name = "netpol_unprotected_seconds";
    metrics.header(name, "histogram", "Time from the appearance of an interface to its enforcement.");
    for (bound, count) in UNPROTECTED_BOUNDS.iter().zip(unprotected.buckets) {
        let bound = (f64::from(*bound) / 1e3).to_string();
        metrics.value(&format!("{name}_bucket"), &[("le", &bound)], count);
    }
    metrics.value(&format!("{name}_bucket"), &[("le", "+Inf")], unprotected.count);
    metrics.value(&format!("{name}_sum"), &[], unprotected.unprotected.as_secs_f64());
    metrics.value(&format!("{name}_count"), &[], unprotected.count);
    metrics.header(
        "netpol_unprotected_packets_total",
        "counter",
        "Number of packets that passed interfaces before they were enforced.",
    );
    metrics.value("netpol_unprotected_packets_total", &[], unprotected.packets);
    metrics.header("netpol_attach_seconds", "summary", "Time to attach the programs to an interface.");
    metrics.value("netpol_attach_seconds_sum", &[], unprotected.attaching.as_secs_f64());
    metrics.value("netpol_attach_seconds_count", &[], unprotected.attached);
}

/// Escapes the value of a label: first characters that are not visible, then those that the exposition format
/// escapes. Line feeds have been escaped in the first step.
fn escaped(value: &str) -> String {
    Safe(value).to_string().replace('\\', "\\\\").replace('"', "\\\"")
}

#[derive(Debug, Default)]
pub(super) struct MetricsText {
    pub(super) text: String,
}

impl MetricsText {
    pub(super) fn header(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a string does not fail.
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    pub(super) fn value(&mut self, name: &str, labels: &[(&str, &str)], value: impl std::fmt::Display) {
        let labels: Vec<String> = labels.iter().map(|(key, value)| format!("{key}=\"{}\"", escaped(value))).collect();
        let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        let _ = writeln!(self.text, "{name}{labels} {value}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_escaped_for_prometheus() {
        let mut metrics = MetricsText::default();
        metrics.value("x", &[("a", "plain"), ("b", "q\"\\\n\u{e9}\u{202e}'")], 1);
        assert_eq!(metrics.text, "x{a=\"plain\",b=\"q\\\"\\\\\\\\n\u{e9}\\\\u{202e}'\"} 1\n");
    }
}
