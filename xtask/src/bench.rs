//! What things cost.

mod changes;
mod churn;
mod convergence;
mod ground;
mod memory;
mod net;
mod packets;
mod report;
mod services;
mod watch;
mod world;

use std::process::ExitCode;

use anyhow::Result;

use crate::cli::{BenchArgs, Measured};

/// Measures.
pub(crate) fn run(args: &BenchArgs) -> Result<ExitCode> {
    match args.what {
        Measured::Packets => packets::run(args),
        Measured::Convergence => convergence::run(args),
        Measured::Churn => churn::run(args),
        Measured::Memory => memory::run(args),
        Measured::Net => net::run(args),
    }
}
