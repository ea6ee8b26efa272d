//! `netpol matrix`.

mod formats;
mod groups;
mod list;

use std::collections::BTreeSet;
use std::io::{self, Write};

use anyhow::{Result, bail};
use netpol_policy::cluster_state::ClusterState;
use netpol_policy::explain::{Family, Verdict};
use netpol_policy::offline::PortSet;
use netpol_policy::reference::{ConnectionError, End};
use serde::Serialize;

use groups::Group;
use list::List;

use crate::Exit;
use crate::args::{MatrixOptions, MatrixOutput, PortArgument, ShownOptions};
use crate::color::ColorMode;
use crate::ends::{EndSet, MatrixEnd};
use crate::input::{Input, InputReport};
use crate::live::{self, View};
use crate::output::print_json;
use crate::table::{self, Cell};
use crate::unevaluated;
use crate::verdict::{Evaluator, Sides, VerdictError};

/// The number of excluded pods that are listed for each reason.
const PODS_SHOWN: usize = 10;

/// The output of `-o json`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct JsonOutput<'a, C> {
    groups: &'a [Group],
    connections: &'a [C],
    excluded: &'a [ExcludedPod],
    input: InputReport<'a>,
}

/// A connection at one port.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct JsonVerdict<'g> {
    from: &'g str,
    to: &'g str,
    port: u16,
    protocol: &'static str,
    verdict: Verdict,
    egress: Verdict,
    ingress: Verdict,
    /// The allowed address family, if only one of two is allowed.
    #[serde(skip_serializing_if = "Option::is_none")]
    allowed_family: Option<Family>,
}

/// What is shown.
struct Matrix<'a> {
    options: &'a MatrixOptions,
    input: &'a Input,
    evaluate: &'a Evaluator,
    groups: &'a [Group],
    excluded: &'a [ExcludedPod],
    /// The groups that `--from` and `--to` accept, by index.
    from: Vec<bool>,
    to: Vec<bool>,
}

pub(crate) fn run(options: &MatrixOptions, out: &mut impl Write) -> Result<Exit> {
    let view = if options.addresses.is_empty() { View::Pods } else { View::Addresses };
    let (input, namespaces) = live::read_shown(&options.input, &options.shown, view)?;
    input.report();
    let shown = ShownOptions { namespaces, ..ShownOptions::default() };
    let options = &MatrixOptions { shown, ..options.clone() };
    let is_unknown = with_matrix(options, &input, |matrix| match (options.output, options.ports.is_empty()) {
        (MatrixOutput::Table, false) => matrix.print_tables(out),
        (MatrixOutput::Json, false) => matrix.print_verdicts(out),
        _ => matrix.print_list(out),
    })?;
    Ok(match input.is_complete() {
        false => Exit::InvalidInput,
        true if is_unknown => Exit::Unknown,
        true => Exit::Ok,
    })
}

/// Prints the rows of the list, without notes. Returns whether there are any.
pub(crate) fn print_rows(options: &MatrixOptions, input: &Input, out: &mut impl Write) -> Result<bool> {
    with_matrix(options, input, |matrix| {
        let rows = matrix.list().rows(options.only_allowed);
        formats::table(out, &rows, table::text_width())?;
        Ok(!rows.is_empty())
    })
}

/// Creates the matrix of an input, and passes it to a function.
fn with_matrix<T>(options: &MatrixOptions, input: &Input, show: impl FnOnce(&Matrix<'_>) -> Result<T>) -> Result<T> {
    let mut cluster = input.cluster(&options.input);
    let (ends, excluded) = ends(cluster.state(), options);
    if ends.is_empty() {
        print_excluded(&mut io::stderr(), &excluded)?;
        return Err(live::no_pods(input));
    }
    let namespace = options.shown.namespaces.first().map_or("default", String::as_str);
    let find = |filter: &Option<MatrixEnd>| filter.as_ref().map(|end| end.find(&cluster, namespace)).transpose();
    let filters = (find(&options.from)?, find(&options.to)?);
    // A workload and itself: two of its pods.
    for end in &ends {
        if let End::Pod(key) = end {
            cluster.second_pod(key);
        }
    }
    let evaluate = Evaluator::new(cluster);
    let groups = groups::group_ends(&evaluate, &ends);
    let [from, to] = [accepted("--from", filters.0, &groups), accepted("--to", filters.1, &groups)];
    if from.is_err() || to.is_err() {
        print_excluded(&mut io::stderr(), &excluded)?;
    }
    let (from, to) = (from?, to?);
    show(&Matrix { options, input, evaluate: &evaluate, groups: &groups, excluded: &excluded, from, to })
}

/// Returns which groups a filter accepts. An error if it accepts none: the name may be misspelled.
fn accepted(option: &str, filter: Option<EndSet>, groups: &[Group]) -> Result<Vec<bool>> {
    let Some(EndSet { title, ends }) = filter else { return Ok(vec![true; groups.len()]) };
    let members: BTreeSet<String> = ends.iter().map(|(end, _)| end.to_string()).collect();
    let has_member = |group: &Group| group.members.iter().any(|member| members.contains(member));
    let accepted: Vec<bool> = groups.iter().map(has_member).collect();
    if !accepted.contains(&true) {
        bail!(
            "{option} {title} matches no row of the matrix; check its name and namespace (-n), or add an address with -a"
        );
    }
    Ok(accepted)
}

impl Matrix<'_> {
    /// Evaluates the connection between two groups, by index.
    fn cell(&self, row: usize, column: usize, port: PortArgument) -> Result<Cell, VerdictError> {
        if !self.from[row] || !self.to[column] {
            return Ok(Cell::NotShown);
        }
        let only_allowed = self.options.only_allowed;
        match self.evaluate.sides(&self.groups[row].source, &self.groups[column].destination, port) {
            Ok(sides) if only_allowed && sides.verdict() == Verdict::Deny && sides.only_family.is_none() => {
                Ok(Cell::NotShown)
            }
            Ok(sides) => Ok(Cell::Verdict(sides)),
            Err(VerdictError::Connection(ConnectionError::NoCommonFamily(..))) if only_allowed => Ok(Cell::NotShown),
            Err(VerdictError::Connection(ConnectionError::NoCommonFamily(..))) => Ok(Cell::NoCommonFamily),
            Err(error) => Err(error),
        }
    }

    /// Evaluates the connections between all groups, a row for each source.
    fn cells(&self, port: PortArgument) -> Result<Vec<Cell>, VerdictError> {
        list::pairs(self.groups.len()).map(|(row, column)| self.cell(row, column, port)).collect()
    }

    /// Prints a table for each port. Returns whether a verdict is unknown.
    fn print_tables(&self, out: &mut impl Write) -> Result<bool> {
        let mut printed = Vec::new();
        for &port in &self.options.ports {
            printed.extend(self.print_table(out, port, &self.cells(port)?)?);
        }
        let has = |is: fn(Sides) -> bool| printed.iter().filter_map(|cell| cell.sides()).any(is);
        let is_unknown = has(|sides| sides.verdict() == Verdict::Unknown);
        let legends = [
            (has(|sides| sides.only_family.is_some()), table::ONE_FAMILY),
            (printed.contains(&Cell::NoCommonFamily), table::NO_COMMON_FAMILY),
            (printed.contains(&Cell::NotShown), table::NOT_SHOWN),
            (is_unknown, table::UNKNOWN),
        ];
        let legends: String = legends.iter().filter(|(is_used, _)| *is_used).map(|(_, legend)| *legend).collect();
        writeln!(out, "{}{legends}", table::LEGEND)?;
        self.print_notes(out)?;
        Ok(is_unknown)
    }

    /// Prints the verdicts at each port as JSON. Returns whether one is unknown.
    fn print_verdicts(&self, out: &mut impl Write) -> Result<bool> {
        let mut verdicts = Vec::new();
        for &port in &self.options.ports {
            for ((row, column), cell) in list::pairs(self.groups.len()).zip(self.cells(port)?) {
                let (from, to) = (&self.groups[row], &self.groups[column]);
                verdicts.extend(cell.sides().map(|sides| verdict(from, to, port, sides)));
            }
        }
        self.print_json(out, &verdicts)?;
        Ok(verdicts.iter().any(|connection| connection.verdict == Verdict::Unknown))
    }

    /// Prints and returns the rows and columns of a port with a cell that the filters accept.
    fn print_table(&self, out: &mut impl Write, port: PortArgument, cells: &[Cell]) -> io::Result<Vec<Cell>> {
        let count = self.groups.len();
        let is_shown = |index: &usize| {
            let is_used = |row: usize, column: usize| cells[row * count + column] != Cell::NotShown;
            (0..count).any(|other| is_used(*index, other) || is_used(other, *index))
        };
        let shown: Vec<usize> = (0..count).filter(is_shown).collect();
        let names: Vec<table::Heading> = shown
            .iter()
            .map(|index| {
                let group = &self.groups[*index];
                let namespace = group.namespace.as_deref().unwrap_or("(addresses)").to_owned();
                table::Heading { group: namespace, name: group.short_name() }
            })
            .collect();
        let pairs = shown.iter().flat_map(|row| shown.iter().map(move |column| cells[row * count + column]));
        let cells: Vec<_> = pairs.collect();
        table::print(out, &port.to_string(), &names, &cells, ColorMode::detect(), table::terminal_width())?;
        Ok(cells)
    }

    /// Computes the exact ports of the pairs that the filters accept.
    fn list(&self) -> List<'_> {
        let ports = match &self.options.ports[..] {
            [] => PortSet::all(),
            ports => PortSet::of(ports.iter().map(|port| (port.protocol, port.port))),
        };
        let shows = |from: usize, to: usize| self.from[from] && self.to[to];
        List::new(self.evaluate.cluster(), self.groups, &ports, shows)
    }

    /// Prints the exact ports. Returns whether a verdict is unknown.
    fn print_list(&self, out: &mut impl Write) -> Result<bool> {
        let state = self.evaluate.cluster().state();
        if let Some(address) = self.options.addresses.iter().find(|address| state.has_frontend_at(**address)) {
            bail!(
                "{address} is the address of a Service, which has a verdict for each port; use netpol explain, or -p with -o table"
            );
        }
        let list = self.list();
        let only_allowed = self.options.only_allowed;
        match self.options.output {
            MatrixOutput::Table => {
                formats::table(out, &list.rows(only_allowed), table::text_width())?;
                writeln!(out)?;
                self.print_notes(out)?;
            }
            MatrixOutput::Json => self.print_json(out, &list.json(only_allowed))?,
            MatrixOutput::Csv => formats::csv(out, &list, only_allowed)?,
            MatrixOutput::Md => formats::markdown(out, &list.rows(only_allowed))?,
            MatrixOutput::Dot => formats::dot(out, &list, only_allowed)?,
            MatrixOutput::Mermaid => formats::mermaid(out, &list, only_allowed)?,
        }
        Ok(list.has_unknown())
    }

    fn print_notes(&self, out: &mut impl Write) -> io::Result<()> {
        unevaluated::print(out, &self.input.parsed.unevaluated, table::text_width())?;
        print_excluded(out, self.excluded)
    }

    fn print_json<C: Serialize>(&self, out: &mut impl Write, connections: &[C]) -> Result<()> {
        let (groups, excluded, input) = (self.groups, self.excluded, self.input.json());
        print_json(out, &JsonOutput { groups, connections, excluded, input })
    }
}

fn verdict<'g>(from: &'g Group, to: &'g Group, port: PortArgument, sides: Sides) -> JsonVerdict<'g> {
    let (verdict, protocol) = (sides.verdict(), port.protocol.name());
    let Sides { egress, ingress, only_family } = sides;
    let (from, to) = (&*from.name, &*to.name);
    JsonVerdict { from, to, port: port.port, protocol, verdict, egress, ingress, allowed_family: only_family }
}

/// The reason why a pod is not in the matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
enum Exclusion {
    HostNetwork,
    Finished,
}

impl Exclusion {
    /// Text to follow "not shown: 2 pods".
    const fn text(self) -> &'static str {
        match self {
            Self::HostNetwork => {
                "on the host network, which policies do not apply to; to show the node address, use --address"
            }
            Self::Finished => "that finished (Succeeded or Failed)",
        }
    }
}

/// A pod that is not in the matrix.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct ExcludedPod {
    pod: String,
    reason: Exclusion,
}

/// Returns the pods to show, then the addresses; and the excluded pods.
fn ends(cluster_state: &ClusterState, options: &MatrixOptions) -> (Vec<End>, Vec<ExcludedPod>) {
    let (mut ends, mut excluded) = (Vec::new(), Vec::new());
    for pod in cluster_state.pods.values() {
        let shown = &options.shown.namespaces;
        if !shown.is_empty() && !shown.iter().any(|name| **name == *pod.key.namespace) {
            continue;
        }
        let reason = match pod {
            pod if pod.finished => Some(Exclusion::Finished),
            pod if pod.host_network => Some(Exclusion::HostNetwork),
            _ => None,
        };
        match reason {
            Some(reason) => excluded.push(ExcludedPod { pod: pod.key.to_string(), reason }),
            None => ends.push(End::Pod(pod.key.clone())),
        }
    }
    ends.extend(options.addresses.iter().map(|&address| End::Address(address)));
    (ends, excluded)
}

/// Prints `not shown: 2 pods on the host network, …: kube-system/a, kube-system/b`, a line for each reason.
fn print_excluded(out: &mut impl Write, excluded: &[ExcludedPod]) -> io::Result<()> {
    for reason in [Exclusion::HostNetwork, Exclusion::Finished] {
        let pods: Vec<&str> = excluded.iter().filter(|pod| pod.reason == reason).map(|pod| &*pod.pod).collect();
        if pods.is_empty() {
            continue;
        }
        let shown = pods.iter().take(PODS_SHOWN).copied().collect::<Vec<_>>().join(", ");
        let more = if pods.len() > PODS_SHOWN { ", …" } else { "" };
        let count = table::counted(pods.len(), "pod");
        let text = format!("not shown: {count} {}: {shown}{more}", reason.text());
        table::paragraph(out, text, table::text_width(), 0)?;
    }
    Ok(())
}
