//! Agent that enforces network policies on one node.

use std::process::ExitCode;

use clap::Parser;
use netpol_agent::cli::{Cli, main as run};

fn main() -> ExitCode {
    run(Cli::parse())
}
