//! Metrics of the start gate.

use super::page::MetricsText;
use crate::gate::{BOUNDS, GateStats};

/// Returns the metrics of the gate.
pub fn render_gate(gate: &GateStats) -> String {
    let mut metrics = MetricsText::default();
    let (mode, connected) = gate.mode();
    let name = "netpol_start_gate_connected";
    metrics.header(
        name,
        "gauge",
        "1 if the container runtime is connected to the start gate, or calls the CNI plugin.",
    );
    metrics.value(name, &[("mode", mode)], u8::from(connected || mode == "cni"));
    let name = "netpol_pod_starts_total";
    metrics.header(name, "counter", "Number of pod starts that were held, by way and outcome.");
    for ((via, outcome), count) in gate.starts() {
        metrics.value(name, &[("via", via), ("outcome", outcome.name())], count);
    }
    let name = "netpol_pod_start_seconds";
    let times = gate.times();
    metrics.header(name, "histogram", "Time for which the start of a pod was held.");
    for (bound, count) in BOUNDS.iter().zip(times.buckets) {
        let bound = (f64::from(*bound) / 1e3).to_string();
        metrics.value(&format!("{name}_bucket"), &[("le", &bound)], count);
    }
    metrics.value(&format!("{name}_bucket"), &[("le", "+Inf")], times.count);
    metrics.value(&format!("{name}_sum"), &[], times.sum.as_secs_f64());
    metrics.value(&format!("{name}_count"), &[], times.count);
    metrics.text
}
