//! Prints the changes of connections between two versions of the manifests, as text and Markdown.

use std::io::{self, Write};

use netpol_policy::explain::Verdict;
use netpol_policy::manifest::Unevaluated;
use netpol_policy::offline::PortSet;
use netpol_policy::offline::difference::{Difference, Presence, Row};
use netpol_policy::text::{Safe, wrap};

use super::causes;
use super::flows::{FlowChange, Flows};
use super::names::Names;
use super::services;
use crate::color::ColorMode;
use crate::table::counted;
use crate::unevaluated;

/// The maximum number of flows that are listed for each kind of change.
const FLOWS_SHOWN: usize = 20;

/// For each kind of change in a row, returns the kind, the new verdict, and the ports. A row contains sources and
/// destinations with the same changes.
pub(super) fn kinds(row: &Row) -> impl Iterator<Item = (&'static str, Verdict, &PortSet)> {
    let change = &row.change;
    let kinds = [
        ("now denied", Verdict::Deny, &change.denied),
        ("now allowed", Verdict::Allow, &change.allowed),
        ("unknown", Verdict::Unknown, &change.unknown),
    ];
    kinds.into_iter().filter(|(_, _, ports)| !ports.is_empty())
}

/// Returns `2 changes from OLD to NEW`, or `no connection changes from OLD to NEW`.
fn heading(difference: &Difference, (old, new): (&str, &str)) -> String {
    match difference.rows.len() + difference.services.len() {
        0 => format!("no connection changes from {old} to {new}"),
        count => format!("{} from {old} to {new}", counted(count, "change")),
    }
}

/// Returns `all ports`, or the ports.
fn ports_text(ports: &PortSet) -> String {
    if *ports == PortSet::all() { "all ports".to_owned() } else { ports.to_string() }
}

/// Prints a paragraph for each row (`-o table`).
pub(super) fn table(
    out: &mut impl Write,
    difference: &Difference,
    names: &Names<'_>,
    versions: (&str, &str),
    width: usize,
) -> io::Result<()> {
    print_lines(out, wrap(heading(difference, versions), width, 0))?;
    for row in &difference.rows {
        writeln!(out)?;
        let (from, to) = (names.text(&row.from), names.text(&row.to));
        for (kind, verdict, ports) in kinds(row) {
            print_change(out, kind, verdict, &format!("{from} -> {to}, {}", ports_text(ports)), width)?;
            for cause in row.causes.iter().filter(|cause| causes::explains(cause, verdict)) {
                print_lines(out, wrap(causes::text(cause), width, 4))?;
            }
        }
    }
    for service in &difference.services {
        writeln!(out)?;
        for (kind, verdict, sources) in services::kinds(service) {
            let (title, port) = (services::title(service), services::port(service));
            print_change(out, kind, verdict, &format!("{} -> {title}, {port}", names.text(sources)), width)?;
        }
        print_lines(out, wrap(services::cause(service), width, 4))?;
    }
    for text in workload_changes(names) {
        writeln!(out)?;
        print_lines(out, wrap(text, width, 0))?;
    }
    Ok(())
}

/// Returns a text for the new workloads, and one for the removed workloads, if there are any.
fn workload_changes(names: &Names<'_>) -> impl Iterator<Item = String> {
    let kinds = [(Presence::Added, "new workloads"), (Presence::Removed, "removed workloads")];
    let found = kinds.map(|(presence, text)| (names.with_presence(presence), text));
    found
        .into_iter()
        .filter(|(found, _)| !found.is_empty())
        .map(|(found, text)| format!("{text}: {}", found.join(", ")))
}

/// Prints a change with its kind in color.
fn print_change(out: &mut impl Write, kind: &str, verdict: Verdict, text: &str, width: usize) -> io::Result<()> {
    let colored = |line: String| match line.strip_prefix(kind) {
        Some(rest) => format!("{}{rest}", ColorMode::detect().verdict(verdict, kind)),
        None => line,
    };
    print_lines(out, wrap(format!("{kind}: {text}"), width, 0).into_iter().map(colored))
}

/// Prints which recorded flows change (`--flows`).
pub(super) fn flows_table(out: &mut impl Write, flows: &Flows, width: usize) -> io::Result<()> {
    writeln!(out)?;
    print_lines(out, wrap(flows_heading(flows), width, 0))?;
    let color = ColorMode::detect();
    for (kind, verdict, changes) in by_kind(flows) {
        for change in changes.iter().take(FLOWS_SHOWN) {
            let text = format!("{kind}: {}", flow_text(change));
            let colored = |line: String| match line.trim_start().strip_prefix(kind) {
                Some(rest) => format!("  {}{rest}", color.verdict(verdict, kind)),
                None => line,
            };
            print_lines(out, wrap(text, width, 2).into_iter().map(colored))?;
        }
        if changes.len() > FLOWS_SHOWN {
            writeln!(out, "  {kind}: {} more: see -o json", changes.len() - FLOWS_SHOWN)?;
        }
    }
    if let Some(text) = skipped_text(flows) {
        print_lines(out, wrap(text, width, 2))?;
    }
    Ok(())
}

/// Returns the number of recorded flows that were not evaluated, with an example, if there are any.
fn skipped_text(flows: &Flows) -> Option<String> {
    let first = flows.skipped.first()?;
    Some(format!("not evaluated: {}, such as: {}", counted(flows.skipped.len(), "flow"), first.reason))
}

/// Returns the recorded flows that change: the kind of change, a verdict that selects the color of the kind, and the
/// flows.
fn by_kind(flows: &Flows) -> [(&'static str, Verdict, &[FlowChange]); 3] {
    [
        ("cut", Verdict::Deny, &flows.cut),
        ("now allowed", Verdict::Allow, &flows.allowed),
        ("unknown", Verdict::Unknown, &flows.unknown),
    ]
}

fn flows_heading(flows: &Flows) -> String {
    let counts = by_kind(flows).map(|(kind, _, changes)| format!("{} {kind}", changes.len()));
    format!("{}: {}", counted(flows.count, "recorded flow"), counts.join(", "))
}

fn flow_text(change: &FlowChange) -> String {
    let port = change.port.map(|port| format!(" {port}")).unwrap_or_default();
    let records = counted(change.records, "record");
    format!("{} -> {}, {}{port} ({records})", change.from, change.to, change.protocol)
}

/// Prints a table for a comment on a pull request (`-o md`).
pub(super) fn markdown(
    out: &mut impl Write,
    difference: &Difference,
    names: &Names<'_>,
    versions: (&str, &str),
) -> io::Result<()> {
    writeln!(out, "**netpol diff:** {}", cell(&heading(difference, versions)))?;
    if !difference.rows.is_empty() || !difference.services.is_empty() {
        writeln!(out, "\n| change | from | to | ports | cause |\n|---|---|---|---|---|")?;
    }
    for row in &difference.rows {
        let (from, to) = (names.text(&row.from), names.text(&row.to));
        for (kind, verdict, ports) in kinds(row) {
            let causes = row.causes.iter().filter(|cause| causes::explains(cause, verdict));
            let causes = causes.map(|cause| cell(&causes::text(cause))).collect::<Vec<_>>().join("<br>");
            writeln!(out, "| {kind} | {} | {} | {ports} | {causes} |", cell(&from), cell(&to))?;
        }
    }
    for service in &difference.services {
        let (to, cause) = (cell(&services::title(service)), cell(&services::cause(service)));
        for (kind, _, sources) in services::kinds(service) {
            let (from, port) = (cell(&names.text(sources)), services::port(service));
            writeln!(out, "| {kind} | {from} | {to} | {port} | {cause} |")?;
        }
    }
    for text in workload_changes(names) {
        writeln!(out, "\n{}", cell(&text))?;
    }
    Ok(())
}

/// Prints the policies that netpol does not evaluate.
pub(super) fn unevaluated_markdown(out: &mut impl Write, policies: &[Unevaluated]) -> io::Result<()> {
    if policies.is_empty() {
        return Ok(());
    }
    writeln!(out, "\nnot evaluated: {}", cell(&unevaluated::names(policies)))
}

/// Prints the recorded flows that change as a Markdown list.
pub(super) fn flows_markdown(out: &mut impl Write, flows: &Flows) -> io::Result<()> {
    writeln!(out, "\n{}\n", flows_heading(flows))?;
    for (kind, _, changes) in by_kind(flows) {
        for change in changes.iter().take(FLOWS_SHOWN) {
            writeln!(out, "* {kind}: {}", cell(&flow_text(change)))?;
        }
        if changes.len() > FLOWS_SHOWN {
            writeln!(out, "* {kind}: {} more", changes.len() - FLOWS_SHOWN)?;
        }
    }
    if let Some(text) = skipped_text(flows) {
        writeln!(out, "* {}", cell(&text))?;
    }
    Ok(())
}

/// Escapes a text for a cell of a Markdown table.
fn cell(text: &str) -> String {
    let text = Safe(text).to_string();
    text.replace('\\', "\\\\").replace('|', "\\|").replace('<', "&lt;").replace('*', "\\*").replace('`', "\\`")
}

fn print_lines(out: &mut impl Write, lines: impl IntoIterator<Item = String>) -> io::Result<()> {
    lines.into_iter().try_for_each(|line| writeln!(out, "{line}"))
}
