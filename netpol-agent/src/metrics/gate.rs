//! Metrics of the start gate.

use super::table::{Table, append, counter, gauge, histogram};
use crate::gate::{BOUNDS, GateStats};

const GATE: Table<GateStats> = &[
    gauge(
        "netpol_start_gate_connected",
        "1 if the container runtime is connected with NRI, or its CNI configuration contains netpol-cni.",
        |gate, samples| {
            let (mode, connected) = gate.mode();
            samples.labeled(&[("mode", mode)], u8::from(connected));
        },
    ),
    counter(
        "netpol_pod_starts_total",
        "Number of pod starts that were reported to the start gate, by path (NRI or CNI) and outcome.",
        |gate, samples| {
            for ((via, outcome), count) in gate.starts() {
                samples.labeled(&[("via", via), ("outcome", outcome.name())], count);
            }
        },
    ),
    histogram("netpol_pod_start_seconds", "Time for which the start of a pod was delayed.", |gate, samples| {
        let times = gate.times();
        let bounds = BOUNDS.iter().map(|millis| f64::from(*millis) / 1e3);
        samples.histogram(bounds.zip(times.buckets), times.sum, times.count);
    }),
];

/// Returns the metrics of the gate.
pub fn render_gate(gate: &GateStats) -> String {
    let mut text = String::new();
    append(&mut text, GATE, gate);
    text
}
