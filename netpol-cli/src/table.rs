//! Prints the table of `netpol matrix` as text: with numbered rows and columns, grouped by namespace. If the columns do
//! not fit the terminal, they are split into blocks. Also has functions for other text output.

use std::fmt::{self, Write as _};
use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use netpol_api::format_duration;
use netpol_policy::explain::{Family, Verdict};
use netpol_policy::text::{Safe, wrap};

use crate::color::ColorMode;
use crate::verdict::Sides;

/// The legend of cells without a verdict: both ends have no address family in common. It is printed only if there are
/// such cells.
pub(crate) const NO_COMMON_FAMILY: &str = "    - no address family in common";

/// The legend of cells that filters exclude. It is printed only if there are such cells.
pub(crate) const NOT_SHOWN: &str = "    . not shown";

/// The legend of cells for dual-stack pods that can connect in one address family only. It is printed only if there are
/// such cells.
pub(crate) const ONE_FAMILY: &str = "    4 allowed by IPv4 only    6 allowed by IPv6 only";

/// The legend of cells with an unknown verdict. It is printed only if there are such cells.
pub(crate) const UNKNOWN: &str = "    ? unknown: see netpol explain";

/// The legend of all other cells.
pub(crate) const LEGEND: &str =
    "rows: from, columns: to    + allowed    e denied by egress    i denied by ingress    x denied by both";

/// The width of text if standard output is not a terminal.
const DEFAULT_WIDTH: usize = 80;

/// Returns the width of the terminal that standard output, error or input is connected to; `None` without a terminal.
pub(crate) fn terminal_width() -> Option<usize> {
    terminal_size::terminal_size().map(|(width, _)| usize::from(width.0))
}

/// Returns the width at which text is wrapped.
pub(crate) fn text_width() -> usize {
    if std::io::stdout().is_terminal() { terminal_width().unwrap_or(DEFAULT_WIDTH) } else { DEFAULT_WIDTH }
}

/// Prints a paragraph. Its text is wrapped at a width and escaped.
pub(crate) fn paragraph(
    out: &mut (impl Write + ?Sized),
    text: impl fmt::Display,
    width: usize,
    indent: usize,
) -> io::Result<()> {
    wrap(text, width, indent).into_iter().try_for_each(|line| writeln!(out, "{line}"))
}

/// A cell of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cell {
    Verdict(Sides),
    NoCommonFamily,
    /// Excluded by a filter.
    NotShown,
}

impl Cell {
    pub(crate) const fn sides(self) -> Option<Sides> {
        if let Self::Verdict(sides) = self { Some(sides) } else { None }
    }
}

/// The heading of a row, and of the column with the same number.
#[derive(Clone, Debug)]
pub(crate) struct Heading {
    /// The group, such as the namespace. Its name is printed above its first row.
    pub(crate) group: String,
    /// The name of the row.
    pub(crate) name: String,
}

/// Prints one table. `headings`: those of the rows, and also of the columns. `cells` has the cells of the first row,
/// then those of the second row, and so on. `width`: the width of the terminal; `None`: no limit.
pub(crate) fn print(
    out: &mut impl Write,
    title: &str,
    headings: &[Heading],
    cells: &[Cell],
    color: ColorMode,
    width: Option<usize>,
) -> io::Result<()> {
    if headings.is_empty() {
        return writeln!(out, "{title}: no connection to show\n");
    }
    let digits = headings.len().to_string().len();
    let longest = headings.iter().map(|heading| heading.name.chars().count()).max().unwrap_or(0);
    // On a narrow terminal, the columns of verdicts get at least half of the width.
    let name_width = width.map_or(longest, |width| longest.min((width / 2).saturating_sub(digits + 3)).max(4));
    // The number of characters before the verdicts.
    let margin = 2 + digits + 1 + name_width;
    let per_block = width.map_or(headings.len(), |width| (width.saturating_sub(margin + 2) / (digits + 1)).max(1));
    for first in (0..headings.len()).step_by(per_block) {
        let block = first..headings.len().min(first + per_block);
        let mut header = format!("{title:<margin$}");
        for to in block.clone() {
            let gap = if starts_group(headings, to, block.start) { "  " } else { " " };
            let _ = write!(header, "{gap}{:>digits$}", to + 1);
        }
        writeln!(out, "{}", header.trim_end())?;
        for (from, heading) in headings.iter().enumerate() {
            if starts_group(headings, from, 0) {
                writeln!(out, "{}", Safe(&heading.group))?;
            }
            let mut line = format!("  {:>digits$} {:<name_width$}", from + 1, shorten(&heading.name, name_width));
            for to in block.clone() {
                let gap = if starts_group(headings, to, block.start) { "  " } else { " " };
                let (character, verdict) = symbol(cells[from * headings.len() + to]);
                let padding = " ".repeat(digits - 1);
                let _ = write!(line, "{gap}{padding}{}", color.verdict(verdict, character));
            }
            writeln!(out, "{line}")?;
        }
        writeln!(out)?;
    }
    Ok(())
}

/// Returns the character of a cell, and a verdict for its color.
fn symbol(cell: Cell) -> (&'static str, Verdict) {
    let sides = match cell {
        Cell::Verdict(sides) => sides,
        Cell::NoCommonFamily => return ("-", Verdict::Deny),
        Cell::NotShown => return (".", Verdict::Deny),
    };
    let is_denied = |verdict| verdict == Verdict::Deny;
    let character = match sides {
        Sides { only_family: Some(Family::V4), .. } => "4",
        Sides { only_family: Some(Family::V6), .. } => "6",
        _ => match (is_denied(sides.egress), is_denied(sides.ingress)) {
            (true, true) => "x",
            (true, false) => "e",
            (false, true) => "i",
            (false, false) if sides.verdict() == Verdict::Unknown => "?",
            (false, false) => "+",
        },
    };
    (character, if character == "+" || character == "?" { sides.verdict() } else { Verdict::Deny })
}

/// Returns whether `index` is the first row or column of its group in a block. `first`: the first index of the block.
fn starts_group(headings: &[Heading], index: usize, first: usize) -> bool {
    index == first || headings[index].group != headings[index - 1].group
}

/// Returns text such as `1 warning` or `2 warnings`.
pub(crate) fn counted(count: usize, noun: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {noun}{plural}")
}

/// Returns the same as [`counted`], for another type of number.
pub(crate) fn counted_u64(count: u64, noun: &str) -> String {
    counted(usize::try_from(count).unwrap_or(usize::MAX), noun)
}

/// Returns text such as `1h`, `5m` or `90s`.
pub(crate) fn time_span(duration: Duration) -> String {
    match duration.as_secs() {
        seconds if duration.subsec_millis() != 0 || seconds == 0 => format_duration(duration),
        seconds if seconds.is_multiple_of(3_600) => format!("{}h", seconds / 3_600),
        seconds if seconds.is_multiple_of(60) => format!("{}m", seconds / 60),
        seconds => format!("{seconds}s"),
    }
}

/// Shortens a name in its middle, because the names of a workload's pods differ at the end.
pub(crate) fn shorten(name: &str, width: usize) -> String {
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
    use super::*;

    #[test]
    fn long_names_are_shortened_in_the_middle() {
        assert_eq!(shorten("frontend-7d9c-x2x4", 9), "fron…x2x4");
        assert_eq!(shorten("web", 9), "web");
    }

    #[test]
    fn time_spans_have_the_largest_unit_without_a_remainder() {
        for (milliseconds, text) in [(3_600_000, "1h"), (300_000, "5m"), (90_000, "90s"), (1_500, "1500ms"), (0, "0s")]
        {
            assert_eq!(time_span(Duration::from_millis(milliseconds)), text);
        }
    }

    #[test]
    fn columns_are_split_into_blocks_on_a_narrow_terminal() {
        let headings: Vec<Heading> =
            (0..30).map(|i| Heading { group: "shop".to_owned(), name: format!("pod-{i}") }).collect();
        let cells = vec![Cell::NotShown; headings.len() * headings.len()];
        let mut out = Vec::new();
        print(&mut out, "80/TCP", &headings, &cells, ColorMode::NEVER, Some(60)).expect("writing to memory");
        let text = String::from_utf8(out).expect("text");
        assert!(text.lines().all(|line| line.chars().count() <= 60), "{text}");
        assert_eq!(text.matches("80/TCP").count(), 2);
    }
}
