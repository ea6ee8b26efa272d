//! Metrics of the exports of flow records.

use super::table::{Table, append, counter};
use crate::export::{DropReason, Exporters};

/// Metrics with `--flow-export`.
const EXPORTS: Table<Exporters> = &[
    counter(
        "netpol_flow_export_records_total",
        "Number of flow records that were written to a file or accepted by a collector, by target.",
        |exporters, samples| {
            samples.each("target", exporters.counters().map(|(name, counters)| (name, counters.exported())));
        },
    ),
    counter(
        "netpol_flow_export_dropped_total",
        "Number of flow records that were not exported, by target and reason.",
        |exporters, samples| {
            for (target, counters) in exporters.counters() {
                for reason in DropReason::ALL {
                    samples.labeled(&[("target", target), ("reason", reason.name())], counters.dropped(reason));
                }
            }
        },
    ),
];

/// Appends the metrics of the exports.
pub(super) fn append_exports(text: &mut String, exporters: &Exporters) {
    append(text, EXPORTS, exporters);
}
