//! Unified diffs with one hunk.

use std::fmt::Write;
use std::ops::Range;

use crate::manifest::FileText;

/// The number of unchanged lines around a change.
const CONTEXT: usize = 3;

/// Returns a diff that replaces lines of a file. `None` if nothing changes, or if the diff would include a last line
/// without a line break.
pub(super) fn diff(file: &str, text: &FileText, replaced: Range<usize>, new: &[String]) -> Option<String> {
    let old: Vec<&str> = text.lines(replaced.clone()).collect();
    let prefix = old.iter().zip(new).take_while(|(old, new)| **old == **new).count();
    let rest = old.len().min(new.len()) - prefix;
    let suffix = old.iter().rev().zip(new.iter().rev()).take(rest).take_while(|(old, new)| **old == **new).count();
    let (removed, added) = (&old[prefix..old.len() - suffix], &new[prefix..new.len() - suffix]);
    if removed.is_empty() && added.is_empty() {
        return None;
    }
    let start = replaced.start + prefix;
    let first = start.saturating_sub(CONTEXT);
    let end = start + removed.len();
    let last = (end + CONTEXT).min(text.count());
    let (old_count, new_count) = (last - first, last - first - removed.len() + added.len());
    if last == text.count() && !text.ends_with_line_break() {
        // A last line without a line break needs a marker in a diff. This function does not write this marker.
        return None;
    }
    let mut diff = format!("--- {file}\n+++ {file}\n@@ -{},{old_count} +{},{new_count} @@\n", first + 1, first + 1);
    let before = text.lines(first..start).map(|line| (' ', line));
    let removed = removed.iter().map(|line| ('-', *line));
    let added = added.iter().map(|line| ('+', line.as_str()));
    let after = text.lines(end..last).map(|line| (' ', line));
    for (sign, line) in before.chain(removed).chain(added).chain(after) {
        // Writing to a string does not fail.
        let _ = writeln!(diff, "{sign}{line}");
    }
    Some(diff)
}
