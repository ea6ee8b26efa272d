//! Metrics of the source of objects (an API server or a directory). Until the source has sent its first objects, only
//! these metrics and those of the start gate exist.

use std::collections::BTreeMap;

use netpol_source::{KindState, SourceState};

use super::table::{Table, append, counter, gauge};
use crate::api::Readiness;

type Kinds = BTreeMap<&'static str, KindState>;

/// Metrics for each kind of objects. If the source is a directory, there are no kinds and none of these metrics.
const KINDS: Table<Kinds> = &[
    gauge(
        "netpol_source_in_sync",
        "1 if the objects of this kind are in sync with the API server, else 0.",
        |kinds, samples| samples.each("kind", kinds.iter().map(|(name, kind)| (*name, u8::from(kind.in_sync)))),
    ),
    gauge("netpol_source_objects", "Number of known objects of this kind.", |kinds, samples| {
        samples.each("kind", kinds.iter().map(|(name, kind)| (*name, kind.objects)));
    }),
    counter("netpol_source_relists_total", "Number of full lists after the first one.", |kinds, samples| {
        samples.each("kind", kinds.iter().map(|(name, kind)| (*name, kind.relists)));
    }),
    counter(
        "netpol_source_errors_total",
        "Number of failed requests and watches, by HTTP status or reason.",
        |kinds, samples| {
            for (name, kind) in kinds {
                for (reason, count) in &kind.errors {
                    samples.labeled(&[("kind", name), ("reason", reason)], count);
                }
            }
        },
    ),
    gauge(
        "netpol_source_last_event_age_seconds",
        "Time since the last watch event of this kind, including bookmarks.",
        |kinds, samples| {
            let received = kinds.iter().filter_map(|(name, kind)| Some((*name, kind.last_received?)));
            samples.each("kind", received.map(|(name, at)| (name, at.elapsed().as_secs_f64())));
        },
    ),
];

const READY: Table<Readiness> =
    &[gauge("netpol_ready", "1 if everything known at the start is enforced, else 0.", |readiness, samples| {
        samples.value(u8::from(*readiness == Readiness::Ready));
    })];

/// Returns the metrics for the time in which the source has not sent its first objects.
pub fn render_waiting(source: &SourceState) -> String {
    let mut text = String::new();
    append_source(&mut text, source, &Readiness::Starting);
    text
}

/// Appends the metrics of the source, and whether the agent is ready.
pub(super) fn append_source(text: &mut String, source: &SourceState, readiness: &Readiness) {
    append(text, KINDS, &source.kinds());
    append(text, READY, readiness);
}
