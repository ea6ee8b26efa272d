//! The source's numbers, and the page there is before the first objects.

use super::page::Page;
use crate::source::SourceState;

/// The page while the source has not told everything yet.
pub fn render_waiting(source: &SourceState) -> String {
    let mut page = Page::default();
    render(&mut page, source);
    page.head("netpol_ready", "gauge", "Everything known at the start is enforced.");
    page.value("netpol_ready", &[], 0);
    page.text
}

/// Nothing where the source has no kinds of its own.
pub(super) fn render(page: &mut Page, source: &SourceState) {
    let kinds = source.kinds();
    if kinds.is_empty() {
        return;
    }
    page.head("netpol_source_in_sync", "gauge", "What is known of this kind follows what the API server has.");
    for (name, kind) in &kinds {
        page.value("netpol_source_in_sync", &[("kind", name)], u8::from(kind.in_sync));
    }
    page.head("netpol_source_objects", "gauge", "Objects known of this kind.");
    for (name, kind) in &kinds {
        page.value("netpol_source_objects", &[("kind", name)], kind.objects);
    }
    page.head("netpol_source_relists_total", "counter", "Full lists after the first.");
    for (name, kind) in &kinds {
        page.value("netpol_source_relists_total", &[("kind", name)], kind.relists);
    }
    page.head("netpol_source_errors_total", "counter", "Requests and watches that failed, by HTTP status or reason.");
    for (name, kind) in &kinds {
        for (reason, count) in &kind.errors {
            page.value("netpol_source_errors_total", &[("kind", name), ("reason", reason)], count);
        }
    }
    page.head("netpol_source_heard_seconds", "gauge", "Time since anything came of this kind, bookmarks included.");
    for (name, kind) in &kinds {
        if let Some(last_received) = kind.last_received {
            page.value("netpol_source_heard_seconds", &[("kind", name)], last_received.elapsed().as_secs_f64());
        }
    }
}
