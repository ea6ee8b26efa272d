//! A small cluster, and what policies do to it.

use std::process::ExitCode;

use anyhow::{Result, bail};

use crate::cli::DemoArgs;

/// Runs the demo.
pub(crate) fn run(_args: &DemoArgs) -> Result<ExitCode> {
    bail!("the demo is not part of this checkout yet")
}
