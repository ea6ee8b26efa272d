//! `netpol matrix`: shows which pods can connect to which, at which ports.
//!
//! The rows and columns of the matrix are groups. A group is either one address, or pods that have the same verdicts.
//! With `-p`, a table or JSON has a verdict for each pair of groups and each port of `-p`. Without `-p`, and in the
//! other formats, the output is a list of the exact ports that are allowed between two groups.

mod formats;
mod groups;
mod list;
mod verdicts;

use std::collections::BTreeSet;
use std::io::{self, Write};

use anyhow::{Result, bail};
use netpol_policy::cluster_state::ClusterState;
use netpol_policy::offline::{PortSet, Reachability};
use netpol_policy::reference::End;
use serde::Serialize;

use groups::Group;
use list::{List, Row};

use crate::Exit;
use crate::args::{MatrixOptions, MatrixOutput, ShownOptions};
use crate::ends::{EndSet, MatrixEnd};
use crate::input::{Input, InputReport};
use crate::live::{self, View};
use crate::output::print_json;
use crate::table;
use crate::unevaluated;

/// Maximum number of pod names in each line of [`print_excluded`].
const PODS_SHOWN: usize = 10;

/// The output of `-o json`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct JsonOutput<'a, C> {
    groups: &'a [Group],
    connections: C,
    excluded: &'a [ExcludedPod],
    input: InputReport<'a>,
}

/// The matrix, before its verdicts are computed.
struct Matrix<'a, 'c> {
    options: &'a MatrixOptions,
    input: &'a Input,
    reachability: Reachability<'c>,
    groups: &'a [Group],
    excluded: &'a [ExcludedPod],
    /// For each group: whether `--from` accepts it as a source.
    from: Vec<bool>,
    /// For each group: whether `--to` accepts it as a destination.
    to: Vec<bool>,
}

pub(crate) fn run(options: &MatrixOptions, out: &mut impl Write) -> Result<Exit> {
    let view = if options.addresses.is_empty() { View::Pods } else { View::Addresses };
    let (input, namespaces) = live::read_shown(&options.input, &options.shown, view)?;
    input.report();
    // `namespaces` are the namespaces to show. With a cluster, they can come from the kubeconfig. The functions below
    // read them from the options.
    let shown = ShownOptions { namespaces, ..ShownOptions::default() };
    let options = &MatrixOptions { shown, ..options.clone() };
    let is_unknown = with_matrix(options, &input, |matrix| match (options.output, options.ports.is_empty()) {
        (MatrixOutput::Table, false) => verdicts::print_tables(matrix, out),
        (MatrixOutput::Json, false) => verdicts::print_json(matrix, out),
        _ => matrix.print_list(out),
    })?;
    Ok(match input.is_complete() {
        false => Exit::InvalidInput,
        true if is_unknown => Exit::Unknown,
        true => Exit::Ok,
    })
}

/// Returns the rows of the list of the exact ports.
pub(crate) fn rows(options: &MatrixOptions, input: &Input) -> Result<Vec<Row>> {
    with_matrix(options, input, |matrix| Ok(matrix.list().rows(options.only_allowed)))
}

/// Creates the matrix of an input, and passes it to a function.
fn with_matrix<T>(
    options: &MatrixOptions,
    input: &Input,
    use_matrix: impl FnOnce(&mut Matrix<'_, '_>) -> Result<T>,
) -> Result<T> {
    let cluster = input.cluster(&options.input);
    let (ends, excluded) = select_ends(cluster.state(), options);
    if ends.is_empty() {
        print_excluded(&mut io::stderr(), &excluded)?;
        return Err(live::no_pods(input));
    }
    let namespace = options.shown.namespaces.first().map_or("default", String::as_str);
    let find = |filter: &Option<MatrixEnd>| filter.as_ref().map(|end| end.find(&cluster, namespace)).transpose();
    let filters = (find(&options.from)?, find(&options.to)?);
    let mut reachability = Reachability::new(&[&cluster]);
    let groups = groups::group_ends(&mut reachability, &ends);
    let [from, to] = [accepted_groups("--from", filters.0, &groups), accepted_groups("--to", filters.1, &groups)];
    if from.is_err() || to.is_err() {
        print_excluded(&mut io::stderr(), &excluded)?;
    }
    let (from, to) = (from?, to?);
    use_matrix(&mut Matrix { options, input, reachability, groups: &groups, excluded: &excluded, from, to })
}

/// Returns which groups a filter accepts. It is an error if the filter accepts no group: the name in the filter may be
/// wrong.
fn accepted_groups(option: &str, filter: Option<EndSet>, groups: &[Group]) -> Result<Vec<bool>> {
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

impl<'a> Matrix<'a, '_> {
    /// Returns whether the filters accept a source and a destination. `from`, `to`: the indices of the groups.
    fn shows(&self, from: usize, to: usize) -> bool {
        self.from[from] && self.to[to]
    }

    /// Computes the exact ports between each pair of groups that the filters accept.
    fn list(&mut self) -> List<'a> {
        let ports = match &self.options.ports[..] {
            [] => PortSet::all(),
            ports => PortSet::of(ports.iter().map(|port| (port.protocol, port.port))),
        };
        let (accepted_from, accepted_to) = (&self.from, &self.to);
        let shows = |from: usize, to: usize| accepted_from[from] && accepted_to[to];
        List::new(&mut self.reachability, self.groups, &ports, shows)
    }

    /// Prints the list of the exact ports in the format of `-o`. Returns whether a verdict is unknown.
    fn print_list(&mut self, out: &mut impl Write) -> Result<bool> {
        let state = self.reachability.cluster(0).state();
        if let Some(address) = self.options.addresses.iter().find(|address| state.has_frontend_at(**address)) {
            bail!(
                "{address} is the address of a Service, which a list of ports cannot show; use netpol explain, or -p with -o table"
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

    fn print_json(&self, out: &mut impl Write, connections: &impl Serialize) -> Result<()> {
        let (groups, excluded, input) = (self.groups, self.excluded, self.input.json());
        print_json(out, &JsonOutput { groups, connections, excluded, input })
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
    /// Returns the text after "not shown: 2 pods".
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

/// Returns the ends to show, first pods and then addresses. Also returns the pods that are excluded.
fn select_ends(cluster_state: &ClusterState, options: &MatrixOptions) -> (Vec<End>, Vec<ExcludedPod>) {
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

/// Prints a line for each reason, such as `not shown: 2 pods on the host network, …: kube-system/a, kube-system/b`.
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
