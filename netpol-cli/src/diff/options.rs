//! The options of `netpol diff`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::args::{InputOptions, KubeOptions};

pub(crate) const EXAMPLES: &str = "\
Examples:
  netpol diff HEAD~1:manifests/ manifests/
  netpol diff main:policies/ policies/ -f workloads/ -o md
  netpol diff old.yaml new.yaml --exit-code
  netpol diff HEAD:manifests/ manifests/ --flows flows.ndjson
  helm template . | netpol diff --cluster -n shop -

OLD and NEW are each a file, a directory, or REVISION:PATH of a git repository.
As in git, PATH is relative to the top directory of the repository, or to the
current directory if it starts with ./.

With --cluster, the only argument is NEW, and OLD is the cluster of your
kubeconfig. The objects of NEW are added to those of the cluster or replace
them, as kubectl apply does; all others stay.";

/// The help of `-f`. It replaces the help in [`InputOptions`], the type of [`DiffOptions::common`].
pub(crate) const COMMON: &str = "Manifests that belong to both OLD and NEW, such as the workloads: a file, a \
     directory, or - for standard input; repeatable";

#[derive(Clone, Debug, Args)]
pub(crate) struct DiffOptions {
    /// The manifests before: a file, a directory, or REVISION:PATH. With --cluster: the manifests to apply, or - for
    /// standard input
    #[arg(value_name = "OLD")]
    pub(crate) first: String,
    /// The manifests after; not with --cluster
    #[arg(value_name = "NEW", required_unless_present = "cluster", conflicts_with = "cluster")]
    pub(crate) second: Option<String>,
    /// Compare the cluster of the kubeconfig with what it has after the manifests are applied
    #[arg(long, conflicts_with = "paths")]
    pub(crate) cluster: bool,
    /// With --cluster, the namespace of manifests without one. Default: that of the context
    #[arg(short, long, value_name = "NAMESPACE", requires = "cluster")]
    pub(crate) namespace: Option<String>,
    #[command(flatten)]
    pub(crate) kube: KubeOptions,
    // The manifests that belong to both versions (`-f`).
    #[command(flatten)]
    pub(crate) common: InputOptions,
    /// Records of flows, as JSON lines: prints which of them would be cut or newly allowed
    #[arg(long, value_name = "FILE")]
    pub(crate) flows: Option<PathBuf>,
    /// Exit with code 1 if a connection is newly allowed or newly denied
    #[arg(long)]
    pub(crate) exit_code: bool,
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
    /// Returns the names of the old and the new version, for the output.
    pub(super) fn versions(&self) -> (&str, &str) {
        let name = |version| if version == "-" { "standard input" } else { version };
        self.second.as_deref().map_or(("the cluster", name(&self.first)), |second| (&self.first, second))
    }

    /// Returns the options to read one version: these paths, and the manifests that belong to both versions.
    pub(super) fn input(&self, paths: impl IntoIterator<Item = PathBuf>) -> InputOptions {
        let common = self.common.clone();
        InputOptions { paths: paths.into_iter().chain(common.paths).collect(), ..common }
    }
}
