//! `netpol graph`: draws which workloads can connect to which.

mod layout;
mod model;
mod svg;
mod text;

use std::io::Write;

use anyhow::Result;
use clap::{Args, ValueEnum};
use netpol_policy::offline::Reachability;

use model::Graph;

use crate::Exit;
use crate::args::{InputOptions, ShownOptions};
use crate::live::{self, View};

pub(crate) const EXAMPLES: &str = "\
Examples:
  netpol graph -f manifests/ > graph.svg
  netpol graph -f manifests/ -n shop -o mermaid
  netpol graph -f manifests/ -o dot | dot -Tpng > graph.png
  netpol graph -n shop > graph.svg             # the cluster of your kubeconfig

A node of the graph stands for workloads of one namespace with the same
connections. `in`: ports at which their policies allow all sources. `out`:
ports at which their policies allow all destinations. Edges have the other
allowed ports. An edge at a namespace stands for an edge at each node in this
namespace.";

#[derive(Debug, Args)]
pub(crate) struct GraphOptions {
    #[command(flatten)]
    pub(crate) input: InputOptions,
    #[command(flatten)]
    pub(crate) shown: ShownOptions,
    /// The output format
    #[arg(short, long, value_enum, default_value = "svg")]
    pub(crate) output: GraphOutput,
}

/// The output format of the graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum GraphOutput {
    /// An image
    Svg,
    /// For Graphviz
    Dot,
    /// For Mermaid, as in Markdown on GitHub
    Mermaid,
}

pub(crate) fn run(options: &GraphOptions, out: &mut impl Write) -> Result<Exit> {
    let (input, namespaces) = live::read_shown(&options.input, &options.shown, View::Addresses)?;
    input.report();
    let cluster = input.cluster(&options.input);
    let mut reachability = Reachability::new(&[&cluster]);
    let graph = Graph::new(&mut reachability, &namespaces);
    if graph.nodes.is_empty() {
        return Err(live::no_pods(&input));
    }
    match options.output {
        GraphOutput::Svg => svg::print(out, &graph)?,
        GraphOutput::Dot => text::dot(out, &graph)?,
        GraphOutput::Mermaid => text::mermaid(out, &graph)?,
    }
    Ok(match input.is_complete() {
        false => Exit::InvalidInput,
        true if graph.has_unknown => Exit::Unknown,
        true => Exit::Ok,
    })
}
