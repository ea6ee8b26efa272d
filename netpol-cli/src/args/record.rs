//! Options of `record`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use netpol_api::parse_duration;

use super::{AgentOptions, InputOptions};

pub(super) const RECORD_EXAMPLES: &str = "\
Examples:
  netpol record -n shop --since 1h > policies.yaml
  netpol record -A --shadow | kubectl apply -f -
  netpol record --flows flows.json -f manifests/ -n shop
  netpol flows -A -f -o json | tee flows.json
  kubectl get pods,svc,endpointslices,nodes -A -o yaml | netpol record --flows flows.json -f -

Writes for each namespace a policy that denies everything, and for each workload
a policy that allows the flows that were observed. Comments name these flows.
Review the result: connections that were not observed are denied. With
--shadow, the policies only report what they would deny.

Without --flows, the agents' last flows and the pods' labels are read from the
cluster. --flows reads a file with records in the format of `netpol flows -o json`,
which agents with --flow-export file:PATH also write. If the records have no
labels of a pod, the pod must be in the manifests of -f.";

#[derive(Debug, Args)]
pub(crate) struct RecordOptions {
    /// Read the flows from this file, one JSON record a line (docs/flows.md), or from standard input with -
    #[arg(long, value_name = "FILE")]
    pub(crate) flows: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) input: InputOptions,
    /// Write policies for this namespace; repeatable. Default: with --flows or --socket, all namespaces, like -A;
    /// otherwise the namespace of the context
    #[arg(short, long = "namespace", value_name = "NAMESPACE")]
    pub(crate) namespaces: Vec<String>,
    /// Write policies for all namespaces with flows, except those with the prefix kube-
    #[arg(short = 'A', long, conflicts_with = "namespaces")]
    pub(crate) all_namespaces: bool,
    /// Use flows that are not older than this time; at most 1h
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = parse_duration, conflicts_with = "flows")]
    pub(crate) since: Duration,
    #[command(flatten)]
    pub(crate) content: RecordContent,
    #[command(flatten)]
    pub(crate) agents: AgentOptions,
    /// The output format
    #[arg(short, long, value_enum, default_value = "yaml")]
    pub(crate) output: RecordOutput,
}

/// What the policies contain.
#[derive(Debug, Args)]
pub(crate) struct RecordContent {
    /// Also allow what policies have denied
    #[arg(long)]
    pub(crate) include_denied: bool,
    /// Leave out ICMP and other protocols without ports: a rule for one of them allows all protocols and ports
    #[arg(long)]
    pub(crate) skip_icmp: bool,
    /// Put the policies into shadow mode: they deny nothing, and agents report what they would deny
    #[arg(long)]
    pub(crate) shadow: bool,
}

/// The output format of `record`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum RecordOutput {
    /// YAML, with comments that name the flows
    Yaml,
    /// A JSON list
    Json,
}
