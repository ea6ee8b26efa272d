//! Tables with a heading for each column. On a terminal, a table is not wider than the terminal: long cells are
//! shortened in the middle, and the least important columns are omitted.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};

use netpol_policy::text::Safe;

use crate::color::ColorMode;
use crate::table::{shorten, terminal_width, text_width};

/// The spaces between columns.
const GAP: usize = 2;
/// The smallest width to which a cell is shortened, in a column that is always shown.
const MIN_WIDTH: usize = 24;
/// The smallest width to which a cell is shortened, in a column that can be omitted.
const MIN_OPTIONAL_WIDTH: usize = 16;

/// The meaning of a cell, and so its color.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tone {
    /// Green.
    Good,
    /// Yellow.
    Notice,
    /// Red.
    Bad,
}

/// How tables, and paragraphs below them, are printed.
#[derive(Clone, Copy)]
pub(crate) struct Style {
    /// The width of tables; `None`: no limit.
    pub(crate) table: Option<usize>,
    /// The width of paragraphs.
    pub(crate) text: usize,
    pub(crate) color: ColorMode,
}

impl Style {
    /// Returns the style for standard output.
    pub(crate) fn detect() -> Self {
        Self { table: table_width(), text: text_width(), color: ColorMode::detect() }
    }
}

/// A column.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Column {
    title: &'static str,
    /// Whether cells are numbers. Numbers are aligned at the right and never shortened.
    is_number: bool,
    /// The column with the highest rank is omitted first. Columns with rank 0 are never omitted.
    rank: usize,
}

/// Returns a column of text that is always shown.
pub(crate) const fn text(title: &'static str) -> Column {
    Column { title, is_number: false, rank: 0 }
}

/// Returns a column of numbers that is always shown.
pub(crate) const fn number(title: &'static str) -> Column {
    Column { title, is_number: true, rank: 0 }
}

impl Column {
    /// Returns the smallest width of a column, given the width of its longest cell.
    fn min_width(self, longest: usize) -> usize {
        match (self.is_number, self.rank) {
            (true, _) => longest,
            (false, 0) => longest.min(MIN_WIDTH),
            (false, _) => longest.min(MIN_OPTIONAL_WIDTH),
        }
    }

    /// Returns a column that is omitted if there is no room. Columns with a higher rank are omitted first.
    pub(crate) const fn optional(self, rank: usize) -> Self {
        Self { rank, ..self }
    }
}

/// A cell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TextCell {
    text: String,
    tone: Option<Tone>,
}

impl TextCell {
    /// Returns a cell in the color of `tone`.
    pub(crate) fn toned(text: impl std::fmt::Display, tone: Option<Tone>) -> Self {
        Self { text: Safe(text).to_string(), tone }
    }
}

impl<T: std::fmt::Display> From<T> for TextCell {
    fn from(text: T) -> Self {
        Self::toned(text, None)
    }
}

/// A table.
#[derive(Debug)]
pub(crate) struct TextTable {
    columns: Vec<Column>,
    rows: Vec<Vec<TextCell>>,
}

impl TextTable {
    pub(crate) fn new(columns: &[Column]) -> Self {
        Self { columns: columns.to_vec(), rows: Vec::new() }
    }

    /// Adds a row with a cell for each column.
    pub(crate) fn add_row<const N: usize>(&mut self, cells: [TextCell; N]) {
        debug_assert_eq!(N, self.columns.len(), "the row does not have one cell for each column");
        self.rows.push(cells.into());
    }

    /// Prints the table. If `width` is `None`, all columns and cells are printed in full.
    pub(crate) fn print(&self, out: &mut impl Write, width: Option<usize>, color: ColorMode) -> io::Result<()> {
        let layout = self.layout(width);
        let titles = layout.iter().map(|&(index, width)| (self.columns[index], self.columns[index].title, width, None));
        print_line(out, titles, ColorMode::NEVER)?;
        for row in &self.rows {
            let cells = layout.iter().map(|&(index, width)| {
                let TextCell { text, tone } = &row[index];
                (self.columns[index], text.as_str(), width, *tone)
            });
            print_line(out, cells, color)?;
        }
        Ok(())
    }

    /// Returns the indices of the columns to print, with their widths.
    fn layout(&self, width: Option<usize>) -> Vec<(usize, usize)> {
        let mut columns: Vec<(usize, usize)> =
            (0..self.columns.len()).map(|index| (index, self.longest_cell(index))).collect();
        let Some(width) = width else { return columns };
        let min_width = |&(index, longest): &(usize, usize)| self.columns[index].min_width(longest);
        let total = |widths: &mut dyn Iterator<Item = usize>| {
            let (sum, count) = widths.fold((0, 0), |(sum, count), width| (sum + width, count + 1));
            sum + GAP * usize::saturating_sub(count, 1)
        };
        while total(&mut columns.iter().map(min_width)) > width {
            let optional = columns.iter().filter(|(index, _)| self.columns[*index].rank > 0);
            let Some(&(omitted, _)) = optional.max_by_key(|(index, _)| self.columns[*index].rank) else { break };
            columns.retain(|(index, _)| *index != omitted);
        }
        while total(&mut columns.iter().map(|(_, width)| *width)) > width {
            let can_shrink = |(index, width): &&mut (usize, usize)| *width > self.columns[*index].min_width(*width);
            let widest = columns.iter_mut().filter(can_shrink).max_by_key(|(_, width)| *width);
            let Some((_, widest)) = widest else { break };
            *widest -= 1;
        }
        columns
    }

    /// Returns the width of the longest cell of a column, or of its title if that is longer.
    fn longest_cell(&self, index: usize) -> usize {
        let cells = self.rows.iter().map(|row| row[index].text.chars().count());
        cells.max().unwrap_or(0).max(self.columns[index].title.chars().count())
    }
}

/// Prints the cells of a line, without spaces at its end.
fn print_line<'a>(
    out: &mut impl Write,
    cells: impl Iterator<Item = (Column, &'a str, usize, Option<Tone>)>,
    color: ColorMode,
) -> io::Result<()> {
    // Spaces are written only if a cell with text follows.
    let (mut text, mut pending_spaces) = (String::new(), 0);
    for (index, (column, cell, width, tone)) in cells.enumerate() {
        let cell = shorten(cell, width);
        let padding = width - cell.chars().count();
        let gap = if index == 0 { 0 } else { GAP };
        let (before, after) = if column.is_number { (padding, 0) } else { (0, padding) };
        if cell.is_empty() {
            pending_spaces += gap + padding;
        } else {
            text.extend(std::iter::repeat_n(' ', pending_spaces + gap + before));
            text.push_str(&color.tone(tone, &cell));
            pending_spaces = after;
        }
    }
    writeln!(out, "{text}")
}

/// Returns the width of the terminal; `None` if standard output is not a terminal.
pub(crate) fn table_width() -> Option<usize> {
    io::stdout().is_terminal().then(terminal_width).flatten()
}

/// Returns the first items of a list, and the number of the others: `a, b +3`.
pub(crate) fn some_of(items: &[String], shown: usize) -> String {
    some_of_all(items, items.len(), shown)
}

/// Same as [`some_of`], for a list of which `items` has only the first ones. `all`: the number of items in the whole
/// list.
pub(crate) fn some_of_all(items: &[String], all: usize, shown: usize) -> String {
    let mut text = items.iter().take(shown).cloned().collect::<Vec<_>>().join(", ");
    let rest = all.saturating_sub(items.len().min(shown));
    if rest > 0 {
        // Writing to a string does not fail.
        let _ = write!(text, " +{rest}");
    }
    text
}

#[cfg(test)]
#[expect(clippy::needless_raw_string_hashes, reason = "expect-test writes them")]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    fn table() -> TextTable {
        let mut table = TextTable::new(&[
            text("POD"),
            text("NODE").optional(1),
            text("ADDRESS").optional(2),
            text("STATE"),
            number("FLOWS"),
        ]);
        table.add_row(["shop/web-0".into(), "n1".into(), "10.0.0.1".into(), "enforced".into(), 7.into()]);
        table.add_row([
            "very-long-namespace-of-a-team/frontend-with-a-long-name-7d9c5b6f4-x2x4q".into(),
            "ip-10-0-113-27.eu-central-1.compute.internal".into(),
            "2001:db8:1234:5678:9abc:def0:1234:5678".into(),
            TextCell::toned("CONFLICT", Some(Tone::Bad)),
            12_345_678.into(),
        ]);
        table
    }

    fn check(table: &TextTable, width: Option<usize>, color: ColorMode, expected: &Expect) {
        let mut out = Vec::new();
        table.print(&mut out, width, color).expect("writing to memory");
        expected.assert_eq(&String::from_utf8(out).expect("text"));
    }

    #[test]
    fn a_narrow_table_omits_columns_and_shortens_cells() {
        check(
            &table(),
            Some(80),
            ColorMode::NEVER,
            &expect![[r#"
                POD                       NODE              ADDRESS           STATE        FLOWS
                shop/web-0                n1                10.0.0.1          enforced         7
                very-long-n…c5b6f4-x2x4q  ip-10-0…internal  2001:db…234:5678  CONFLICT  12345678
            "#]],
        );
        check(
            &table(),
            Some(40),
            ColorMode::NEVER,
            &expect![[r#"
                POD                       STATE        FLOWS
                shop/web-0                enforced         7
                very-long-n…c5b6f4-x2x4q  CONFLICT  12345678
            "#]],
        );
    }

    #[test]
    fn a_wide_table_and_a_table_without_a_terminal_have_all_columns() {
        check(
            &table(),
            Some(200),
            ColorMode::NEVER,
            &expect![[r#"
            POD                                                                      NODE                                          ADDRESS                                 STATE        FLOWS
            shop/web-0                                                               n1                                            10.0.0.1                                enforced         7
            very-long-namespace-of-a-team/frontend-with-a-long-name-7d9c5b6f4-x2x4q  ip-10-0-113-27.eu-central-1.compute.internal  2001:db8:1234:5678:9abc:def0:1234:5678  CONFLICT  12345678
        "#]],
        );
        let mut out = Vec::new();
        table().print(&mut out, None, ColorMode::ALWAYS).expect("writing to memory");
        let text = String::from_utf8(out).expect("text");
        assert!(text.ends_with("  \x1b[31mCONFLICT\x1b[0m  12345678\n"), "{text}");
        // Colors do not move columns.
        let plain = text.replace("\x1b[31m", "").replace("\x1b[0m", "");
        let widths: Vec<usize> = plain.lines().map(|line| line.chars().count()).collect();
        assert!(widths.iter().all(|width| *width == widths[0]), "{widths:?}");
    }

    #[test]
    fn an_empty_table_has_only_its_heading() {
        check(
            &TextTable::new(&[text("POD"), number("FLOWS")]),
            Some(80),
            ColorMode::NEVER,
            &expect![[r#"
            POD  FLOWS
        "#]],
        );
    }

    #[test]
    fn no_line_of_a_large_table_is_wider_than_the_terminal() {
        let mut table = TextTable::new(&[text("A"), text("B"), number("C").optional(1), text("D").optional(2)]);
        for row in 0..10_000 {
            let name = |length: usize| "x".repeat(row % length);
            table.add_row([name(70).into(), name(97).into(), row.into(), name(13).into()]);
        }
        for width in [60, 80, 200] {
            let mut out = Vec::new();
            table.print(&mut out, Some(width), ColorMode::NEVER).expect("writing to memory");
            let text = String::from_utf8(out).expect("text");
            assert_eq!(text.lines().count(), 10_001);
            assert!(text.lines().all(|line| line.chars().count() <= width), "{width} columns");
        }
    }
}
