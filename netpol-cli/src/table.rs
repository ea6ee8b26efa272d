//! A matrix for people: numbered rows and columns, grouped by namespace, in blocks that fit the terminal.

use std::fmt::Write as _;
use std::io::{self, Write};

use netpol_policy::explain::Family;
use netpol_policy::reference::End;
use netpol_policy::text::Safe;

use crate::color::Color;
use crate::verdict::Sides;

/// What a cell without verdict means; said where there is one.
pub(crate) const NO_COMMON_FAMILY: &str = "    - no address family in common";

/// What the cells of dual-stack pods mean; printed if there are any.
pub(crate) const ONE_FAMILY: &str = "    4 allowed by IPv4 only    6 allowed by IPv6 only";

/// What the cells mean.
pub(crate) const LEGEND: &str =
    "rows: from, columns: to    + allowed    e denied by egress    i denied by ingress    x denied by both";

/// Columns of the terminal, or none where output goes elsewhere.
pub(crate) fn terminal_width() -> Option<usize> {
    terminal_size::terminal_size().map(|(width, _)| usize::from(width.0))
}

/// Prints one table: `cells` row by row, as many as `ends` squared.
pub(crate) fn print(
    out: &mut impl Write,
    title: &str,
    ends: &[End],
    cells: &[Option<Sides>],
    color: Color,
    width: Option<usize>,
) -> io::Result<()> {
    let digits = ends.len().to_string().len();
    let longest = ends.iter().map(|end| name(end).chars().count()).max().unwrap_or(0);
    // Half of a narrow terminal is for the columns at least.
    let names = width.map_or(longest, |width| longest.min((width / 2).saturating_sub(digits + 3)).max(4));
    let margin = 2 + digits + 1 + names;
    let per_block = width.map_or(ends.len(), |width| (width.saturating_sub(margin + 2) / (digits + 1)).max(1));
    for first in (0..ends.len()).step_by(per_block) {
        let block = first..ends.len().min(first + per_block);
        let mut header = format!("{title:<margin$}");
        for to in block.clone() {
            let gap = if starts_group(ends, to, block.start) { "  " } else { " " };
            let _ = write!(header, "{gap}{:>digits$}", to + 1);
        }
        writeln!(out, "{}", header.trim_end())?;
        for (from, end) in ends.iter().enumerate() {
            if starts_group(ends, from, 0) {
                writeln!(out, "{}", Safe(group(end)))?;
            }
            let mut line = format!("  {:>digits$} {:<names$}", from + 1, shorten(&name(end), names));
            for to in block.clone() {
                let gap = if starts_group(ends, to, block.start) { "  " } else { " " };
                let (letter, allowed) = cell(cells[from * ends.len() + to]);
                let padding = " ".repeat(digits - 1);
                let _ = write!(line, "{gap}{padding}{}", color.verdict(allowed, letter));
            }
            writeln!(out, "{line}")?;
        }
        writeln!(out)?;
    }
    Ok(())
}

fn cell(sides: Option<Sides>) -> (&'static str, bool) {
    match sides {
        None => ("-", false),
        Some(Sides { only: Some(Family::V4), .. }) => ("4", false),
        Some(Sides { only: Some(Family::V6), .. }) => ("6", false),
        Some(Sides { egress: true, ingress: true, .. }) => ("+", true),
        Some(Sides { egress: false, ingress: true, .. }) => ("e", false),
        Some(Sides { egress: true, ingress: false, .. }) => ("i", false),
        Some(Sides { egress: false, ingress: false, .. }) => ("x", false),
    }
}

/// The heading above an end's rows.
fn group(end: &End) -> &str {
    match end {
        End::Pod(key) => &key.namespace,
        End::Address(_) => "(addresses)",
        End::Service(_) => "(Services)",
    }
}

fn starts_group(ends: &[End], index: usize, first: usize) -> bool {
    index == first || group(&ends[index]) != group(&ends[index - 1])
}

fn name(end: &End) -> String {
    match end {
        End::Pod(key) => Safe(&key.name).to_string(),
        End::Address(address) => address.to_string(),
        End::Service(key) => Safe(key).to_string(),
    }
}

/// Cut in the middle: the ends of pods' names tell them apart.
fn shorten(name: &str, width: usize) -> String {
    let length = name.chars().count();
    if length <= width {
        return name.to_owned();
    }
    let tail = (width - 1).div_ceil(2);
    let head = width - 1 - tail;
    name.chars().take(head).chain(['…']).chain(name.chars().skip(length - tail)).collect()
}

#[cfg(test)]
mod tests {
    use netpol_policy::model::PodKey;

    use super::*;

    #[test]
    fn long_names_keep_their_ends() {
        assert_eq!(shorten("frontend-7d9c-x2x4", 9), "fron…x2x4");
        assert_eq!(shorten("web", 9), "web");
    }

    #[test]
    fn a_narrow_terminal_gets_blocks_of_columns() {
        let ends: Vec<End> = (0..30).map(|i| End::Pod(PodKey::new("shop", format!("pod-{i}")))).collect();
        let cells = vec![None; ends.len() * ends.len()];
        let mut out = Vec::new();
        print(&mut out, "80/TCP", &ends, &cells, Color::NEVER, Some(60)).expect("memory takes it");
        let text = String::from_utf8(out).expect("text");
        assert!(text.lines().all(|line| line.chars().count() <= 60), "{text}");
        assert_eq!(text.matches("80/TCP").count(), 2);
    }
}
