//! The options of `netpol diff`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

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

/// The help of `-f`, which belongs to [`DiffOptions::common`].
pub(crate) const COMMON: &str = "Manifests that belong to both, such as the workloads: a file, a directory, or - for standard \
     input; repeatable";

#[derive(Debug, Args)]
pub(crate) struct DiffOptions {
    /// The manifests before: a file, a directory, or REVISION:PATH
    #[arg(value_name = "OLD")]
    pub(crate) old: String,
    /// The manifests after
    #[arg(value_name = "NEW")]
    pub(crate) new: String,
    #[command(flatten)]
    pub(crate) common: InputOptions,
    /// Records of flows, as JSON lines: prints which of them would be cut or newly allowed
    #[arg(long, value_name = "FILE")]
    pub(crate) flows: Option<PathBuf>,
    /// Exit with code 1 if a connection is allowed or denied that was not before
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
    /// Returns the options to read the manifests of both and these paths.
    pub(super) fn input(&self, paths: impl IntoIterator<Item = PathBuf>) -> InputOptions {
        let common = self.common.clone();
        InputOptions { paths: paths.into_iter().chain(common.paths).collect(), ..common }
    }
}
