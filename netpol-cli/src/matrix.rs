//! `netpol matrix`.

use std::io::Write;

use anyhow::{Result, bail};
use netpol_policy::explain::Explanation;
use netpol_policy::reference::End;
use netpol_policy::text::{self, Safe};
use netpol_policy::world::World;

use crate::Exit;
use crate::args::{MatrixOptions, Output};
use crate::color::Color;
use crate::input::Input;
use crate::verdict::{Judge, NoAnswer};
use crate::{placeholder, table};

pub(crate) fn run(options: &MatrixOptions, out: &mut impl Write) -> Result<Exit> {
    let input = Input::read(&options.input);
    input.report();
    let mut world = input.world();
    placeholder::fill_in(&mut world);
    let ends = ends(&world, options);
    if ends.is_empty() {
        bail!("there are no pods to show: give manifests of pods with -f, and check --namespace");
    }
    let judge = Judge::new(&world);
    let mut explanations: Vec<Explanation> = Vec::new();
    let mut unanswered = false;
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
                table::print(out, &port.to_string(), &ends, &cells, Color::detect(), table::terminal_width())?;
            }
        }
    }
    match options.output {
        Output::Json => {
            writeln!(out, "{}", text::json(&serde_json::to_string_pretty(&explanations)?))?;
        }
        Output::Table => {
            writeln!(out, "{}{}", table::LEGEND, if unanswered { table::NO_COMMON_FAMILY } else { "" })?;
        }
    }
    Ok(if input.unreadable.is_empty() { Exit::Ok } else { Exit::Input })
}

/// Ends without an address family in common have no verdict.
fn answered<T>(answer: Result<T, NoAnswer>) -> Result<Option<T>, NoAnswer> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(NoAnswer::Question(_)) => Ok(None),
        Err(disagreement) => Err(disagreement),
    }
}

/// The pods to show, then the addresses.
fn ends(world: &World, options: &MatrixOptions) -> Vec<End> {
    let mut ends = Vec::new();
    for pod in world.pods.values().filter(|pod| pod.participates()) {
        if !options.namespaces.is_empty() && !options.namespaces.iter().any(|name| **name == *pod.key.namespace) {
            continue;
        }
        if pod.addresses.is_empty() {
            let key = Safe(&pod.key);
            eprintln!("netpol: pod {key} has no address yet and is left out: give it `status.podIPs`");
            continue;
        }
        ends.push(End::Pod(pod.key.clone()));
    }
    ends.extend(options.addresses.iter().map(|&address| End::Address(address)));
    ends
}
