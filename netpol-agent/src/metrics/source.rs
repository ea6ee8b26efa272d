//! Metrics of the source, and the metrics before the first objects.

use super::page::MetricsText;
use netpol_source::SourceState;

/// Returns the metrics while the source has not sent its first objects.
pub fn render_waiting(source: &SourceState) -> String {
    let mut metrics = MetricsText::default();
    render(&mut metrics, source);
    metrics.header("netpol_ready", "gauge", "1 if everything known at the start is enforced, else 0.");
    metrics.value("netpol_ready", &[], 0);
    metrics.text
}

/// Writes the metrics of a source that has kinds of objects.
pub(super) fn render(metrics: &mut MetricsText, source: &SourceState) {
    let kinds = source.kinds();
    if kinds.is_empty() {
        return;
    }
    metrics.header(
        "netpol_source_in_sync",
        "gauge",
        "1 if the objects of this kind are in sync with the API server, else 0.",
    );
    for (name, kind) in &kinds {
        metrics.value("netpol_source_in_sync", &[("kind", name)], u8::from(kind.in_sync));
    }
    metrics.header("netpol_source_objects", "gauge", "Number of known objects of this kind.");
    for (name, kind) in &kinds {
        metrics.value("netpol_source_objects", &[("kind", name)], kind.objects);
    }
    metrics.header("netpol_source_relists_total", "counter", "Number of full lists after the first one.");
    for (name, kind) in &kinds {
        metrics.value("netpol_source_relists_total", &[("kind", name)], kind.relists);
    }
    metrics.header(
        "netpol_source_errors_total",
        "counter",
        "Number of failed requests and watches, by HTTP status or reason.",
    );
    for (name, kind) in &kinds {
        for (reason, count) in &kind.errors {
            metrics.value("netpol_source_errors_total", &[("kind", name), ("reason", reason)], count);
        }
    }
    metrics.header(
        "netpol_source_last_event_age_seconds",
        "gauge",
        "Time since the last watch event of this kind, including bookmarks.",
    );
    for (name, kind) in &kinds {
        if let Some(received) = kind.last_received {
            metrics.value("netpol_source_last_event_age_seconds", &[("kind", name)], received.elapsed().as_secs_f64());
        }
    }
}
