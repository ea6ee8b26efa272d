//! The command line.

use std::net::{AddrParseError, IpAddr};
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Parser, Subcommand, ValueEnum};
use ipnet::IpNet;
use netpol_policy::model::Protocol;

use crate::assert::{self, AssertOptions};
use crate::diff::{self, DiffOptions};
use crate::ends::{EndArgument, MatrixEnd};
use crate::graph::{self, GraphOptions};
pub(crate) use crate::lint::LintOptions;

mod live;
mod record;

pub(crate) use live::{
    AGENT_NAMESPACE, AgentOptions, ApiOptions, FlowsOptions, FlowsOutput, KubeOptions, ListOptions, ScopeOptions,
    ShadowCommand, ShadowOptions, ShownOptions, StatusOptions, SuspendOptions, SuspendScope, SuspensionOptions,
    TopOptions, WaitOptions, WhyOptions,
};
pub(crate) use record::{RecordOptions, RecordOutput};

const EXIT_CODES: &str = "\
Exit codes:
  0   done
      explain: allowed; lint: no findings of the severity of --fail-on or
      above; wait: enforced; assert: all expectations are met
  1   explain: denied, or only some connections or backends allowed; or, with
      --live, the tables of a node deny it
      lint: findings of the severity of --fail-on or above
      diff --exit-code: connections change
      assert: an expectation fails
      wait: timed out, not found, or cannot be enforced
  2   wrong usage
  3   input could not be read, or the requested object is not in the input
      explain, matrix, diff, assert, graph: also if a part of an object is invalid,
      or a template was skipped; the result is printed, and may be wrong
      lint, matrix, diff, assert, graph of a cluster: also if you cannot list
      objects that they need
      record: also if some flows have no rule
      commands for a cluster: the API server does not respond, or no agent
      responds
  4   unknown: the verdict depends on a policy of a kind that netpol does not
      evaluate (Cilium, Calico, Antrea, AdminNetworkPolicy, …), on an address
      that the manifests do not contain, or on objects that you cannot list
      matrix, graph: at least one verdict is unknown; diff: an unknown change
      assert: an expectation is unknown, and none fails
  5   some nodes did not respond; the output has only the nodes that did
  70  a bug in netpol: the compiled tables and the reference differ; record: the
      policies deny a recorded flow";

/// Evaluate network policies: which pods can connect, and why; and show what the agents of a cluster enforce. Reads
/// manifests, or uses the cluster of your kubeconfig.
#[derive(Debug, Parser)]
#[command(name = "netpol", version, after_help = EXIT_CODES)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show which pods can connect to which, at which ports
    #[command(after_help = MATRIX_EXAMPLES)]
    Matrix(MatrixOptions),
    /// Explain why a connection is allowed or denied
    #[command(after_help = EXPLAIN_EXAMPLES)]
    Explain(Box<ExplainOptions>),
    /// Show which connections two versions of manifests allow differently, and why
    // The help of `-f` differs: in this command, `-f` is only for manifests that belong to both versions.
    #[command(after_help = diff::EXAMPLES, mut_arg("paths", |arg| arg.help(diff::COMMON)))]
    Diff(DiffOptions),
    /// Check expectations about connections, with a counterexample for each that fails
    #[command(after_help = assert::EXAMPLES)]
    Assert(AssertOptions),
    /// Draw which workloads can connect to which, grouped by namespace
    #[command(after_help = graph::EXAMPLES)]
    Graph(GraphOptions),
    /// Report errors and mistakes in manifests, with file, line and fix
    #[command(after_help = LINT_EXAMPLES)]
    Lint(LintOptions),
    /// Show the flows of all nodes: allowed, denied, and what policies in shadow mode would deny
    Flows(FlowsOptions),
    /// Show the pairs of workloads with the most flows
    Top(TopOptions),
    /// Show the agents of all nodes, those with problems first
    Status(StatusOptions),
    /// Show the pod interfaces on all nodes, with the policies that isolate them
    #[command(after_help = live::LIST_EXAMPLES)]
    Endpoints(ListOptions),
    /// Show what each policy selects, and the flows of each rule
    #[command(after_help = live::LIST_EXAMPLES)]
    Policies(ListOptions),
    /// Show what policies in shadow mode would deny
    #[command(subcommand)]
    Shadow(ShadowCommand),
    /// Write policies that allow the flows that were observed, and deny everything else
    #[command(after_help = record::RECORD_EXAMPLES)]
    Record(Box<RecordOptions>),
    /// Show why a pod's connections are denied, with rights in its namespace only
    Why(WhyOptions),
    /// Wait until all nodes enforce a policy, or all policies of a pod
    Wait(WaitOptions),
    /// Suspend the enforcement of policies for a limited time
    #[command(after_help = live::SUSPEND_EXAMPLES)]
    Suspend(SuspendOptions),
    /// End a suspension
    #[command(after_help = live::SUSPEND_EXAMPLES)]
    Resume(SuspensionOptions),
    /// Print a script with which a shell completes commands and options of netpol
    #[command(after_help = COMPLETION_EXAMPLES)]
    Completion {
        /// The shell
        #[arg(value_name = "SHELL")]
        shell: clap_complete::Shell,
    },
    /// Write manual pages, for netpol and for each command, to a directory
    #[command(after_help = MAN_EXAMPLES)]
    Man {
        /// The directory; created if it does not exist
        #[arg(value_name = "DIRECTORY")]
        directory: PathBuf,
    },
}

const MATRIX_EXAMPLES: &str = "\
Examples:
  netpol matrix -f manifests/
  helm template . | netpol matrix -f - --to deploy/db --only-allowed -o md
  netpol matrix -f manifests/ -p 80/TCP
  netpol matrix -f pods.yaml -f policies/ -p 80/TCP -p 53/UDP --namespace shop
  netpol matrix -n shop                        # of the cluster of your kubeconfig
  netpol matrix -A --context staging -o json

Without -f, matrix lists the objects of the cluster with your rights. If you
cannot list objects that it needs, it names them, and the exit code is 3.";

const EXPLAIN_EXAMPLES: &str = "\
Examples:
  netpol explain -f manifests/ --from shop/frontend --to shop/backend --port 8080/TCP
  netpol explain -f manifests/ --from shop/frontend --to service/shop/backend --port 80/TCP
  netpol explain -f manifests/ --from shop/frontend --to 198.51.100.7 --port 443/TCP -o json
  helm template . | netpol explain -f - -n shop --from deploy/web --to svc/db --port 5432
  kubectl kustomize . | netpol explain -f - -n shop --from app=web --to internet --port 443
  netpol explain -n shop --from pod/web-0 --to svc/db --port 5432 --live

Without -f, explain lists the objects of the cluster with your rights. If you
cannot list objects that may matter, the verdict is unknown.

Ends, with kubectl's names of resources:
  deploy/web, sts/db, job/migrate …    the pods of a workload in the namespace of -n
  deploy/shop/web                      the same, with the namespace
  shop/web-0, pod/web-0                a pod
  svc/db, svc/shop/db                  a Service (--to)
  app=web,tier!=edge                   all pods in the namespace of -n with these labels
  198.51.100.7, 198.51.100.0/24        an address, all addresses of a range
  internet                             all public addresses, but not those of pods, nodes and Services

An end can stand for several pods or addresses. Then all of them are evaluated,
and one of them is explained: a denied one if there is any, otherwise an
unknown one, otherwise an allowed one.

If both ends have an IPv4 and an IPv6 address, each family is evaluated; the
verdict is the worse of the two.";

const LINT_EXAMPLES: &str = "\
Examples:
  netpol lint -f manifests/
  netpol lint -f manifests/ --fail-on warning --skip NP071
  netpol lint -f manifests/ -o github          # annotations in a workflow
  netpol lint -f manifests/ -o sarif > lint.sarif
  netpol lint -n shop                          # the cluster of your kubeconfig
  netpol lint -A --context staging --fail-on warning

Each finding has the ID of its rule, such as NP010; docs/lint/ describes the
rules. To suppress findings of a policy, or of all policies of a Namespace, add
an annotation with the IDs and the reasons:
  netpol.io/lint-ignore: \"NP041: the address is static; NP070: …\"";

const COMPLETION_EXAMPLES: &str = "\
Examples:
  source <(netpol completion bash)
  netpol completion zsh > \"${fpath[1]}/_netpol\"
  netpol completion fish > ~/.config/fish/completions/netpol.fish";

const MAN_EXAMPLES: &str = "\
Examples:
  netpol man ~/.local/share/man/man1 && man netpol-explain";

#[derive(Clone, Debug, Default, Args)]
pub(crate) struct InputOptions {
    /// Manifests: a file, a directory (read recursively: *.yaml, *.yml, *.json), or - for standard input; repeatable
    #[arg(short = 'f', long = "filename", value_name = "PATH")]
    pub(crate) paths: Vec<PathBuf>,
    /// The maximum size of a manifest in MiB; a larger file is not read
    #[arg(long, value_name = "MIB", default_value_t = netpol_files::DEFAULT.file / netpol_files::MIB)]
    pub(crate) max_manifest_file: u64,
    /// The maximum size of all manifests in MiB. Files are read in the order of their paths; a file that would exceed
    /// this size is not read
    #[arg(long, value_name = "MIB", default_value_t = netpol_files::DEFAULT.all / netpol_files::MIB)]
    pub(crate) max_manifests: u64,
    /// A range of pod addresses in your cluster; repeatable. A pod without an address in the input may have any address
    /// of these ranges. Default: the private ranges 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16 and `fc00::/7`
    #[arg(long = "pod-cidr", value_name = "CIDR", env = "NETPOL_POD_CIDR", value_delimiter = ',')]
    pub(crate) pod_cidrs: Vec<IpNet>,
    /// The namespace of objects that have none; `None` means `default`. Not an option: a command sets it.
    #[arg(skip)]
    pub(crate) default_namespace: Option<String>,
}

impl InputOptions {
    pub(crate) fn limits(&self) -> netpol_files::Limits {
        let bytes = |mib: u64| mib.saturating_mul(netpol_files::MIB);
        netpol_files::Limits { file: bytes(self.max_manifest_file), all: bytes(self.max_manifests) }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// Text
    Table,
    /// JSON
    Json,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct MatrixOptions {
    #[command(flatten)]
    pub(crate) input: InputOptions,
    #[command(flatten)]
    pub(crate) shown: ShownOptions,
    /// Port and protocol, such as 80/TCP or 53/UDP; without protocol, TCP; repeatable
    ///
    /// Without ports, the matrix is a list of the exact ports that are allowed.
    #[arg(short, long = "port", value_name = "PORT/PROTOCOL")]
    pub(crate) ports: Vec<PortArgument>,
    /// Show only connections from this end: a workload, a pod, labels (as with explain), or a namespace as NAMESPACE/*.
    /// An end without a namespace is in the first namespace of -n
    #[arg(long, value_name = "END", allow_hyphen_values = true)]
    pub(crate) from: Option<MatrixEnd>,
    /// Show only connections to this end
    #[arg(long, value_name = "END", allow_hyphen_values = true)]
    pub(crate) to: Option<MatrixEnd>,
    /// Show only connections that are allowed or unknown at some port
    #[arg(long)]
    pub(crate) only_allowed: bool,
    /// An address to add to the matrix, such as one outside the cluster or of a Service; repeatable. A Service is
    /// allowed if all of its backends are allowed
    #[arg(short, long = "address", value_name = "ADDRESS", value_parser = address)]
    pub(crate) addresses: Vec<IpAddr>,
    /// The output format. With csv, md, dot and mermaid, only the ports of -p are shown
    #[arg(short, long, value_enum, default_value = "table")]
    pub(crate) output: MatrixOutput,
}

/// The output format of the matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum MatrixOutput {
    /// Text: with -p a matrix for each port, otherwise a list
    Table,
    /// JSON
    Json,
    /// A line for each connection
    Csv,
    /// A Markdown table
    Md,
    /// A graph for Graphviz
    Dot,
    /// A graph for Mermaid, as in Markdown on GitHub
    Mermaid,
}

#[derive(Debug, Args)]
pub(crate) struct ExplainOptions {
    #[command(flatten)]
    pub(crate) input: InputOptions,
    /// Source: a workload, a pod, labels, an address, a range, or internet; see below
    #[arg(long, value_name = "END", allow_hyphen_values = true)]
    pub(crate) from: EndArgument,
    /// Destination: the same, or a Service
    #[arg(long, value_name = "END", allow_hyphen_values = true)]
    pub(crate) to: EndArgument,
    /// The namespace of ends that are written without one. Default: default; without -f, that of the context
    #[arg(short, long, value_name = "NAMESPACE")]
    pub(crate) namespace: Option<String>,
    /// Port and protocol, such as 80/TCP or 53/UDP; without protocol, TCP
    #[arg(short, long, value_name = "PORT/PROTOCOL")]
    pub(crate) port: PortArgument,
    /// Also ask the agents for the verdicts of their nodes' tables, and report differences. Each end must be a pod, a
    /// Service or an address
    #[arg(long)]
    pub(crate) live: bool,
    #[command(flatten)]
    pub(crate) agents: AgentOptions,
    /// The output format
    #[arg(short, long, value_enum, default_value = "table")]
    pub(crate) output: Output,
}

/// Parses an address. An IPv4-mapped IPv6 address becomes the IPv4 address.
fn address(text: &str) -> Result<IpAddr, AddrParseError> {
    text.parse::<IpAddr>().map(|address| address.to_canonical())
}

/// The port and protocol of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PortArgument {
    pub(crate) port: u16,
    pub(crate) protocol: Protocol,
}

impl FromStr for PortArgument {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (port, protocol) = text.split_once('/').unwrap_or((text, "TCP"));
        let port = port.parse::<u16>().ok().filter(|&port| port != 0);
        let port =
            port.ok_or_else(|| format!("`{text}` has no port number; write a port from 1 to 65535, such as 80/TCP"))?;
        let protocol = Protocol::from_name(&protocol.to_uppercase())
            .ok_or_else(|| format!("unknown protocol `{protocol}`; write TCP, UDP or SCTP"))?;
        Ok(Self { port, protocol })
    }
}

impl std::fmt::Display for PortArgument {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.port, self.protocol.name())
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn ports_are_parsed_with_and_without_protocol() {
        for (text, expected) in [("80/TCP", "80/TCP"), ("53/udp", "53/UDP"), ("9", "9/TCP"), ("1/SCTP", "1/SCTP")] {
            assert_eq!(text.parse::<PortArgument>().map(|port| port.to_string()), Ok(expected.to_owned()));
        }
        for text in ["", "0", "65536", "http", "80/ICMP", "80/"] {
            assert!(text.parse::<PortArgument>().is_err(), "{text}");
        }
    }
}
