//! `netpol matrix`.

use std::io::{self, Write};

use anyhow::{Result, bail};
use netpol_policy::cluster_state::ClusterState;
use netpol_policy::explain::{Explanation, Verdict};
use netpol_policy::offline::OfflineCluster;
use netpol_policy::reference::End;
use netpol_policy::text::{self, Safe};
use serde::Serialize;

use crate::Exit;
use crate::args::{MatrixOptions, Output};
use crate::color::Color;
use crate::input::{Input, InputReport};
use crate::table;
use crate::unevaluated;
use crate::verdict::{Evaluator, VerdictError};

/// The number of excluded pods that are listed for each reason.
const PODS_SHOWN: usize = 10;

/// The output of `-o json`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct JsonOutput<'a> {
    connections: &'a [Explanation],
    excluded: &'a [ExcludedPod],
    input: InputReport<'a>,
}

pub(crate) fn run(options: &MatrixOptions, out: &mut impl Write) -> Result<Exit> {
    let input = Input::read(&options.input);
    input.report();
    let mut cluster = input.cluster(&options.input);
    let (ends, excluded) = ends(cluster.state(), options);
    if ends.is_empty() {
        print_excluded(&mut io::stderr(), &excluded)?;
        bail!("no pods to show; pass manifests of pods with -f, and check --namespace");
    }
    // A workload and itself: two of its pods.
    let sources: Vec<End> = ends.iter().map(|end| source(&mut cluster, end)).collect();
    let evaluate = Evaluator::new(cluster);
    let mut explanations: Vec<Explanation> = Vec::new();
    let (mut no_common_family, mut one_family, mut is_unknown) = (false, false, false);
    for &port in &options.ports {
        let pairs = sources.iter().flat_map(|from| ends.iter().map(move |to| (from, to)));
        match options.output {
            Output::Json => {
                for (from, to) in pairs {
                    let explanation = if_connected(evaluate.explain(from, to, port))?;
                    is_unknown |=
                        explanation.as_ref().is_some_and(|explanation| explanation.verdict == Verdict::Unknown);
                    explanations.extend(explanation);
                }
            }
            Output::Table => {
                let cells: Vec<_> =
                    pairs.map(|(from, to)| if_connected(evaluate.sides(from, to, port))).collect::<Result<_, _>>()?;
                no_common_family |= cells.contains(&None);
                is_unknown |= cells.iter().flatten().any(|sides| sides.verdict() == Verdict::Unknown);
                one_family |= cells.iter().flatten().any(|sides| sides.only.is_some());
                table::print(out, &port.to_string(), &ends, &cells, Color::detect(), table::terminal_width())?;
            }
        }
    }
    match options.output {
        Output::Json => {
            writeln!(
                out,
                "{}",
                text::json(&serde_json::to_string_pretty(&JsonOutput {
                    connections: &explanations,
                    excluded: &excluded,
                    input: input.json()
                })?)
            )?;
        }
        Output::Table => {
            let families = if one_family { table::ONE_FAMILY } else { "" };
            let none = if no_common_family { table::NO_COMMON_FAMILY } else { "" };
            let unknown = if is_unknown { table::UNKNOWN } else { "" };
            writeln!(out, "{}{families}{none}{unknown}", table::LEGEND)?;
            unevaluated::print(out, &input.parsed.unevaluated, table::text_width())?;
            print_excluded(out, &excluded)?;
        }
    }
    Ok(match input.is_complete() {
        false => Exit::Input,
        true if is_unknown => Exit::Unknown,
        true => Exit::Ok,
    })
}

fn source(cluster: &mut OfflineCluster, end: &End) -> End {
    match end {
        End::Pod(key) => End::Pod(cluster.second_pod(key)),
        End::Address(_) | End::Service(_) => end.clone(),
    }
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
