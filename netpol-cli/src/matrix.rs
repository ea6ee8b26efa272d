//! `netpol matrix`.

use std::io::{self, Write};

use anyhow::{Result, bail};
use netpol_policy::explain::Explanation;
use netpol_policy::reference::End;
use netpol_policy::text::{self, Safe};
use netpol_policy::world::World;
use serde::Serialize;

use crate::Exit;
use crate::args::{MatrixOptions, Output};
use crate::color::Color;
use crate::input::{Input, InputReport};
use crate::table;
use crate::verdict::{Judge, NoAnswer};

/// Pods of a kind that are left out and listed by name.
const LISTED: usize = 10;

/// What `-o json` prints.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Answer<'a> {
    connections: &'a [Explanation],
    left_out: &'a [LeftOut],
    input: InputReport<'a>,
}

pub(crate) fn run(options: &MatrixOptions, out: &mut impl Write) -> Result<Exit> {
    let input = Input::read(&options.input);
    input.report();
    let world = input.world(true);
    let (ends, left_out) = ends(&world, options);
    if ends.is_empty() {
        print_left_out(&mut io::stderr(), &left_out)?;
        bail!("there are no pods to show: give manifests of pods with -f, and check --namespace");
    }
    let judge = Judge::new(&world);
    let mut explanations: Vec<Explanation> = Vec::new();
    let (mut unanswered, mut one_family) = (false, false);
    for &port in &options.ports {
        let pairs = ends.iter().flat_map(|from| ends.iter().map(move |to| (from, to)));
        match options.output {
            Output::Json => {
                for (from, to) in pairs {
                    explanations.extend(answered(judge.explain(from, to, port))?);
                }
            }
            Output::Table => {
                let cells: Vec<_> =
                    pairs.map(|(from, to)| answered(judge.sides(from, to, port))).collect::<Result<_, _>>()?;
                unanswered |= cells.contains(&None);
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
                text::json(&serde_json::to_string_pretty(&Answer {
                    connections: &explanations,
                    left_out: &left_out,
                    input: input.json()
                })?)
            )?;
        }
        Output::Table => {
            let families = if one_family { table::ONE_FAMILY } else { "" };
            let none = if unanswered { table::NO_COMMON_FAMILY } else { "" };
            writeln!(out, "{}{families}{none}", table::LEGEND)?;
            print_left_out(out, &left_out)?;
        }
    }
    Ok(if input.is_complete() { Exit::Ok } else { Exit::Input })
}

/// Ends without an address family in common have no verdict.
fn answered<T>(answer: Result<T, NoAnswer>) -> Result<Option<T>, NoAnswer> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(NoAnswer::Question(_)) => Ok(None),
        Err(disagreement) => Err(disagreement),
    }
}

/// Why a pod is not in the matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
enum Why {
    HostNetwork,
    Finished,
    NoAddress,
}

impl Why {
    /// After "left out: 2 pods".
    const fn text(self) -> &'static str {
        match self {
            Self::HostNetwork => {
                "on the host network, to which no policy applies; show the node's address with --address"
            }
            Self::Finished => "that finished (Succeeded or Failed)",
            Self::NoAddress => "without an address; give them `status.podIPs`",
        }
    }
}

/// A pod that is not in the matrix.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct LeftOut {
    pod: String,
    reason: Why,
}

/// The pods to show, then the addresses; and the pods that are left out.
fn ends(world: &World, options: &MatrixOptions) -> (Vec<End>, Vec<LeftOut>) {
    let (mut ends, mut left_out) = (Vec::new(), Vec::new());
    for pod in world.pods.values() {
        if !options.namespaces.is_empty() && !options.namespaces.iter().any(|name| **name == *pod.key.namespace) {
            continue;
        }
        let reason = match pod {
            pod if pod.finished => Some(Why::Finished),
            pod if pod.host_network => Some(Why::HostNetwork),
            pod if pod.addresses.is_empty() => Some(Why::NoAddress),
            _ => None,
        };
        match reason {
            Some(reason) => left_out.push(LeftOut { pod: pod.key.to_string(), reason }),
            None => ends.push(End::Pod(pod.key.clone())),
        }
    }
    ends.extend(options.addresses.iter().map(|&address| End::Address(address)));
    (ends, left_out)
}

/// `left out: 2 pods on the host network, …: kube-system/a, kube-system/b`, a line for each reason.
fn print_left_out(out: &mut impl Write, left_out: &[LeftOut]) -> io::Result<()> {
    for reason in [Why::HostNetwork, Why::Finished, Why::NoAddress] {
        let pods: Vec<&str> = left_out.iter().filter(|pod| pod.reason == reason).map(|pod| &*pod.pod).collect();
        if pods.is_empty() {
            continue;
        }
        let shown = pods.iter().take(LISTED).copied().collect::<Vec<_>>().join(", ");
        let more = if pods.len() > LISTED { ", …" } else { "" };
        let plural = if pods.len() == 1 { "" } else { "s" };
        writeln!(out, "left out: {} pod{plural} {}: {}{more}", pods.len(), reason.text(), Safe(shown))?;
    }
    Ok(())
}
