//! Benchmarks of packets, policy changes, pod churn, memory and traffic.

mod changes;
mod churn;
mod cluster_state;
mod convergence;
mod flow_events;
mod map_watcher;
mod memory;
mod net;
mod packets;
mod report;
mod services;
mod starts;
mod testbed;

use std::process::ExitCode;

use anyhow::Result;

use crate::cli::{BenchArgs, Benchmark};

/// Runs the selected benchmark.
pub(crate) fn run(args: &BenchArgs) -> Result<ExitCode> {
    match args.what {
        Benchmark::Packets => packets::run(args),
        Benchmark::Convergence => convergence::run(args),
        Benchmark::Churn => churn::run(args),
        Benchmark::Starts => starts::run(args),
        Benchmark::Memory => memory::run(args),
        Benchmark::Net => net::run(args),
    }
}
