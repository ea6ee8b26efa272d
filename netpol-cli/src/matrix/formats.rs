//! Prints the list of connections as text, CSV, Markdown, DOT and Mermaid.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};

use netpol_policy::text::{Safe, wrap};

use super::groups::Group;
use super::list::{List, Row};

/// The smallest width of a column of the table.
const MIN_COLUMN: usize = 12;

/// Prints the rows as three columns that fit the width.
pub(super) fn table(out: &mut impl Write, rows: &[Row], width: usize) -> io::Result<()> {
    let longest = |text: fn(&Row) -> &str, heading: &str| {
        rows.iter().map(|row| text(row).chars().count()).max().unwrap_or(0).max(heading.len())
    };
    let longest = [longest(|row| &row.to, "TO"), longest(|row| &row.from, "FROM"), longest(|row| &row.ports, "PORTS")];
    let [to, from, ports] = column_widths(longest, width.saturating_sub(4));
    writeln!(out, "{:<to$}  {:<from$}  PORTS", "TO", "FROM")?;
    let mut last = "";
    for row in rows {
        let shown = if row.to == last { "" } else { row.to.as_str() };
        last = &row.to;
        let columns = [wrap(shown, to, 0), wrap(&row.from, from, 0), wrap(&row.ports, ports, 0)];
        print_row(out, columns, [0, to + 2, to + from + 4])?;
    }
    Ok(())
}

/// Prints the lines of the columns side by side. `starts`: the positions at which the columns start. If a word is
/// longer than its column, the next columns continue on the next line.
fn print_row(out: &mut impl Write, columns: [Vec<String>; 3], starts: [usize; 3]) -> io::Result<()> {
    let mut columns = columns.map(|lines| lines.into_iter().peekable());
    while columns.iter_mut().any(|lines| lines.peek().is_some()) {
        let (mut line, mut end) = (String::new(), 0);
        for (lines, start) in columns.iter_mut().zip(starts) {
            if end > 0 && end + 2 > start {
                break;
            }
            let text = lines.next().unwrap_or_default();
            let text = text.trim_start();
            if !text.is_empty() {
                line.extend(std::iter::repeat_n(' ', start - end).chain(text.chars()));
                end = start + text.chars().count();
            }
        }
        writeln!(out, "{line}")?;
    }
    Ok(())
}

/// Returns the widths of the columns. Their sum is at most `width`, unless [`MIN_COLUMN`] makes columns wider. If a
/// column needs less than its equal share, the other columns share the rest. `longest`: the longest text of each
/// column.
fn column_widths(longest: [usize; 3], width: usize) -> [usize; 3] {
    let mut narrow_first = [0, 1, 2];
    narrow_first.sort_by_key(|column| longest[*column]);
    let mut widths = longest;
    let mut remaining = width;
    for (position, column) in narrow_first.into_iter().enumerate() {
        widths[column] = longest[column].min((remaining / (3 - position)).max(MIN_COLUMN));
        remaining = remaining.saturating_sub(widths[column]);
    }
    widths
}

/// Prints a line for each pair of groups. Text is quoted as in RFC 4180.
pub(super) fn csv(out: &mut impl Write, list: &List<'_>, only_allowed: bool) -> io::Result<()> {
    let quoted = |text: &str| format!("\"{}\"", Safe(text).to_string().replace('"', "\"\""));
    let names: Vec<String> = list.groups.iter().map(|group| quoted(&group.name)).collect();
    writeln!(out, "from,to,allowed,unknown")?;
    for (from, to, ports) in list.connections(only_allowed) {
        let (allowed, unknown) = (&ports.allowed, ports.unknown.as_deref().unwrap_or_default());
        writeln!(out, "{},{},\"{allowed}\",\"{unknown}\"", names[from], names[to])?;
    }
    Ok(())
}

/// Prints a Markdown table.
pub(super) fn markdown(out: &mut impl Write, rows: &[Row]) -> io::Result<()> {
    let cell = |text: &str| {
        let text = Safe(text).to_string();
        text.replace('\\', "\\\\").replace('|', "\\|").replace('<', "&lt;").replace('*', "\\*").replace('`', "\\`")
    };
    writeln!(out, "| to | from | ports |\n|---|---|---|")?;
    rows.iter().try_for_each(|row| writeln!(out, "| {} | {} | {} |", cell(&row.to), cell(&row.from), cell(&row.ports)))
}

/// Prints a graph in the language of Graphviz, with a subgraph for each namespace. The nodes of the graph are the
/// groups that [`by_namespace`] returns. There is an edge for each pair of groups with a port that is allowed or
/// unknown.
pub(super) fn dot(out: &mut impl Write, list: &List<'_>, only_allowed: bool) -> io::Result<()> {
    let quoted = |text: &str| format!("\"{}\"", Safe(text).to_string().replace('\\', "\\\\").replace('"', "\\\""));
    writeln!(out, "digraph netpol {{\n  rankdir=LR;\n  node [shape=box];")?;
    for (number, (namespace, groups)) in by_namespace(list, only_allowed).into_iter().enumerate() {
        // Graphviz draws a subgraph as a box if the name of the subgraph starts with `cluster`.
        writeln!(out, "  subgraph cluster_{number} {{\n    label={};", quoted(namespace))?;
        for (index, group) in groups {
            writeln!(out, "    g{index} [label={}];", quoted(&group.short_name()))?;
        }
        writeln!(out, "  }}")?;
    }
    for (from, to, ports, is_allowed) in edges(list) {
        let style = if is_allowed { "" } else { ", style=dashed" };
        writeln!(out, "  g{from} -> g{to} [label={}{style}];", quoted(&ports))?;
    }
    writeln!(out, "}}")
}

/// Prints a Mermaid flowchart with the same nodes and edges as [`dot`].
pub(super) fn mermaid(out: &mut impl Write, list: &List<'_>, only_allowed: bool) -> io::Result<()> {
    // Mermaid has entities, but no escapes:
    // <https://mermaid.js.org/syntax/flowchart.html#special-characters-that-break-syntax>.
    let quoted = |text: &str| {
        let text = Safe(text).to_string().replace('#', "#35;").replace('"', "#quot;");
        format!("\"{}\"", text.replace('<', "#lt;"))
    };
    writeln!(out, "flowchart LR")?;
    for (number, (namespace, groups)) in by_namespace(list, only_allowed).into_iter().enumerate() {
        writeln!(out, "  subgraph n{number}[{}]", quoted(namespace))?;
        for (index, group) in groups {
            writeln!(out, "    g{index}[{}]", quoted(&group.short_name()))?;
        }
        writeln!(out, "  end")?;
    }
    for (from, to, ports, is_allowed) in edges(list) {
        writeln!(out, "  g{from} {}|{}| g{to}", if is_allowed { "-->" } else { "-.->" }, quoted(&ports))?;
    }
    Ok(())
}

/// Returns the groups to show, by namespace: those with at least one connection in the list. With `only_allowed`, at
/// least one port of the connection must be allowed or unknown, and the connection of a pod to itself does not count.
/// It is always allowed, so if it counted, all pods would be shown.
fn by_namespace<'g>(list: &List<'g>, only_allowed: bool) -> BTreeMap<&'g str, Vec<(usize, &'g Group)>> {
    let connections = list.connections(only_allowed);
    let shown = connections.filter(|(from, to, _)| !only_allowed || !list.is_hairpin(*from, *to));
    let nodes: BTreeSet<usize> = shown.flat_map(|(from, to, _)| [from, to]).collect();
    let mut found: BTreeMap<&str, Vec<(usize, &Group)>> = BTreeMap::new();
    for index in nodes {
        let group = &list.groups[index];
        found.entry(group.namespace.as_deref().unwrap_or("(addresses)")).or_default().push((index, group));
    }
    found
}

/// Returns the connections between different groups with at least one port that is allowed or unknown. Each item has
/// the indices of the two groups, the ports, and whether at least one port is allowed.
fn edges<'l>(list: &'l List<'_>) -> impl Iterator<Item = (usize, usize, String, bool)> + 'l {
    let edges = list.connections(true).filter(|(from, to, _)| from != to);
    edges.map(|(from, to, ports)| (from, to, ports.text(), ports.is_allowed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_get_the_width_that_they_need_or_an_equal_share() {
        assert_eq!(column_widths([20, 25, 8], 76), [20, 25, 8]);
        assert_eq!(column_widths([20, 60, 8], 76), [20, 48, 8]);
        assert_eq!(column_widths([60, 60, 8], 76), [34, 34, 8]);
        assert_eq!(column_widths([60, 60, 60], 20), [12, 12, 12]);
    }

    #[test]
    fn a_name_that_is_too_long_moves_the_next_columns_to_the_next_line() {
        let row = |to: &str, from: &str| Row { to: to.to_owned(), from: from.to_owned(), ports: "TCP 80".to_owned() };
        let rows = [
            row("s/short", "s/web, s/db"),
            row("s/with-a-very-long-name", "all"),
            row("s/short", "s/with-a-very-long-name"),
        ];
        let mut out = Vec::new();
        table(&mut out, &rows, 40).expect("writing to memory");
        let expected = "\
TO               FROM             PORTS
s/short          s/web, s/db      TCP 80
s/with-a-very-long-name
                 all              TCP 80
s/short          s/with-a-very-long-name
                                  TCP 80
";
        assert_eq!(String::from_utf8(out).expect("text"), expected);
    }
}
