//! `netpol matrix`.

mod formats;
mod groups;
mod list;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};

use anyhow::{Result, bail};
use netpol_policy::cluster_state::ClusterState;
use netpol_policy::explain::{Family, Verdict};
use netpol_policy::offline::PortSet;
use netpol_policy::reference::End;
use netpol_policy::text::{self, Safe};
use serde::Serialize;

use groups::Group;
use list::List;

use crate::Exit;
use crate::args::{MatrixOptions, MatrixOutput, PortArgument};
use crate::color::ColorMode;
use crate::ends::MatrixEnd;
use crate::input::{Input, InputReport};
use crate::table;
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
    let input = Input::read(&options.input);
    input.report();
    let mut cluster = input.cluster(&options.input);
    let (ends, excluded) = ends(cluster.state(), options);
    if ends.is_empty() {
        print_excluded(&mut io::stderr(), &excluded)?;
        bail!("no pods to show; pass manifests of pods or workloads with -f, and check --namespace");
    }
    let namespace = options.namespaces.first().map_or("default", String::as_str);
    let find = |filter: &Option<MatrixEnd>| filter.as_ref().map(|filter| filter.find(&cluster, namespace)).transpose();
    let filters = [find(&options.from)?, find(&options.to)?];
    // A workload and itself: two of its pods.
    for end in &ends {
        if let End::Pod(key) = end {
            cluster.second_pod(key);
        }
    }
    let evaluate = Evaluator::new(cluster);
    let groups = groups::of(&evaluate, &ends);
    let [from, to] = filters.map(|accepted| {
        let accepted: Option<BTreeSet<String>> = accepted.map(|ends| ends.iter().map(ToString::to_string).collect());
        let is_shown = |group: &Group| {
            accepted.as_ref().is_none_or(|accepted| group.members.iter().any(|member| accepted.contains(member)))
        };
        groups.iter().map(is_shown).collect::<Vec<_>>()
    });
    let matrix = Matrix { options, input: &input, evaluate: &evaluate, groups: &groups, excluded: &excluded, from, to };
    let is_unknown = match (options.output, options.ports.is_empty()) {
        (MatrixOutput::Table | MatrixOutput::Json, false) => matrix.print_verdicts(out)?,
        _ => matrix.print_list(out)?,
    };
    Ok(match input.is_complete() {
        false => Exit::InvalidInput,
        true if is_unknown => Exit::Unknown,
        true => Exit::Ok,
    })
}

impl Matrix<'_> {
    /// Prints the verdicts at each port. Returns whether one is unknown.
    fn print_verdicts(&self, out: &mut impl Write) -> Result<bool> {
        let count = self.groups.len();
        let (mut verdicts, mut all) = (Vec::new(), Vec::new());
        for &port in &self.options.ports {
            let mut cells: Vec<Option<Sides>> = Vec::with_capacity(count * count);
            for (row, from) in self.groups.iter().enumerate() {
                for (column, to) in self.groups.iter().enumerate() {
                    let is_shown = self.from[row] && self.to[column];
                    let sides = || if_connected(self.evaluate.sides(&from.source, &to.destination, port));
                    let sides = if is_shown { sides()? } else { None };
                    let is_allowed = |sides: &Sides| sides.verdict() != Verdict::Deny || sides.only_family.is_some();
                    let sides = sides.filter(|sides| !self.options.only_allowed || is_allowed(sides));
                    verdicts.extend(sides.map(|sides| verdict(from, to, port, sides)));
                    cells.push(sides);
                }
            }
            if self.options.output == MatrixOutput::Table {
                self.print_table(out, port, &cells)?;
            }
            all.extend(cells);
        }
        let is_unknown = all.iter().flatten().any(|sides| sides.verdict() == Verdict::Unknown);
        if self.options.output == MatrixOutput::Json {
            self.print_json(out, &verdicts)?;
        } else {
            let families =
                if all.iter().flatten().any(|sides| sides.only_family.is_some()) { table::ONE_FAMILY } else { "" };
            let is_filtered = self.options.only_allowed || self.options.from.is_some() || self.options.to.is_some();
            let none = match all.contains(&None) {
                true if is_filtered => table::NOT_SHOWN,
                true => table::NO_COMMON_FAMILY,
                false => "",
            };
            let unknown = if is_unknown { table::UNKNOWN } else { "" };
            writeln!(out, "{}{families}{none}{unknown}", table::LEGEND)?;
            self.print_notes(out)?;
        }
        Ok(is_unknown)
    }

    /// Prints the rows and columns of a port that the filters accept.
    fn print_table(&self, out: &mut impl Write, port: PortArgument, cells: &[Option<Sides>]) -> io::Result<()> {
        let count = self.groups.len();
        let is_shown = |index: &usize| {
            let (row, column) = (*index * count, *index);
            let is_empty =
                (0..count).all(|other| cells[row + other].is_none() && cells[other * count + column].is_none());
            let is_filtered = self.options.from.is_some() || self.options.to.is_some() || self.options.only_allowed;
            !is_filtered || !is_empty
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
        table::print(out, &port.to_string(), &names, &cells, ColorMode::detect(), table::terminal_width())
    }

    /// Prints the exact ports. Returns whether a verdict is unknown.
    fn print_list(&self, out: &mut impl Write) -> Result<bool> {
        let state = self.evaluate.cluster().state();
        if let Some(address) = self.options.addresses.iter().find(|address| state.has_frontend_at(**address)) {
            bail!(
                "{address} is the address of a Service, which has a verdict for each port; use netpol explain, or -p with -o table"
            );
        }
        let ports = match &self.options.ports[..] {
            [] => PortSet::all(),
            ports => PortSet::of(ports.iter().map(|port| (port.protocol, port.port))),
        };
        let index: BTreeMap<&str, usize> =
            self.groups.iter().enumerate().map(|(index, group)| (&*group.name, index)).collect();
        let list = List::new(self.evaluate.cluster(), self.groups, &ports, |from, to| {
            self.from[index[&*from.name]] && self.to[index[&*to.name]]
        });
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
            MatrixOutput::Dot => formats::dot(out, &list)?,
            MatrixOutput::Mermaid => formats::mermaid(out, &list)?,
        }
        Ok(list.has_unknown())
    }

    fn print_notes(&self, out: &mut impl Write) -> io::Result<()> {
        unevaluated::print(out, &self.input.parsed.unevaluated, table::text_width())?;
        print_excluded(out, self.excluded)
    }

    fn print_json<C: Serialize>(&self, out: &mut impl Write, connections: &[C]) -> Result<()> {
        let (groups, excluded, input) = (self.groups, self.excluded, self.input.json());
        let output = JsonOutput { groups, connections, excluded, input };
        Ok(writeln!(out, "{}", text::json(&serde_json::to_string_pretty(&output)?))?)
    }
}

fn verdict<'g>(from: &'g Group, to: &'g Group, port: PortArgument, sides: Sides) -> JsonVerdict<'g> {
    let (verdict, protocol) = (sides.verdict(), port.protocol.name());
    let Sides { egress, ingress, only_family } = sides;
    let (from, to) = (&*from.name, &*to.name);
    JsonVerdict { from, to, port: port.port, protocol, verdict, egress, ingress, allowed_family: only_family }
}

/// Returns `None` for ends that cannot connect, such as ends without a common address family.
fn if_connected<T>(result: Result<T, VerdictError>) -> Result<Option<T>, VerdictError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(VerdictError::Connection(_)) => Ok(None),
        Err(mismatch) => Err(mismatch),
    }
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
        if !options.namespaces.is_empty() && !options.namespaces.iter().any(|name| **name == *pod.key.namespace) {
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
        let plural = if pods.len() == 1 { "" } else { "s" };
        writeln!(out, "not shown: {} pod{plural} {}: {}{more}", pods.len(), reason.text(), Safe(shown))?;
    }
    Ok(())
}
