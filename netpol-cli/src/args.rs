//! The command line.

use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use netpol_api::{Condition, parse_duration};
use netpol_policy::model::{PodKey, Protocol, ServiceKey};
use netpol_policy::reference::End;

const EXIT_CODES: &str = "\
Exit codes:
  0  done; explain: allowed; lint: no errors; wait: enforced
  1  explain: denied, or allowed to some of a Service's backends only; lint: errors found; wait: timed out, not found, or never
  2  wrong usage
  3  a file, a document or an object of the input could not be read, or the requested object is not in the input; explain and
     matrix: also if a part of an object has an error, or a template was skipped (the answer is printed, and may be wrong);
     wait: no agent answers
  70 a defect of netpol: two readings of the same policies differ";

/// What network policies mean: who reaches whom, and why (not). Works on manifests, without a cluster; `wait` asks the
/// agent of this node.
#[derive(Debug, Parser)]
#[command(name = "netpol", version, after_help = EXIT_CODES)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show which pods reach which, for each port
    #[command(after_help = MATRIX_EXAMPLES)]
    Matrix(MatrixOptions),
    /// Say why one end reaches another or does not
    #[command(after_help = EXPLAIN_EXAMPLES)]
    Explain(ExplainOptions),
    /// Report what is wrong in manifests, with file and line
    #[command(after_help = LINT_EXAMPLES)]
    Lint(LintOptions),
    /// Wait until this node enforces a policy, or all policies of a pod
    #[command(after_help = WAIT_EXAMPLES)]
    Wait(WaitOptions),
}

const MATRIX_EXAMPLES: &str = "\
Examples:
  netpol matrix -f manifests/ -p 80/TCP
  netpol matrix -f pods.yaml -f policies/ -p 80/TCP -p 53/UDP --namespace shop
  kubectl get ns,pods,nodes,netpol -A -o yaml | netpol matrix -f - -p 443/TCP -o json";

const EXPLAIN_EXAMPLES: &str = "\
Examples:
  netpol explain -f manifests/ --from shop/frontend --to shop/backend --port 8080/TCP
  netpol explain -f manifests/ --from shop/frontend --to service/shop/backend --port 80/TCP
  netpol explain -f manifests/ --from shop/frontend --to 198.51.100.7 --port 443/TCP -o json

Where both ends have an IPv4 and an IPv6 address, each family is evaluated; the verdict is the worse of the two.";

const LINT_EXAMPLES: &str = "\
Examples:
  netpol lint -f manifests/
  netpol lint -f policy.yaml -o json";

const WAIT_EXAMPLES: &str = "\
Examples:
  netpol wait --for policy/shop/backend --timeout 30s
  netpol wait --for delete=policy/shop/backend
  netpol wait --for pod/shop/web-0 --for pod/shop/web-1 -o json
  netpol wait --for sync

It asks the agent of the node it runs on, and speaks of that node alone: elsewhere the same policy may be enforced earlier
or later. Enforced: the objects as they are when this is asked are in the kernel, for every pod of this node that the policy
selects; the next packet is judged by them. delete=: the object is gone, and nothing of it is enforced.";

#[derive(Debug, Args)]
pub(crate) struct InputOptions {
    /// Manifests: a file, a directory (with all below it: *.yaml, *.yml, *.json), or - for standard input; repeatable
    #[arg(short = 'f', long = "filename", value_name = "PATH", required = true)]
    pub(crate) paths: Vec<PathBuf>,
    /// MiB that a manifest may have; a larger file is not read
    #[arg(long, value_name = "MIB", default_value_t = netpol_files::DEFAULT.file / netpol_files::MIB)]
    pub(crate) max_manifest_file: u64,
    /// MiB that all manifests together may have; files beyond it, by path, are not read
    #[arg(long, value_name = "MIB", default_value_t = netpol_files::DEFAULT.all / netpol_files::MIB)]
    pub(crate) max_manifests: u64,
}

impl InputOptions {
    pub(crate) fn limits(&self) -> netpol_files::Limits {
        let bytes = |mib: u64| mib.saturating_mul(netpol_files::MIB);
        netpol_files::Limits { file: bytes(self.max_manifest_file), all: bytes(self.max_manifests) }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people
    Table,
    /// For programs
    Json,
}

#[derive(Debug, Args)]
pub(crate) struct MatrixOptions {
    #[command(flatten)]
    pub(crate) input: InputOptions,
    /// Port and protocol, such as 80/TCP or 53/UDP; without protocol, TCP; repeatable
    #[arg(short, long = "port", value_name = "PORT/PROTOCOL", required = true)]
    pub(crate) ports: Vec<AskedPort>,
    /// Only pods of this namespace; repeatable
    #[arg(short, long = "namespace", value_name = "NAMESPACE")]
    pub(crate) namespaces: Vec<String>,
    /// An address beside the pods, such as one outside the cluster, or a Service's: reached if all behind it are; repeatable
    #[arg(short, long = "address", value_name = "ADDRESS")]
    pub(crate) addresses: Vec<IpAddr>,
    /// How to print it
    #[arg(short, long, value_enum, default_value = "table")]
    pub(crate) output: Output,
}

#[derive(Debug, Args)]
pub(crate) struct ExplainOptions {
    #[command(flatten)]
    pub(crate) input: InputOptions,
    /// Who opens the connection: namespace/pod, or an address
    #[arg(long, value_name = "END", value_parser = end)]
    pub(crate) from: End,
    /// Towards whom: namespace/pod, service/namespace/name (svc/…), or an address, a Service's or a node's among them
    #[arg(long, value_name = "END", value_parser = destination)]
    pub(crate) to: End,
    /// Port and protocol, such as 80/TCP or 53/UDP; without protocol, TCP
    #[arg(short, long, value_name = "PORT/PROTOCOL")]
    pub(crate) port: AskedPort,
    /// How to print it
    #[arg(short, long, value_enum, default_value = "table")]
    pub(crate) output: Output,
}

#[derive(Debug, Args)]
pub(crate) struct LintOptions {
    #[command(flatten)]
    pub(crate) input: InputOptions,
    /// How to print it
    #[arg(short, long, value_enum, default_value = "table")]
    pub(crate) output: Output,
}

#[derive(Debug, Args)]
pub(crate) struct WaitOptions {
    /// policy/NAMESPACE/NAME, pod/NAMESPACE/NAME, either of them after delete=, or sync: everything known now; repeatable
    #[arg(long = "for", value_name = "CONDITION", required = true)]
    pub(crate) conditions: Vec<Condition>,
    /// How long, such as 500ms, 30s or 2m; 0s looks once
    #[arg(long, default_value = "30s", value_name = "DURATION", value_parser = parse_duration)]
    pub(crate) timeout: Duration,
    /// The agent's socket (its --api-socket)
    #[arg(long, default_value = netpol_api::SOCKET, value_name = "PATH")]
    pub(crate) socket: PathBuf,
    /// How to print it
    #[arg(short, long, value_enum, default_value = "table")]
    pub(crate) output: Output,
}

/// A port somebody asks about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AskedPort {
    pub(crate) port: u16,
    pub(crate) protocol: Protocol,
}

impl FromStr for AskedPort {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (port, protocol) = text.split_once('/').unwrap_or((text, "TCP"));
        let port = port.parse::<u16>().ok().filter(|&port| port != 0);
        let port =
            port.ok_or_else(|| format!("`{text}` has no port number; write one of 1 to 65535, such as 80/TCP"))?;
        let protocol = Protocol::from_name(&protocol.to_uppercase())
            .ok_or_else(|| format!("unknown protocol `{protocol}`; write TCP, UDP or SCTP"))?;
        Ok(Self { port, protocol })
    }
}

impl std::fmt::Display for AskedPort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.port, self.protocol.name())
    }
}

fn destination(text: &str) -> Result<End, String> {
    match text.split('/').collect::<Vec<_>>()[..] {
        ["service" | "svc" | "services", namespace, name] if !namespace.is_empty() && !name.is_empty() => {
            Ok(End::Service(ServiceKey::new(namespace, name)))
        }
        _ => end(text),
    }
}

fn end(text: &str) -> Result<End, String> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(End::Address(address));
    }
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
            Ok(End::Pod(PodKey::new(namespace, name)))
        }
        _ => Err(format!("`{text}` is neither namespace/pod nor an address; write, for one, default/{text}")),
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
    fn ports_are_read_as_people_write_them() {
        for (text, expected) in [("80/TCP", "80/TCP"), ("53/udp", "53/UDP"), ("9", "9/TCP"), ("1/SCTP", "1/SCTP")] {
            assert_eq!(text.parse::<AskedPort>().map(|port| port.to_string()), Ok(expected.to_owned()));
        }
        for text in ["", "0", "65536", "http", "80/ICMP", "80/"] {
            assert!(text.parse::<AskedPort>().is_err(), "{text}");
        }
    }

    #[test]
    fn ends_are_pods_or_addresses() {
        for (text, expected) in [("a/b", "a/b"), ("10.0.0.1", "10.0.0.1"), ("fd00::1", "fd00::1")] {
            assert_eq!(end(text).map(|end| end.to_string()), Ok(expected.to_owned()));
        }
        for text in ["web", "a/", "/b", "a/b/c", "svc/a/b"] {
            assert!(end(text).is_err(), "{text}");
        }
        for (text, expected) in [("svc/a/b", "service/a/b"), ("service/a/b", "service/a/b"), ("svc/a", "svc/a")] {
            assert_eq!(destination(text).map(|end| end.to_string()), Ok(expected.to_owned()));
        }
        for text in ["svc/a/", "svc//b", "svc/a/b/c", "pod/a/b"] {
            assert!(destination(text).is_err(), "{text}");
        }
    }
}
