//! Options of commands that use the agents of a cluster, or the API server.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use netpol_api::{Condition, FlowVerdict, PortFilter, parse_duration};

use super::Output;
use crate::flows::EndMatch;

/// The default of `--agent-namespace`: the namespace of the agents in deploy/base.
pub(crate) const AGENT_NAMESPACE: &str = "kube-system";

/// How to reach the API server.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct KubeOptions {
    /// The kubeconfig file. Default: $KUBECONFIG, then ~/.kube/config
    #[arg(long, value_name = "PATH")]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// The context of the kubeconfig
    #[arg(long, value_name = "NAME")]
    pub(crate) context: Option<String>,
}

/// The cluster to read if there are no manifests, and the namespaces to show.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct ShownOptions {
    #[command(flatten)]
    pub(crate) kube: KubeOptions,
    /// Show only this namespace; repeatable. Default: with -f, all; otherwise that of the context
    #[arg(short, long = "namespace", value_name = "NAMESPACE")]
    pub(crate) namespaces: Vec<String>,
    /// Show all namespaces
    #[arg(short = 'A', long, conflicts_with = "namespaces")]
    pub(crate) all_namespaces: bool,
}

/// How to reach the API server, in commands that do not use the agents.
#[derive(Clone, Debug, Args)]
pub(crate) struct ApiOptions {
    #[command(flatten)]
    pub(crate) kube: KubeOptions,
    /// The time that the API server has for each response
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = parse_duration)]
    pub(crate) request_timeout: Duration,
}

/// How to find the agents, and which agents to use.
#[derive(Clone, Debug, Args)]
pub(crate) struct AgentOptions {
    #[command(flatten)]
    pub(crate) kube: KubeOptions,
    /// Use only the agent on this node; repeatable
    #[arg(long = "node", value_name = "NAME")]
    pub(crate) nodes: Vec<String>,
    /// The namespace of the agents
    #[arg(long, value_name = "NAMESPACE", env = "NETPOL_AGENT_NAMESPACE", default_value = AGENT_NAMESPACE)]
    pub(crate) agent_namespace: String,
    /// Use only the agent on the local node, through its socket (--api-socket of the agent), without a kubeconfig
    #[arg(long, value_name = "PATH", conflicts_with_all = ["kubeconfig", "context", "nodes"])]
    pub(crate) socket: Option<PathBuf>,
    /// The time that each node has to connect and to respond
    #[arg(long, value_name = "DURATION", default_value = "1500ms", value_parser = parse_duration)]
    pub(crate) request_timeout: Duration,
}

/// Which pods are shown.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct ScopeOptions {
    /// Only pods and policies of this namespace. Default: the namespace of the context; with --socket, all
    #[arg(short, long, value_name = "NAMESPACE")]
    pub(crate) namespace: Option<String>,
    /// All namespaces
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    pub(crate) all_namespaces: bool,
    /// Only pods with these labels, as with kubectl: app=web,tier!=edge
    #[arg(short = 'l', long, value_name = "SELECTOR")]
    pub(crate) selector: Option<String>,
}

const FLOWS_EXAMPLES: &str = "\
Examples:
  netpol flows -n shop --verdict denied --since 5m
  netpol flows -A -f -o wide
  netpol flows --from deploy/web --to shop/db-0 --port 5432/TCP
  netpol flows -A --policy shop/db --last 20 -o json | jq .reason

Flows of all nodes, sorted by time. Agents keep the last flows in memory: see
--flow-buffer of netpol-agent.

Ends of --from and --to:
  shop/web-0, pod/web-0       a pod
  deploy/web, sts/shop/db     the pods of a workload
  svc/db, svc/shop/db         a Service (--to)
  shop/*                      all pods of a namespace
  198.51.100.0/24             addresses";

#[derive(Debug, Args)]
#[command(after_help = FLOWS_EXAMPLES)]
pub(crate) struct FlowsOptions {
    #[command(flatten)]
    pub(crate) agents: AgentOptions,
    #[command(flatten)]
    pub(crate) scope: ScopeOptions,
    /// Continue with new flows until interrupted
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Only flows that are not older than this time, such as 5m; at most 1h
    #[arg(long, value_name = "DURATION", value_parser = parse_duration)]
    pub(crate) since: Option<Duration>,
    /// At most this number of flows that exist already. Default: 100; with --follow, 10; with --since, all
    #[arg(long, value_name = "N")]
    pub(crate) last: Option<usize>,
    /// Only flows with this verdict; repeatable
    #[arg(long = "verdict", value_name = "VERDICT", value_parser = FlowVerdict::parse, value_delimiter = ',')]
    pub(crate) verdicts: Vec<FlowVerdict>,
    /// Only flows from this end, see below
    #[arg(long, value_name = "END")]
    pub(crate) from: Option<EndMatch>,
    /// Only flows to this end
    #[arg(long, value_name = "END")]
    pub(crate) to: Option<EndMatch>,
    /// Only flows to this port, such as 53/UDP; without a protocol, of any protocol
    #[arg(short, long, value_name = "PORT/PROTOCOL")]
    pub(crate) port: Option<PortFilter>,
    /// Only flows with a record that lists this policy or one of its rules: NAMESPACE/NAME, or NAME in the namespace
    /// of -n
    #[arg(long, value_name = "POLICY")]
    pub(crate) policy: Option<String>,
    /// The output format
    #[arg(short, long, value_enum, default_value = "compact")]
    pub(crate) output: FlowsOutput,
}

/// The output format of flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum FlowsOutput {
    /// A line for each flow
    Compact,
    /// The same, and below each denied flow the nearest rule and a change of a policy that would allow the flow
    Wide,
    /// A line of JSON for each flow, see docs/flows.md
    Json,
}

const TOP_EXAMPLES: &str = "\
Examples:
  netpol top -n shop
  netpol top -A --verdict denied
  netpol top -A --once --since 10m -o json";

#[derive(Debug, Args)]
#[command(after_help = TOP_EXAMPLES)]
pub(crate) struct TopOptions {
    #[command(flatten)]
    pub(crate) list: ListOptions,
    /// Count flows that are not older than this time; at most 1h
    #[arg(long, value_name = "DURATION", default_value = "1m", value_parser = parse_duration)]
    pub(crate) since: Duration,
    /// Print the table once, and do not update it. This is the default if standard output is not a terminal, and with
    /// -o json
    #[arg(long)]
    pub(crate) once: bool,
    /// The time between updates
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = parse_duration)]
    pub(crate) interval: Duration,
    /// Only flows with this verdict; repeatable
    #[arg(long = "verdict", value_name = "VERDICT", value_parser = FlowVerdict::parse, value_delimiter = ',')]
    pub(crate) verdicts: Vec<FlowVerdict>,
}

const STATUS_EXAMPLES: &str = "\
Examples:
  netpol status
  netpol status --node node-1 -o json
  netpol status --socket /run/netpol/agent.sock

Nodes with problems come first. Their problems are listed below the table.";

#[derive(Debug, Args)]
#[command(after_help = STATUS_EXAMPLES)]
pub(crate) struct StatusOptions {
    #[command(flatten)]
    pub(crate) agents: AgentOptions,
    /// The output format
    #[arg(short, long, value_enum, default_value = "table")]
    pub(crate) output: Output,
}

pub(super) const LIST_EXAMPLES: &str = "\
Examples:
  netpol endpoints -n shop
  netpol policies -A
  netpol endpoints -A -l app=web -o json";

/// What is read from the agents, and how it is printed.
#[derive(Debug, Args)]
pub(crate) struct ListOptions {
    #[command(flatten)]
    pub(crate) agents: AgentOptions,
    #[command(flatten)]
    pub(crate) scope: ScopeOptions,
    /// The output format
    #[arg(short, long, value_enum, default_value = "table")]
    pub(crate) output: Output,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ShadowCommand {
    /// Show what policies in shadow mode would have denied
    #[command(after_help = SHADOW_EXAMPLES)]
    Report(ShadowOptions),
}

const SHADOW_EXAMPLES: &str = "\
Examples:
  netpol shadow report -n shop
  netpol shadow report -A --since 30m -o json

A policy is in shadow mode if it or its namespace has the annotation
netpol.io/mode: shadow. It is not enforced.";

#[derive(Debug, Args)]
pub(crate) struct ShadowOptions {
    #[command(flatten)]
    pub(crate) list: ListOptions,
    /// Report flows that are not older than this time; at most 1h
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = parse_duration)]
    pub(crate) since: Duration,
}

const WAIT_EXAMPLES: &str = "\
Examples:
  netpol wait --for policy/shop/backend --timeout 30s
  netpol wait --for delete=policy/shop/backend
  netpol wait --for pod/shop/web-0 --for pod/shop/web-1 -o json
  netpol wait --for sync --node node-1
  netpol wait --for sync --socket /run/netpol/agent.sock

Waits for the agents on all nodes, or on those of --node or --socket. Enforced
means: the current version of the objects is in the kernel for every selected
pod of the node, and applies to the next packet.
delete= waits until the object is deleted and no longer enforced.";

#[derive(Debug, Args)]
#[command(after_help = WAIT_EXAMPLES)]
pub(crate) struct WaitOptions {
    /// policy/NAMESPACE/NAME, pod/NAMESPACE/NAME, delete= followed by one of these, or sync (all current objects);
    /// repeatable
    #[arg(long = "for", value_name = "CONDITION", required = true)]
    pub(crate) conditions: Vec<Condition>,
    /// The maximum time to wait, such as 500ms, 30s or 2m; 0s checks once
    #[arg(long, default_value = "30s", value_name = "DURATION", value_parser = parse_duration)]
    pub(crate) timeout: Duration,
    #[command(flatten)]
    pub(crate) agents: AgentOptions,
    /// The output format
    #[arg(short, long, value_enum, default_value = "table")]
    pub(crate) output: Output,
}

const WHY_EXAMPLES: &str = "\
Examples:
  netpol why pod/web-0 -n shop
  netpol why deploy/web -n shop
  netpol why web-0 -o json

Needs only rights in the pod's namespace: it lists the pod's Events, which
agents with --kube-events write, and the namespace's pods and policies. Rights
to more objects make the answer more complete.";

#[derive(Debug, Args)]
#[command(after_help = WHY_EXAMPLES)]
pub(crate) struct WhyOptions {
    /// A pod, or a workload: pod/web-0, web-0, deploy/web
    #[arg(value_name = "POD")]
    pub(crate) pod: EndMatch,
    #[command(flatten)]
    pub(crate) api: ApiOptions,
    /// The namespace. Default: that of the context
    #[arg(short, long, value_name = "NAMESPACE")]
    pub(crate) namespace: Option<String>,
    /// The output format
    #[arg(short, long, value_enum, default_value = "table")]
    pub(crate) output: Output,
}

pub(super) const SUSPEND_EXAMPLES: &str = "\
Examples:
  netpol suspend -n shop --for 30m --reason 'incident 4711'
  netpol suspend --cluster --for 10m --reason 'incident 4712'
  netpol resume -n shop

Suspends enforcement: until the given time, policies deny nothing, and agents
report what they would deny. Sets annotations with your rights.";

/// Where enforcement is suspended.
#[derive(Clone, Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct SuspendScope {
    /// The namespace
    #[arg(short, long, value_name = "NAMESPACE")]
    pub(crate) namespace: Option<String>,
    /// The whole cluster
    #[arg(long)]
    pub(crate) cluster: bool,
}

/// What is suspended or resumed, and how it is printed.
#[derive(Debug, Args)]
pub(crate) struct SuspensionOptions {
    #[command(flatten)]
    pub(crate) scope: SuspendScope,
    #[command(flatten)]
    pub(crate) api: ApiOptions,
    /// The namespace of the agents
    #[arg(long, value_name = "NAMESPACE", env = "NETPOL_AGENT_NAMESPACE", default_value = AGENT_NAMESPACE)]
    pub(crate) agent_namespace: String,
    /// The output format
    #[arg(short, long, value_enum, default_value = "table")]
    pub(crate) output: Output,
}

#[derive(Debug, Args)]
pub(crate) struct SuspendOptions {
    /// The duration, such as 30m or 2h, at most 24h
    #[arg(long = "for", value_name = "DURATION", value_parser = crate::suspend::duration)]
    pub(crate) duration: Duration,
    /// Why; stored with the suspension and reported by the agents
    #[arg(long, value_name = "TEXT", value_parser = crate::suspend::reason)]
    pub(crate) reason: String,
    #[command(flatten)]
    pub(crate) suspension: SuspensionOptions,
}
