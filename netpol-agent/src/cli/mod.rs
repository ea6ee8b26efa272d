//! Defines the command line.

mod connect;
mod flow_export;
mod gate_status;
mod log;
mod memory;
mod print;
mod requirements;
mod run;
mod start_gate;
mod status;
mod uninstall;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};
use netpol_cni::WhenAgentAway;
use netpol_common::{EVENT_BUDGETS_PER_ENDPOINT, EVENT_LIMIT_WAYS};
use netpol_policy::cluster_state::AGENT_NAMESPACE;
use netpol_policy::text::Safe;

use crate::api::SocketError;
use crate::events::DEFAULT_FLOW_BUFFER;
use crate::reconcile::UnknownPods;
use flow_export::FlowExport;
use memory::PolicyMemory;
use netpol_dataplane::{AttachMode, Capacities, FlowTotalsMode, SHARED_TABLE_DIVISOR};
use netpol_policy::text::error_chain;
use netpol_source::ObjectSource;

/// Exit code: success.
pub const OK: u8 = 0;
/// Exit code: failure, in full or in part.
pub const FAILED: u8 = 1;
/// Exit code: another agent runs on the same pin path or API socket.
pub const LOCKED: u8 = 3;
/// Exit code: the agent was built without its BPF programs.
pub const NO_OBJECT: u8 = 4;
/// Exit code: privileges or a BPF filesystem are missing, or the kernel is too old.
pub const UNABLE: u8 = 5;

const EXIT_CODES: &str = "\
Exit codes: 0 done; 1 failed, or something remains (uninstall); 2 usage error; 3 another agent runs on the pin path or the socket; \
4 built without BPF programs; 5 missing privileges, kernel too old, or no BPF filesystem.";

/// Enforces Kubernetes network policies for the pods of a node, with eBPF programs on their veths.
#[derive(Debug, Parser)]
#[command(name = "netpol-agent", version, after_help = EXIT_CODES)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Enforce policies, and print deny events as JSON lines.
    // A Kustomize overlay can only append arguments. So if an option is repeated, its last value is used.
    #[command(after_help = RUN_HELP, args_override_self = true)]
    Run(Box<RunArgs>),
    /// Connect standard input and output to the API socket of the agent, for clients on other machines.
    #[command(after_help = CONNECT_HELP)]
    Connect(ConnectArgs),
    /// Show what the kernel enforces now, even if no agent is running.
    #[command(after_help = STATUS_HELP)]
    Status(StatusArgs),
    /// Remove all links, filters, programs and maps of netpol, and check that nothing is left. Policies are not
    /// enforced afterwards.
    #[command(after_help = UNINSTALL_HELP)]
    Uninstall(UninstallArgs),
}

const RUN_HELP: &str = "\
Examples:
  netpol-agent run --source kube --node $NODE_NAME
  netpol-agent run --source kube:$HOME/.kube/config --node n1
  netpol-agent run --source dir:/etc/netpol --node $(hostname)
  netpol-agent run --source dir:. --node n1 --unknown-pods deny --metrics 127.0.0.1:9464 --health 127.0.0.1:9465

Deny events are written to standard output, one JSON object per line; the log goes to standard error.
SIGTERM and SIGINT stop the agent. What is enforced stays enforced, and the next agent takes over.
`netpol-agent uninstall` removes everything that is enforced.

If map sizes change, the agent creates maps of the new sizes and copies all entries. If the entries do not fit, all maps
keep their old sizes, and the log reports it.

After a pod is deleted, its policies stay in force on its interface until the interface is removed or another pod gets the
same address. --unknown-pods applies to each veth that has its peer in another network namespace and never belonged to a
known pod, even if Kubernetes did not create the veth.";

const STATUS_HELP: &str = "\
Examples:
  netpol-agent status
  netpol-agent status -o json | jq '.endpoints[].packets'

Addresses and interfaces are read from the pinned maps, even if no agent is running. Names of pods and policies come from
the agent that listens on --api-socket.
INGRESS and EGRESS: the first three policies that isolate the pod (policies of its namespace), or `open` if no policy
isolates it. If no agent responds, these columns show the ID of the rule set.
NOTES: CONFLICT means that the interface has an address of a pod to which another interface is bound; UNLISTED means an
address of the pod that is not in its status.podIPs; OBSERVED ONLY means that an agent with --observe attached the
programs, which enforce nothing.
Exit code 1: nothing is pinned below --pin-path.";

const UNINSTALL_HELP: &str = "\
Examples:
  netpol-agent uninstall
  netpol-agent uninstall --pin-path /sys/fs/bpf/other

Stop the agent first. Exit code 1: something could not be removed, and is listed; 3: an agent is still running.";

const CONNECT_HELP: &str = "\
Examples:
  printf 'GET /v1/status HTTP/1.1\\r\\nHost: n1\\r\\n\\r\\n' | netpol-agent connect
  kubectl -n netpol exec -i POD -- netpol-agent connect

`netpol` runs this command through the API server (pods/exec), so no port is open on any node. At the end of the input, the
response is still read to its end. Exit code 1: no agent listens on the socket, or the connection failed.";

const PIN_PATH: &str = "/sys/fs/bpf/netpol";

#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is an option of the command line")]
struct RunArgs {
    /// Source of objects: kube, the API server of this cluster; kube:PATH, the API server of a kubeconfig; dir:PATH,
    /// a directory tree of manifests
    #[arg(long, env = "NETPOL_SOURCE")]
    source: ObjectSource,
    /// Maximum size of a manifest file of --source dir:PATH, in MiB; larger files are not read
    #[arg(long, value_name = "MIB", default_value_t = netpol_files::DEFAULT.file / netpol_files::MIB)]
    max_manifest_file: u64,
    /// Maximum size of all manifest files of --source dir:PATH, in MiB; files are read in the order of their paths, and
    /// a file that would exceed this size is not read
    #[arg(long, value_name = "MIB", default_value_t = netpol_files::DEFAULT.all / netpol_files::MIB)]
    max_manifests: u64,
    /// Name of this node, as in `spec.nodeName` of its pods
    #[arg(long, env = "NODE_NAME")]
    node: String,
    /// Namespace of the agents; its annotation netpol.io/suspend-cluster-until suspends enforcement in all namespaces
    #[arg(long, env = "POD_NAMESPACE", default_value = AGENT_NAMESPACE)]
    agent_namespace: String,
    /// Directory on a BPF filesystem for maps and links
    #[arg(long, default_value = PIN_PATH)]
    pin_path: PathBuf,
    /// How to treat veths that have their peer in another network namespace and never belonged to a known pod
    #[arg(long, value_enum, default_value_t)]
    unknown_pods: UnknownPods,
    /// How to attach programs; auto: clsact filters, or TCX on interfaces that have other programs
    #[arg(long, value_enum, default_value_t)]
    attach: AttachMode,
    /// Allow pods to send from addresses that are not their own
    #[arg(long)]
    no_anti_spoofing: bool,
    /// Allow pods to send to tunnel endpoints of nodes: VXLAN, Geneve, GRE, IP in IP, FOU, L2TP and the like
    #[arg(long)]
    allow_tunnels_to_node: bool,
    /// Write Events about denied traffic for pods and about diagnostics for policies; requires --source kube
    #[arg(long)]
    kube_events: bool,
    /// Export flow records: `file:PATH?max-size=64Mi&files=4` to rotated files, `otlp:http://HOST:4318` to an
    /// OpenTelemetry collector; repeat the option for several targets
    #[arg(long, value_name = "TARGET")]
    flow_export: Vec<FlowExport>,
    /// Enforce nothing: denied packets pass, and are recorded as flows that would be denied
    #[arg(long)]
    observe: bool,
    /// Which flows are recorded for API clients and counted for each rule. Denied flows are always written to standard
    /// output
    #[arg(long, value_enum, default_value_t)]
    record_flows: RecordFlows,
    /// Count the packets and bytes of allowed flows, and record them
    #[arg(long, value_enum, default_value_t)]
    flow_totals: FlowTotalsMode,
    /// Number of the last records that are kept in memory for API clients, about 1 KiB each; each pod has a fair share
    #[arg(long, value_name = "RECORDS", default_value_t = DEFAULT_FLOW_BUFFER)]
    flow_buffer: usize,
    /// CNI configuration directory of the container runtime, used to report plugins that conflict with netpol
    #[arg(long, value_name = "DIR", default_value = "/etc/cni/net.d")]
    cni_config: PathBuf,
    /// Serve /healthz and /readyz on this address, for probes; clients of --metrics do not delay them
    #[arg(long, value_name = "ADDR:PORT")]
    health: Option<SocketAddr>,
    /// Serve /metrics, /healthz and /readyz on this address
    #[arg(long, value_name = "ADDR:PORT")]
    metrics: Option<SocketAddr>,
    /// Unix socket for `netpol wait` and `netpol-agent status`, accessible by root only
    #[arg(long, value_name = "PATH", default_value = netpol_api::DEFAULT_SOCKET)]
    api_socket: PathBuf,
    /// How to delay the start of each pod until its policies are enforced
    #[arg(long, value_enum, default_value_t)]
    start_gate: StartGate,
    /// Socket of the container runtime for NRI plugins
    #[arg(long, value_name = "PATH", default_value = netpol_nri::DEFAULT_SOCKET)]
    nri_socket: PathBuf,
    /// Directory of CNI plugins, where --start-gate cni and auto install netpol-cni
    #[arg(long, value_name = "DIR", default_value = "/opt/cni/bin")]
    cni_bin: PathBuf,
    /// What netpol-cni does if no agent responds: wait and then fail, deny (fail at once), or allow the start
    #[arg(long, value_name = "wait|deny|allow", default_value = "wait")]
    when_agent_away: WhenAgentAway,
    /// Write this file when everything known at the start is enforced
    #[arg(long, value_name = "FILE")]
    ready_file: Option<PathBuf>,
    /// Format of the log
    #[arg(long, value_enum, default_value_t)]
    log_format: LogFormat,
    /// Log debug messages
    #[arg(long, short)]
    verbose: bool,
    /// Load this BPF object instead of the built-in one
    #[arg(long, value_name = "FILE")]
    bpf_object: Option<PathBuf>,
    #[command(flatten)]
    sizes: Sizes,
}

impl RunArgs {
    fn limits(&self) -> netpol_files::Limits {
        let bytes = |mib: u64| mib.saturating_mul(netpol_files::MIB);
        netpol_files::Limits { file: bytes(self.max_manifest_file), all: bytes(self.max_manifests) }
    }
}

/// Which flows are recorded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum RecordFlows {
    /// Denied flows, and flows that policies in shadow mode would deny
    Denied,
    /// Also allowed flows, when they start
    #[default]
    All,
}

/// How the container runtime reports the start of a pod to the agent. When the agent receives a report, the start gate
/// delays this start until the pod's policies are enforced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum StartGate {
    /// NRI if the container runtime serves it when the agent starts, else CNI if --cni-config and --cni-bin are
    /// writable, else off
    Auto,
    /// NRI, which containerd 2 serves by default, and containerd 1.7 and CRI-O if configured
    Nri,
    /// The CNI plugin netpol-cni, which is added to the first list in --cni-config
    Cni,
    /// Pods start without waiting
    #[default]
    Off,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    /// For people
    #[default]
    Text,
    /// One JSON object per line
    Json,
}

/// Sizes of maps, in entries.
#[derive(Debug, Args)]
#[command(next_help_heading = "Sizes of maps, in entries")]
struct Sizes {
    /// Pods of this node; rounded up to a power of two
    #[arg(long, default_value_t = Capacities::default().endpoints, value_parser = clap::value_parser!(u32).range(1..=16_384))]
    max_endpoints: u32,
    /// IPv4 addresses of all pods of the cluster and of this node
    #[arg(long, default_value_t = Capacities::default().addresses_v4)]
    max_addresses_v4: u32,
    /// IPv6 addresses of all pods of the cluster and of this node
    #[arg(long, default_value_t = Capacities::default().addresses_v6)]
    max_addresses_v6: u32,
    /// Approximate kernel memory for policies, in bytes or with Ki, Mi or Gi. If policies need more, namespaces share
    /// it; parts of the policies that need the most memory are omitted and allow nothing
    #[arg(long, value_name = "BYTES", default_value_t)]
    max_policy_memory: PolicyMemory,
    /// Distinct CIDRs, including excepts, for each family; default: as many as fit into --max-policy-memory
    #[arg(long)]
    max_prefixes: Option<u32>,
    /// Service ports at IPv4 addresses, including hostPorts
    #[arg(long, default_value_t = Capacities::default().services_v4)]
    max_services_v4: u32,
    /// Service ports at IPv6 addresses, including hostPorts
    #[arg(long, default_value_t = Capacities::default().services_v6)]
    max_services_v6: u32,
    /// Pairs of a rule set and a class of peers that the rule set allows; default: as many as fit into
    /// --max-policy-memory
    #[arg(long)]
    max_allow: Option<u32>,
    /// Ports of distinct port sets; a range counts as up to 30; default: as many as fit into --max-policy-memory
    #[arg(long)]
    max_ports: Option<u32>,
    /// IPv4 flows of all pods of this node; each pod has a share, in which the least recently used flows are evicted
    #[arg(long, default_value_t = Capacities::default().flows_v4 * SHARED_TABLE_DIVISOR)]
    max_flows_v4: u32,
    /// IPv6 flows of all pods of this node; each pod has a share, as for IPv4
    #[arg(long, default_value_t = Capacities::default().flows_v6 * SHARED_TABLE_DIVISOR)]
    max_flows_v6: u32,
    /// Fragmented IPv4 datagrams that are tracked at one time; half as many for IPv6
    #[arg(long, default_value_t = Capacities::default().fragments_v4)]
    max_fragments: u32,
    /// Denied flows for which the rate of deny events is limited for each flow; rounded up to four times a power of two
    #[arg(long, default_value_t = Capacities::default().denials * EVENT_LIMIT_WAYS)]
    max_denials: u32,
    /// Size of the ring buffer for deny events, in bytes; rounded up to a power of two
    #[arg(long, default_value_t = Capacities::default().events)]
    event_buffer: u32,
}

impl Sizes {
    fn capacities(&self) -> Capacities {
        let power_of_two = |size: u32| size.clamp(1, 1 << 24).next_power_of_two();
        let endpoints = power_of_two(self.max_endpoints);
        let default = Capacities::default();
        Capacities {
            endpoints,
            endpoints_overflow: endpoints,
            // Maps with entries for each endpoint ID also have entries for ID 0, which belongs to no endpoint.
            counters: (endpoints + 1) * 2,
            endpoint_ids: endpoints + 1,
            flow_tables_v4: endpoints + 1,
            flow_tables_v6: endpoints + 1,
            neighbors: endpoints + 1,
            addresses_v4: self.max_addresses_v4.max(1),
            addresses_v6: self.max_addresses_v6.max(1),
            prefixes_v4: self.max_prefixes.unwrap_or(default.prefixes_v4).max(1),
            prefixes_v6: self.max_prefixes.unwrap_or(default.prefixes_v6).max(1),
            services_v4: self.max_services_v4.max(1),
            services_v6: self.max_services_v6.max(1),
            allow: self.max_allow.unwrap_or(self.max_policy_memory.allow_entries()).max(1),
            ports: self.max_ports.unwrap_or(default.ports).max(1),
            flows_v4: (self.max_flows_v4 / SHARED_TABLE_DIVISOR).max(1),
            flows_v6: (self.max_flows_v6 / SHARED_TABLE_DIVISOR).max(1),
            fragments_v4: self.max_fragments.max(1),
            fragments_v6: (self.max_fragments / 2).max(1),
            denials: power_of_two(self.max_denials / EVENT_LIMIT_WAYS),
            allowed_flows: power_of_two(self.max_denials / EVENT_LIMIT_WAYS),
            event_budgets: (endpoints + 1) * EVENT_BUDGETS_PER_ENDPOINT,
            events: power_of_two(self.event_buffer).max(4096),
            ..default
        }
    }
}

#[derive(Debug, Args)]
struct ConnectArgs {
    /// Unix socket of the agent
    #[arg(long, value_name = "PATH", default_value = netpol_api::DEFAULT_SOCKET)]
    api_socket: PathBuf,
}

#[derive(Debug, Args)]
struct StatusArgs {
    /// Directory on a BPF filesystem, as given to the agent
    #[arg(long, default_value = PIN_PATH)]
    pin_path: PathBuf,
    /// Unix socket of the agent, for names of pods
    #[arg(long, value_name = "PATH", default_value = netpol_api::DEFAULT_SOCKET)]
    api_socket: PathBuf,
    /// Output format
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people
    #[default]
    Table,
    /// For programs
    Json,
}

#[derive(Debug, Args)]
struct UninstallArgs {
    /// Directory on a BPF filesystem, as given to the agent
    #[arg(long, default_value = PIN_PATH)]
    pin_path: PathBuf,
    /// API socket, as given to the agent. If a killed agent left this socket, the socket is removed, and its directory
    /// if it is empty
    #[arg(long, value_name = "PATH", default_value = netpol_api::DEFAULT_SOCKET)]
    api_socket: PathBuf,
    /// CNI configuration directory, as given to the agent: netpol-cni is removed from its lists
    #[arg(long, value_name = "DIR", default_value = "/etc/cni/net.d")]
    cni_config: PathBuf,
    /// Wait for SIGTERM after everything is removed, instead of exiting. Use this in a `DaemonSet` that uninstalls
    /// netpol: a ready pod means that netpol was removed from the pod's node
    #[arg(long)]
    keep_running: bool,
}

/// Runs the command.
pub fn main(cli: Cli) -> ExitCode {
    let result = match cli.command {
        Command::Run(args) => run::run(*args),
        Command::Connect(args) => connect::run(&args),
        Command::Status(args) => status::status(&args),
        Command::Uninstall(args) => uninstall::run(&args),
    };
    result.unwrap_or_else(|error| {
        // `Safe` escapes line breaks, and messages of the BPF verifier have many lines. So each line is printed
        // separately.
        let text = format!("error: {}", error_chain(error.as_ref()));
        text.lines().for_each(|line| print::error_line(Safe(line)));
        ExitCode::from(exit_code(&error))
    })
}

fn exit_code(error: &anyhow::Error) -> u8 {
    use netpol_dataplane::KernelError;
    match error.downcast_ref::<KernelError>() {
        Some(KernelError::Locked(_)) => LOCKED,
        _ if matches!(error.downcast_ref(), Some(SocketError::Taken(_))) => LOCKED,
        Some(KernelError::NoObject(_)) => NO_OBJECT,
        Some(KernelError::NoBpffs { .. }) => UNABLE,
        _ if error.is::<requirements::RequirementError>() => UNABLE,
        _ => FAILED,
    }
}
