//! `netpol status`: shows the agents of all nodes, nodes with problems first.

use std::collections::BTreeMap;
use std::io::Write;

use anyhow::Result;
use netpol_api::{Endpoint, MapStatus, Status};

use crate::Exit;
use crate::args::{Output, StatusOptions};
use crate::columns::{Style, TextCell, TextTable, Tone, number, some_of, text};
use crate::output::print_items;
use crate::remote::{Answer, Fleet, runtime};
use crate::table::{counted, paragraph};

/// A map that is filled to at least this percentage is a problem.
const MAP_LIMIT: u64 = 90;
/// The maximum number of objects that the text of a problem names.
const SHOWN: usize = 3;

pub(crate) fn run(options: &StatusOptions, out: &mut impl Write) -> Result<Exit> {
    runtime()?.block_on(status(options, out))
}

async fn status(options: &StatusOptions, out: &mut impl Write) -> Result<Exit> {
    let mut fleet = Fleet::find(&options.agents).await?;
    let answers: Vec<Answer<Status>> = fleet.get("/v1/status").await;
    if options.agents.nodes.is_empty() {
        // If the user has no right to list nodes, nodes without an agent are not reported.
        let _ = fleet.find_nodes_without_agent().await;
    }
    let statuses: Vec<Status> = answers.into_iter().map(|answer| answer.content).collect();
    match options.output {
        Output::Json => print_items(out, &statuses, fleet.failures())?,
        Output::Table if statuses.is_empty() => {}
        Output::Table => print(
            out,
            &statuses,
            &fleet.failures().iter().map(|failure| failure.node.clone()).collect::<Vec<_>>(),
            Style::detect(),
        )?,
    }
    fleet.finish(statuses.len())
}

/// Prints the table, and the problems of each node below it. `without_response`: the nodes that did not respond.
fn print(out: &mut impl Write, statuses: &[Status], without_response: &[String], style: Style) -> Result<()> {
    let common = common_version(statuses);
    let mut rows: Vec<(&Status, Vec<String>)> =
        statuses.iter().map(|status| (status, problems(status, common))).collect();
    // The nodes are sorted by name already, and this sort is stable.
    rows.sort_by_key(|(_, problems)| problems.is_empty());
    // `optional`: if the table is too wide, columns with a higher number are omitted first.
    let mut table = TextTable::new(&[
        text("NODE"),
        text("STATE"),
        text("VERSION").optional(4),
        number("GENERATION").optional(2),
        number("ENDPOINTS"),
        text("GATE").optional(3),
        number("CONFLICTS").optional(1),
        number("DENIED"),
        text("FULLEST MAP").optional(5),
    ]);
    // A node can have several failures.
    let mut without_response: Vec<&String> = without_response.iter().collect();
    without_response.dedup();
    for node in without_response {
        let empty = || TextCell::from("-");
        let state = TextCell::toned("no response", Some(Tone::Bad));
        table.add_row([node.into(), state, empty(), empty(), empty(), empty(), empty(), empty(), empty()]);
    }
    for (status, problems) in &rows {
        let state = match (status.ready, problems.len()) {
            (_, 0) => TextCell::toned("ok", Some(Tone::Good)),
            (true, count) => TextCell::toned(counted(count, "problem"), Some(Tone::Notice)),
            (false, _) => TextCell::toned("not ready", Some(Tone::Bad)),
        };
        let conflicts = status.conflicts.len();
        table.add_row([
            (&status.node).into(),
            state,
            (&status.version).into(),
            status.generation.into(),
            status.endpoints.len().into(),
            (&status.gate.mode).into(),
            TextCell::toned(conflicts, (conflicts > 0).then_some(Tone::Notice)),
            status.flows.denied_packets.into(),
            fullest_map(&status.maps).into(),
        ]);
    }
    table.print(out, style.table, style.color)?;
    for (status, problems) in rows.iter().filter(|(_, problems)| !problems.is_empty()) {
        writeln!(out)?;
        for problem in problems {
            paragraph(out, format!("{}: {problem}", status.node), style.text, 0)?;
        }
    }
    Ok(())
}

/// Returns the version that most agents have.
fn common_version(statuses: &[Status]) -> Option<&str> {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for status in statuses {
        *counts.entry(&status.version).or_default() += 1;
    }
    counts.into_iter().max_by_key(|(_, count)| *count).map(|(version, _)| version)
}

/// Returns the problems of a node, the worst first.
fn problems(status: &Status, common_version: Option<&str>) -> Vec<String> {
    let mut problems = Vec::new();
    if !status.ready {
        problems.push("not ready: not all policies that existed when the agent started are enforced".to_owned());
    }
    if status.observe {
        problems.push("policies are not enforced: the agent runs with --observe".to_owned());
    }
    for suspension in &status.suspensions {
        let scope = suspension.namespace.as_ref().map_or("the cluster".to_owned(), |name| format!("namespace {name}"));
        let reason = suspension.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
        problems.push(format!("enforcement of {scope} is suspended until {}{reason}", suspension.until));
    }
    let pending: Vec<String> =
        status.pending.iter().map(|pending| format!("{} ({})", pending.pod, pending.reason)).collect();
    if !pending.is_empty() {
        problems.push(format!(
            "policies are not enforced on {}: {}",
            counted(pending.len(), "pod"),
            some_of(&pending, SHOWN)
        ));
    }
    problems.extend(status.gate.error.iter().map(|error| format!("start gate: {error}")));
    problems.extend(status.endpoints.iter().filter_map(interface_problem));
    for conflict in &status.conflicts {
        problems.push(format!("conflict with {} at {}: {}", conflict.name, conflict.location, conflict.advice));
    }
    let partial: Vec<String> = status.partial_policies.iter().map(|policy| policy.policy.clone()).collect();
    if !partial.is_empty() {
        let policies = some_of(&partial, SHOWN);
        problems.push(format!("policies are enforced only in part: {policies}; raise --max-policy-memory"));
    }
    problems.extend(status.maps.iter().filter_map(map_problem));
    if status.flows.lost_events > 0 {
        problems.push(format!("{} events were lost, so flows are missing in reports", status.flows.lost_events));
    }
    if common_version.is_some_and(|common| common != status.version) {
        problems.push(format!("version {} differs from that of the other nodes", status.version));
    }
    problems.extend(status.warnings.iter().cloned());
    problems
}

/// Returns the problem of a pod's interface, if it has one.
fn interface_problem(endpoint: &Endpoint) -> Option<String> {
    let name = endpoint.pod.as_deref().unwrap_or("-");
    match &endpoint.conflict {
        Some(conflict) => Some(format!("interface {} of pod {name}: {conflict}", endpoint.interface)),
        None if !endpoint.attached => {
            Some(format!("interface {} of pod {name} has no eBPF programs attached", endpoint.interface))
        }
        None => None,
    }
}

/// Returns the problem of a BPF map, if it has one.
fn map_problem(map: &MapStatus) -> Option<String> {
    if map.full > 0 {
        return Some(format!("map {} is full: {} writes failed; raise its size", map.name, map.full));
    }
    let percent = fill_percent(map)?;
    (percent >= MAP_LIMIT).then(|| format!("map {} is {percent} % full", map.name))
}

/// Returns how full a map is, in percent. `None`: its capacity is zero.
fn fill_percent(map: &MapStatus) -> Option<u64> {
    (map.capacity > 0).then(|| map.entries.unwrap_or_default().saturating_mul(100) / map.capacity)
}

/// Returns the name of the fullest map and how full it is, such as `PORTS 12 %`.
fn fullest_map(maps: &[MapStatus]) -> String {
    let fullest = maps.iter().filter_map(|map| Some((fill_percent(map)?, &map.name))).max();
    fullest.map_or_else(|| "-".to_owned(), |(percent, name)| format!("{name} {percent} %"))
}
