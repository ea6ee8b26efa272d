//! The command line.

mod log;
mod machine;
mod memory;
mod print;
mod run;
mod status;
mod uninstall;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand, ValueEnum};
use netpol_common::DENIAL_WAYS;
use netpol_policy::text::Safe;

use crate::api::SocketError;
use crate::chain::chain;
use crate::dataplane::{AttachMode, Capacities, SHARED_PART};
use crate::reconcile::UnknownPods;
use crate::source::ObjectSource;
use memory::PolicyMemory;

/// Nothing to do, or it was done.
pub const OK: u8 = 0;
/// It could not be done, or not all of it.
pub const FAILED: u8 = 1;
/// Another agent runs on the same pin path or API socket.
pub const LOCKED: u8 = 3;
/// The agent was built without its BPF programs.
pub const NO_OBJECT: u8 = 4;
/// The machine lacks privileges, a newer kernel or a BPF filesystem.
pub const UNABLE: u8 = 5;

const EXIT_CODES: &str = "\
Exit codes: 0 done; 1 failed, or something remains (uninstall); 2 wrong usage; 3 another agent runs on the pin path or the socket; \
4 built without BPF programs; 5 privileges, a newer kernel or a BPF filesystem are missing.";

/// Enforces the network policies of a node's pods, with eBPF programs on their veths.
#[derive(Debug, Parser)]
#[command(name = "netpol-agent", version, after_help = EXIT_CODES)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Watch objects and interfaces, enforce, and print one JSON line per denied flow.
    #[command(after_help = RUN_HELP)]
    Run(Box<RunArgs>),
    /// Show what the kernel enforces now, whether or not an agent runs.
    #[command(after_help = STATUS_HELP)]
    Status(StatusArgs),
    /// Remove every link, filter, program and map of netpol, and prove it. Pods are open afterwards.
    #[command(after_help = UNINSTALL_HELP)]
    Uninstall(UninstallArgs),
}

const RUN_HELP: &str = "\
Examples:
  netpol-agent run --source kube --node $NODE_NAME
  netpol-agent run --source kube:$HOME/.kube/config --node n1
  netpol-agent run --source dir:/etc/netpol --node $(hostname)
  netpol-agent run --source dir:. --node n1 --unknown-pods deny --metrics 127.0.0.1:9464 --health 127.0.0.1:9465

Denied packets are told on standard output, one JSON object a line; the log goes to standard error.
SIGTERM and SIGINT stop the agent; what is enforced stays enforced, and the next agent takes it over.
`netpol-agent uninstall` removes it.

Other sizes than last time: maps of the new sizes take over with everything that is in the old ones. Where that does not
fit, all keep their old sizes and the log says so.

An interface whose pod is gone from the source stays enforced as it was until it goes too, or another pod has the address.
--unknown-pods is about interfaces that never were a known pod's: every veth that leads to another namespace counts, also
one that no Kubernetes made.";

const STATUS_HELP: &str = "\
Examples:
  netpol-agent status
  netpol-agent status -o json | jq '.endpoints[].packets'

Read from what is pinned, so it has addresses and interfaces whether or not an agent runs; pods' names are the agent's, where
one answers on --api-socket.
INGRESS and EGRESS: open, or the policies that isolate the pod (names in its namespace; the first three). Where no agent
answers: the number of the rule set. CONFLICT under NOTES: the interface has an address
of a pod that another interface is bound to. UNLISTED: an address of the pod that its object does not list. Exit code 1: nothing is pinned there.";

const UNINSTALL_HELP: &str = "\
Examples:
  netpol-agent uninstall
  netpol-agent uninstall --pin-path /sys/fs/bpf/other

Stop the agent first. Exit code 1: something remains, and is listed; 3: an agent still runs.";

const PIN_PATH: &str = "/sys/fs/bpf/netpol";

#[derive(Debug, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is an option of the command line")]
struct RunArgs {
    /// Where objects come from: kube, the API server of the cluster this runs in; kube:PATH, of a kubeconfig; dir:PATH, a
    /// directory tree of manifests
    #[arg(long, env = "NETPOL_SOURCE")]
    source: ObjectSource,
    /// MiB that a manifest of --source dir:PATH may have; a larger file is not read
    #[arg(long, value_name = "MIB", default_value_t = netpol_files::DEFAULT.file / netpol_files::MIB)]
    max_manifest_file: u64,
    /// MiB that all manifests of --source dir:PATH together may have; files beyond it, by path, are not read
    #[arg(long, value_name = "MIB", default_value_t = netpol_files::DEFAULT.all / netpol_files::MIB)]
    max_manifests: u64,
    /// This node's name, as `spec.nodeName` of its pods says it
    #[arg(long, env = "NODE_NAME")]
    node: String,
    /// Directory on a BPF filesystem for maps and links
    #[arg(long, default_value = PIN_PATH)]
    pin_path: PathBuf,
    /// What to do with veths that lead to another namespace and never were a known pod's
    #[arg(long, value_enum, default_value_t)]
    unknown_pods: UnknownPods,
    /// How programs are attached; auto: clsact filters, or TCX on interfaces that others use too
    #[arg(long, value_enum, default_value_t)]
    attach: AttachMode,
    /// Let pods send from addresses that are not theirs
    #[arg(long)]
    no_source_guard: bool,
    /// Let pods send to tunnel endpoints of nodes: VXLAN, Geneve, GRE, IP in IP, FOU, L2TP and the like
    #[arg(long)]
    allow_tunnels_to_node: bool,
    /// Write Events about denied traffic to pods and about what is not understood to policies; with --source kube
    #[arg(long)]
    kube_events: bool,
    /// Where the container runtime reads its CNI configuration, to tell of plugins that are in the way
    #[arg(long, value_name = "DIR", default_value = "/etc/cni/net.d")]
    cni_config: PathBuf,
    /// Serve /healthz and /readyz here, for probes; clients of --metrics do not delay them
    #[arg(long, value_name = "ADDR:PORT")]
    health: Option<SocketAddr>,
    /// Serve /metrics here, and /healthz and /readyz too
    #[arg(long, value_name = "ADDR:PORT")]
    metrics: Option<SocketAddr>,
    /// Answer `netpol wait` and `netpol-agent status` on this Unix socket, root's alone
    #[arg(long, value_name = "PATH", default_value = netpol_api::SOCKET)]
    api_socket: PathBuf,
    /// Write this file once everything known at the start is enforced
    #[arg(long, value_name = "FILE")]
    ready_file: Option<PathBuf>,
    /// Log lines on standard error
    #[arg(long, value_enum, default_value_t)]
    log_format: LogFormat,
    /// Log more
    #[arg(long, short)]
    verbose: bool,
    /// Load this BPF object instead of the one built in
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

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    /// For people
    #[default]
    Text,
    /// One JSON object a line
    Json,
}

/// Sizes of maps, in entries.
#[derive(Debug, Args)]
#[command(next_help_heading = "Sizes of maps, in entries")]
struct Sizes {
    /// Pods of this node; rounded up to a power of two
    #[arg(long, default_value_t = Capacities::default().endpoints, value_parser = clap::value_parser!(u32).range(1..=16_384))]
    max_endpoints: u32,
    /// IPv4 addresses of the cluster's pods and this node
    #[arg(long, default_value_t = Capacities::default().addresses_v4)]
    max_addresses_v4: u32,
    /// IPv6 addresses of the cluster's pods and this node
    #[arg(long, default_value_t = Capacities::default().addresses_v6)]
    max_addresses_v6: u32,
    /// Kernel memory for policies, about: bytes, or with Ki, Mi or Gi. Where policies need more, namespaces share it, and
    /// parts of the policies that need most are not enforced and allow nothing
    #[arg(long, value_name = "BYTES", default_value_t)]
    max_policy_memory: PolicyMemory,
    /// Distinct CIDRs, excepts included, per family; by default as many as fit into the memory for policies
    #[arg(long)]
    max_prefixes: Option<u32>,
    /// Ports of Services at IPv4 addresses, hostPorts among them
    #[arg(long, default_value_t = Capacities::default().services_v4)]
    max_services_v4: u32,
    /// Ports of Services at IPv6 addresses, hostPorts among them
    #[arg(long, default_value_t = Capacities::default().services_v6)]
    max_services_v6: u32,
    /// Pairs of a rule set and a class of peers that it names; by default as many as fit into the memory for policies
    #[arg(long)]
    max_allow: Option<u32>,
    /// Ports of distinct port sets, a range counting as up to 30; by default as many as fit into the memory for policies
    #[arg(long)]
    max_ports: Option<u32>,
    /// IPv4 connections of this node's pods in all; each pod has a share, in which the least recently used make room
    #[arg(long, default_value_t = Capacities::default().flows_v4 * SHARED_PART)]
    max_flows_v4: u32,
    /// IPv6 connections of this node's pods, likewise
    #[arg(long, default_value_t = Capacities::default().flows_v6 * SHARED_PART)]
    max_flows_v6: u32,
    /// IPv4 datagrams in fragments at one time; IPv6 has half as many
    #[arg(long, default_value_t = Capacities::default().fragments_v4)]
    max_fragments: u32,
    /// Denied flows whose events are limited one by one; rounded up to four times a power of two
    #[arg(long, default_value_t = Capacities::default().denials * DENIAL_WAYS)]
    max_denials: u32,
    /// Bytes for events of denied packets; rounded up to a power of two
    #[arg(long, default_value_t = Capacities::default().events)]
    event_buffer: u32,
}

impl Sizes {
    fn capacities(&self) -> Capacities {
        let power = |size: u32| size.clamp(1, 1 << 24).next_power_of_two();
        let endpoints = power(self.max_endpoints);
        let default = Capacities::default();
        Capacities {
            endpoints,
            endpoints_overflow: endpoints,
            // Number 0 is nobody's.
            counters: (endpoints + 1) * 2,
            senders: endpoints + 1,
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
            flows_v4: (self.max_flows_v4 / SHARED_PART).max(1),
            flows_v6: (self.max_flows_v6 / SHARED_PART).max(1),
            fragments_v4: self.max_fragments.max(1),
            fragments_v6: (self.max_fragments / 2).max(1),
            denials: power(self.max_denials / DENIAL_WAYS),
            event_budgets: (endpoints + 1) * 2,
            events: power(self.event_buffer).max(4096),
            ..default
        }
    }
}

#[derive(Debug, Args)]
struct StatusArgs {
    /// Directory on a BPF filesystem that the agent was given
    #[arg(long, default_value = PIN_PATH)]
    pin_path: PathBuf,
    /// Where the agent answers, for pods' names
    #[arg(long, value_name = "PATH", default_value = netpol_api::SOCKET)]
    api_socket: PathBuf,
    /// Output
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
    /// Directory on a BPF filesystem that the agent was given
    #[arg(long, default_value = PIN_PATH)]
    pin_path: PathBuf,
    /// The API socket that the agent was given: one that a killed agent left is removed, and its directory if it is empty
    #[arg(long, value_name = "PATH", default_value = netpol_api::SOCKET)]
    api_socket: PathBuf,
    /// When all is removed, wait for SIGTERM instead of ending: a pod that is ready tells that its node is clean
    #[arg(long)]
    then_stay: bool,
}

/// Does what the command line says.
pub fn main(cli: Cli) -> ExitCode {
    let result = match cli.command {
        Command::Run(args) => run::run(*args),
        Command::Status(args) => status::status(&args),
        Command::Uninstall(args) => uninstall::run(&args),
    };
    result.unwrap_or_else(|error| {
        // What the verifier says has many lines.
        let text = format!("error: {}", chain(error.as_ref()));
        text.lines().for_each(|line| print::error_line(Safe(line)));
        ExitCode::from(code(&error))
    })
}

fn code(error: &anyhow::Error) -> u8 {
    use crate::dataplane::KernelError;
    match error.downcast_ref::<KernelError>() {
        Some(KernelError::Locked(_)) => LOCKED,
        _ if matches!(error.downcast_ref(), Some(SocketError::Taken(_))) => LOCKED,
        Some(KernelError::NoObject(_)) => NO_OBJECT,
        Some(KernelError::NoBpffs { .. }) => UNABLE,
        _ if error.is::<machine::MachineError>() => UNABLE,
        _ => FAILED,
    }
}
