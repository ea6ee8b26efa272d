//! The metrics page, in Prometheus' text format.

use std::fmt::Write;

use netpol_common::{Direction, Reason};
use netpol_policy::text::Safe;

use super::Meter;
use super::convergence::{BOUNDS, Convergence};
use crate::api::Readiness;
use crate::conflicts::ConflictKind;
use crate::dataplane::{Kernel, MapName};
use crate::events::Reporter;
use crate::events::kubernetes::{Dropped, Numbers};
use crate::reconcile::{GAP_BOUNDS, Gaps, Reconciler};

/// Writes the page.
pub fn render(reconciler: &Reconciler<Kernel>, meter: &Meter, reporter: &Reporter) -> String {
    let mut page = Page::default();
    page.head("netpol_packets_total", "counter", "Packets at a pod, by direction and reason.");
    for held in reconciler.held().values() {
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
                    page.value("netpol_packets_total", &labels, packets);
                }
            }
        }
    }
    suppressed(&mut page, reconciler, meter);
    let problems = reconciler.problems();
    page.head("netpol_map_capacity", "gauge", "Entries a map has room for.");
    for map in MapName::ALL {
        page.value("netpol_map_capacity", &[("map", map.name())], reconciler.dataplane().capacities().of(*map));
    }
    page.head("netpol_map_entries", "gauge", "Entries the agent wants in a map.");
    for (map, entries) in reconciler.entries() {
        page.value("netpol_map_entries", &[("map", map.name())], entries);
    }
    page.head("netpol_map_full_total", "counter", "Writes that found a map full.");
    for (map, count) in &problems.full {
        page.value("netpol_map_full_total", &[("map", map)], count);
    }
    left_out(&mut page, reconciler);
    let held = || reconciler.held().values().filter(|held| held.attached);
    let endpoints = held().filter(|held| held.pod.is_some() && !held.orphaned).count();
    let orphans = held().filter(|held| held.orphaned).count();
    let unknown = held().count() - endpoints - orphans;
    let (conflicts, secondary) = (reconciler.conflicts(), reconciler.secondary_interfaces());
    let policy_problems = reconciler.policy_problems();
    for (name, kind, help, value) in [
        ("netpol_map_missing_entries", "gauge", "Entries that could not be written yet.", problems.missing as u64),
        ("netpol_write_errors_total", "counter", "Writes that failed, full maps aside.", problems.failed),
        ("netpol_endpoints", "gauge", "Pods that are enforced.", endpoints as u64),
        ("netpol_endpoints_orphaned", "gauge", "Interfaces enforced as before, whose pod is gone.", orphans as u64),
        ("netpol_endpoints_unknown", "gauge", "Interfaces of no known pod, where all is dropped.", unknown as u64),
        (
            "netpol_pods_waiting",
            "gauge",
            "Pods of this node that are not enforced yet.",
            reconciler.pods_waiting() as u64,
        ),
        (
            "netpol_endpoint_conflicts",
            "gauge",
            "Interfaces that claim a pod or an address that another interface is bound to.",
            conflicts as u64,
        ),
        (
            "netpol_endpoints_secondary",
            "gauge",
            "Further interfaces of pods' namespaces, which policies do not apply to.",
            secondary as u64,
        ),
        ("netpol_policy_problems", "gauge", "What policies say that was not understood.", policy_problems as u64),
        ("netpol_denials_told_total", "counter", "Events of denied packets.", reporter.told()),
        (
            "netpol_events_lost_total",
            "counter",
            "Events that found the ring buffer full.",
            meter.counters.lost_events(),
        ),
        ("netpol_events_unwritten_total", "counter", "Events nobody read in time.", reporter.unwritten()),
        ("netpol_apply_batches_total", "counter", "Batches of changes enforced.", meter.batches),
    ] {
        page.head(name, kind, help);
        page.value(name, &[], value);
    }
    unlisted(&mut page, reconciler.unlisted_addresses());
    let name = "netpol_evaluating_seconds";
    page.head(name, "gauge", "For how long the changes that are being evaluated have been so far; 0: none are.");
    page.value(name, &[], reconciler.evaluating().unwrap_or_default().as_secs_f64());
    page.head("netpol_apply_seconds_total", "counter", "Time spent enforcing changes.");
    page.value("netpol_apply_seconds_total", &[], meter.applying.as_secs_f64());
    convergence(&mut page, &meter.convergence);
    if let Some(numbers) = reporter.kubernetes() {
        kube_events(&mut page, numbers);
    }
    gaps(&mut page, reconciler.gaps());
    super::source::render(&mut page, &meter.source);
    page.head("netpol_conflicts", "gauge", "What else enforces on this node, or is in netpol's way.");
    for kind in ConflictKind::ALL {
        page.value("netpol_conflicts", &[("kind", kind.name())], meter.conflicts.of(kind));
    }
    page.head("netpol_ready", "gauge", "Everything known at the start is enforced.");
    page.value("netpol_ready", &[], u8::from(meter.readiness == Readiness::Ready));
    page.text
}

fn unlisted(page: &mut Page, addresses: usize) {
    page.head("netpol_unlisted_addresses", "gauge", "Addresses of pods that their objects do not list.");
    page.value("netpol_unlisted_addresses", &[], addresses);
}

fn suppressed(page: &mut Page, reconciler: &Reconciler<Kernel>, meter: &Meter) {
    let name = "netpol_deny_events_suppressed_total";
    page.head(name, "counter", "Denied packets that no event stands for, as their pod's budget of events was spent.");
    for held in reconciler.held().values() {
        let Some(pod) = &held.pod else { continue };
        for direction in Direction::BOTH {
            let suppressed = meter.counters.suppressed(held.endpoint.id, direction).unwrap_or(0);
            let labels = [("namespace", &*pod.namespace), ("pod", &*pod.name), ("direction", direction.name())];
            if suppressed > 0 {
                page.value(name, &labels, suppressed);
            }
        }
    }
}

fn left_out(page: &mut Page, reconciler: &Reconciler<Kernel>) {
    page.head(
        "netpol_policy_left_out",
        "gauge",
        "Blocks, ports and map entries of a policy that exceed the memory for policies.",
    );
    for (policy, counts) in reconciler.left_out() {
        for (kind, count) in [("block", counts.blocks), ("port", counts.ports), ("entry", counts.entries)] {
            let labels = [("namespace", &*policy.namespace), ("policy", &*policy.name), ("kind", kind)];
            page.value("netpol_policy_left_out", &labels, count);
        }
    }
}

fn convergence(page: &mut Page, convergence: &Convergence) {
    for (name, help, value) in [
        ("netpol_generation", "The last batch of changes that is enforced.", convergence.enforced),
        ("netpol_generation_received", "The last batch of changes that was taken in.", convergence.received),
    ] {
        page.head(name, "gauge", help);
        page.value(name, &[], value.0);
    }
    let name = "netpol_last_change_timestamp_seconds";
    page.head(name, "gauge", "When the last batch of changes was taken in, since 1970.");
    page.value(name, &[], convergence.last_change.unwrap_or_default().as_secs_f64());
    let name = "netpol_convergence_seconds";
    page.head(name, "histogram", "Time from a batch of changes reaching the agent to its enforcement.");
    for (bound, count) in BOUNDS.iter().zip(convergence.buckets) {
        let bound = (f64::from(*bound) / 1e6).to_string();
        page.value(&format!("{name}_bucket"), &[("le", &bound)], count);
    }
    page.value(&format!("{name}_bucket"), &[("le", "+Inf")], convergence.count);
    page.value(&format!("{name}_sum"), &[], convergence.sum.as_secs_f64());
    page.value(&format!("{name}_count"), &[], convergence.count);
}

fn kube_events(page: &mut Page, numbers: &Numbers) {
    page.head("netpol_kube_events_total", "counter", "Events written to the API server, updates included.");
    page.value("netpol_kube_events_total", &[], numbers.published());
    let name = "netpol_kube_events_dropped_total";
    page.head(name, "counter", "What was to be an Event of the API server and is not told.");
    for why in Dropped::ALL {
        page.value(name, &[("why", why.name())], numbers.dropped(why));
    }
}

fn gaps(page: &mut Page, gaps: &Gaps) {
    let name = "netpol_unprotected_seconds";
    page.head(name, "histogram", "Time from an interface's appearance to its enforcement.");
    for (bound, count) in GAP_BOUNDS.iter().zip(gaps.buckets) {
        let bound = (f64::from(*bound) / 1e3).to_string();
        page.value(&format!("{name}_bucket"), &[("le", &bound)], count);
    }
    page.value(&format!("{name}_bucket"), &[("le", "+Inf")], gaps.count);
    page.value(&format!("{name}_sum"), &[], gaps.unprotected.as_secs_f64());
    page.value(&format!("{name}_count"), &[], gaps.count);
    page.head(
        "netpol_unprotected_packets_total",
        "counter",
        "Packets that interfaces passed while they were unprotected.",
    );
    page.value("netpol_unprotected_packets_total", &[], gaps.packets);
    page.head("netpol_attach_seconds", "summary", "Time to put the programs on an interface.");
    page.value("netpol_attach_seconds_sum", &[], gaps.attaching.as_secs_f64());
    page.value("netpol_attach_seconds_count", &[], gaps.attached);
}

/// A label's value without what a person cannot see, and then as the exposition format wants it: of its three characters, line
/// feeds are gone by then.
fn escaped(value: &str) -> String {
    Safe(value).to_string().replace('\\', "\\\\").replace('"', "\\\"")
}

#[derive(Debug, Default)]
pub(super) struct Page {
    pub(super) text: String,
}

impl Page {
    pub(super) fn head(&mut self, name: &str, kind: &str, help: &str) {
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
    fn labels_are_escaped_as_prometheus_reads_them() {
        let mut page = Page::default();
        page.value("x", &[("a", "plain"), ("b", "q\"\\\n\u{e9}\u{202e}'")], 1);
        assert_eq!(page.text, "x{a=\"plain\",b=\"q\\\"\\\\\\\\n\u{e9}\\\\u{202e}'\"} 1\n");
    }
}
