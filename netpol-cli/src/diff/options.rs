//! The options of `netpol diff`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use ipnet::IpNet;

use crate::args::InputOptions;

pub(crate) const EXAMPLES: &str = "\
Examples:
  netpol diff HEAD~1:manifests/ manifests/
  netpol diff main:policies/ policies/ -f workloads/ -o md
  netpol diff old.yaml new.yaml --exit-code
  netpol diff HEAD:manifests/ manifests/ --flows flows.ndjson

OLD and NEW are each a file, a directory, or REVISION:PATH of a git repository.
As in git, PATH is relative to the top directory of the repository, or to the
current directory if it starts with ./.";

#[derive(Debug, Args)]
pub(crate) struct DiffOptions {
    /// The manifests before: a file, a directory, or REVISION:PATH
    #[arg(value_name = "OLD")]
    pub(crate) old: String,
    /// The manifests after
    #[arg(value_name = "NEW")]
    pub(crate) new: String,
    /// Manifests that belong to both, such as the workloads: a file, a directory, or - for standard input; repeatable
    #[arg(short = 'f', long = "filename", value_name = "PATH")]
    pub(crate) common: Vec<PathBuf>,
    /// Records of flows, as JSON lines: prints which of them would be cut or newly allowed
    #[arg(long, value_name = "FILE")]
    pub(crate) flows: Option<PathBuf>,
    /// Exit with code 1 if a connection is allowed or denied that was not before
    #[arg(long)]
    pub(crate) exit_code: bool,
    /// The maximum size of a manifest in MiB; a larger file is not read
    #[arg(long, value_name = "MIB", default_value_t = netpol_files::DEFAULT.file / netpol_files::MIB)]
    max_manifest_file: u64,
    /// The maximum size of all manifests of OLD, and of NEW, in MiB
    #[arg(long, value_name = "MIB", default_value_t = netpol_files::DEFAULT.all / netpol_files::MIB)]
    max_manifests: u64,
    /// A range of pod addresses in your cluster, which decides if an ipBlock contains pods without addresses in the
    /// input; repeatable. Default: the private ranges 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16 and `fc00::/7`
    #[arg(long = "pod-cidr", value_name = "CIDR")]
    pod_cidrs: Vec<IpNet>,
    /// The output format
    #[arg(short, long, value_enum, default_value = "table")]
    pub(crate) output: DiffOutput,
}

/// The output format of the changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum DiffOutput {
    /// Text
    Table,
    /// JSON
    Json,
    /// Markdown, for a comment on a pull request
    Md,
}

impl DiffOptions {
    /// Returns the options to read the manifests of both and these paths.
    pub(super) fn input(&self, paths: impl IntoIterator<Item = PathBuf>) -> InputOptions {
        InputOptions {
            paths: paths.into_iter().chain(self.common.iter().cloned()).collect(),
            max_manifest_file: self.max_manifest_file,
            max_manifests: self.max_manifests,
            pod_cidrs: self.pod_cidrs.clone(),
        }
    }
}
