//! netpol-agent: one per node.

use std::process::ExitCode;

use clap::Parser;
use netpol_agent::cli::{Cli, main as run};

fn main() -> ExitCode {
    run(Cli::parse())
}
