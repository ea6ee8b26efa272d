//! `netpol explain --live`: the verdicts of the tables that the agents have compiled.

use std::io::Write;

use anyhow::{Result, bail};
use netpol_api::{ExplainResponse, FlowVerdict};
use netpol_policy::reference::End;
use netpol_policy::text::Safe;
use serde::Serialize;

use crate::Exit;
use crate::args::ExplainOptions;
use crate::color::ColorMode;
use crate::columns::Tone;
use crate::ends::EndSet;
use crate::remote::{Answer, Failure, Fleet, runtime};
use crate::table::{paragraph, text_width};

/// The verdicts of all nodes on which a pod of the connection runs.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Tables {
    nodes: Vec<ExplainResponse>,
    failures: Vec<Failure>,
}

/// Requests the verdicts from the agents. The exit code is [`Exit::Negative`] if a table denies the connection, even if
/// the objects allow it.
pub(super) fn live_tables(options: &ExplainOptions, (from, to): (&EndSet, &EndSet)) -> Result<(Tables, Exit)> {
    let ([(from, _)], [(to, _)]) = (&from.ends[..], &to.ends[..]) else {
        bail!(
            "--live needs one pod, Service or address at each end; {} or {} stands for several",
            from.title,
            to.title
        );
    };
    let path = format!("/v1/explain?from={}&to={}&port={}", end_parameter(from)?, end_parameter(to)?, options.port);
    runtime()?.block_on(async {
        let mut fleet = Fleet::find(&options.agents).await?;
        let answers: Vec<Answer<ExplainResponse>> = fleet.get(&path).await;
        let answered = answers.len();
        // The response of a node without a pod of the connection has no tables.
        let nodes: Vec<ExplainResponse> =
            answers.into_iter().map(|answer| answer.content).filter(|response| !response.tables.is_empty()).collect();
        let exit = fleet.finish(answered)?;
        let denies = nodes.iter().flat_map(|node| &node.tables).any(|table| table.verdict == FlowVerdict::Denied);
        let exit = if denies { Exit::Negative } else { exit };
        Ok((Tables { nodes, failures: fleet.failures().to_vec() }, exit))
    })
}

/// Returns an end of the connection (source or destination) as a parameter of the agents' API.
fn end_parameter(end: &End) -> Result<String> {
    Ok(match end {
        End::Pod(key) if key.workload().is_some() => {
            bail!("--live needs pods that exist; {} has none", key.title())
        }
        End::Pod(key) => key.to_string(),
        End::Service(key) => format!("service/{key}"),
        End::Address(address) => address.to_string(),
    })
}

/// Prints the verdicts of each node, with the generation of the node's tables: the number of the last batch of changes
/// that is fully enforced.
pub(super) fn print(out: &mut impl Write, tables: &Tables) -> Result<()> {
    let color = ColorMode::detect();
    writeln!(out, "\nOn the nodes:")?;
    if tables.nodes.is_empty() {
        writeln!(out, "  no node that responded has one of the pods")?;
    }
    for node in &tables.nodes {
        for table in &node.tables {
            let tone = if table.verdict == FlowVerdict::Denied { Tone::Bad } else { Tone::Good };
            let backend = if table.backend { "backend " } else { "" };
            let line = format!(
                "{}, {} of {}, {backend}{} port {}: ",
                node.node,
                table.direction.name(),
                table.pod,
                table.remote,
                table.port
            );
            let verdict = color.tone(Some(tone), table.verdict.name());
            writeln!(out, "  {}{verdict} ({}), generation {}", Safe(line), Safe(&table.reason), node.generation)?;
        }
        if node.differs {
            let why = if node.generation < node.generation_received {
                format!("generation {} was received, and is not enforced yet", node.generation_received)
            } else {
                "this is a bug, please report it".to_owned()
            };
            let (node, generation) = (&node.node, node.generation);
            let text = format!(
                "the verdict of the tables of {node} (generation {generation}) differs from that of the objects: {why}"
            );
            paragraph(out, text, text_width(), 2)?;
        }
    }
    Ok(())
}
