//! The list of connections as text, CSV, Markdown, DOT and Mermaid.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};

use netpol_policy::text::{Safe, wrap};

use super::groups::Group;
use super::list::{List, Row};

/// The least width of a column of the table.
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
        let height = columns.iter().map(Vec::len).max().unwrap_or(0);
        for line in 0..height {
            let cell = |column: usize| columns[column].get(line).map_or("", |text| text.trim_start());
            let text = format!("{:<to$}  {:<from$}  {}", cell(0), cell(1), cell(2));
            writeln!(out, "{}", text.trim_end())?;
        }
    }
    Ok(())
}

/// Returns widths that together fit. A column that is narrower than its share leaves the rest to the others.
fn column_widths(longest: [usize; 3], width: usize) -> [usize; 3] {
    let mut narrow_first = [0, 1, 2];
    narrow_first.sort_by_key(|column| longest[*column]);
    let mut widths = longest;
    let mut left = width;
    for (position, column) in narrow_first.into_iter().enumerate() {
        widths[column] = longest[column].min((left / (3 - position)).max(MIN_COLUMN));
        left = left.saturating_sub(widths[column]);
    }
    widths
}

/// Prints a line for each pair of groups. Quotes as in RFC 4180.
pub(super) fn csv(out: &mut impl Write, list: &List<'_>, only_allowed: bool) -> io::Result<()> {
    let quoted = |text: &str| format!("\"{}\"", Safe(text).to_string().replace('"', "\"\""));
    writeln!(out, "from,to,allowed,unknown")?;
    for (from, to, connection) in list.connections(only_allowed) {
        let unknown = if connection.unknown.is_empty() { String::new() } else { connection.unknown.to_string() };
        let [from, to] = [from, to].map(|index| &list.groups[index].name);
        let fields = [from, to, &connection.allowed.to_string(), &unknown].map(|text| quoted(text));
        writeln!(out, "{}", fields.join(","))?;
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

/// Prints a graph in the language of Graphviz, with a cluster for each namespace and an edge for each pair of groups
/// with a port. The nodes are the groups that the filters accept.
pub(super) fn dot(out: &mut impl Write, list: &List<'_>, only_allowed: bool) -> io::Result<()> {
    let quoted = |text: &str| format!("\"{}\"", Safe(text).to_string().replace('\\', "\\\\").replace('"', "\\\""));
    writeln!(out, "digraph netpol {{\n  rankdir=LR;\n  node [shape=box];")?;
    for (number, (namespace, groups)) in by_namespace(list, only_allowed).into_iter().enumerate() {
        writeln!(out, "  subgraph cluster_{number} {{\n    label={};", quoted(namespace))?;
        for (index, group) in groups {
            writeln!(out, "    g{index} [label={}];", quoted(&group.short_name()))?;
        }
        writeln!(out, "  }}")?;
    }
    for (from, to, ports, style) in edges(list) {
        writeln!(out, "  g{from} -> g{to} [label={}{}];", quoted(&ports), if style { "" } else { ", style=dashed" })?;
    }
    writeln!(out, "}}")
}

/// Prints a Mermaid flowchart, as [`dot`].
pub(super) fn mermaid(out: &mut impl Write, list: &List<'_>, only_allowed: bool) -> io::Result<()> {
    // Mermaid has entities, but no escapes: <https://mermaid.js.org/syntax/flowchart.html#special-characters-that-break-syntax>.
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
    for (from, to, ports, style) in edges(list) {
        writeln!(out, "  g{from} {}|{}| g{to}", if style { "-->" } else { "-.->" }, quoted(&ports))?;
    }
    Ok(())
}

/// The groups with a connection that is shown, by namespace. The connection of a pod to itself is one of them,
/// unless only allowed connections are shown.
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

/// The connections with a port that is allowed or unknown, without those within a group: indices, ports, and whether a
/// port is allowed.
fn edges<'l>(list: &'l List<'_>) -> impl Iterator<Item = (usize, usize, String, bool)> + 'l {
    let edges = list.connections(true).filter(|(from, to, _)| from != to);
    edges.map(|(from, to, connection)| (from, to, connection.text(), !connection.allowed.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_get_what_they_need_and_share_what_is_short() {
        assert_eq!(column_widths([20, 25, 8], 76), [20, 25, 8]);
        assert_eq!(column_widths([20, 60, 8], 76), [20, 48, 8]);
        assert_eq!(column_widths([60, 60, 8], 76), [34, 34, 8]);
        assert_eq!(column_widths([60, 60, 60], 20), [12, 12, 12]);
    }
}
