//! The command line.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::{binaries, ebpf, lab, setup};

/// Every verb a developer or CI needs.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", max_term_width = 100)]
pub(crate) struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Install what building and testing need: the BPF toolchain and Debian packages. Does nothing when all is there.
    #[command(after_help = "Examples:\n  cargo xtask setup")]
    Setup,
    /// Build the BPF object, target/bpf/netpol.o.
    #[command(after_help = "Examples:\n  cargo xtask ebpf && bpftool btf dump file target/bpf/netpol.o")]
    Ebpf,
    /// Build target/release/netpol and target/release/netpol-agent, the BPF object inside.
    #[command(after_help = "Examples:\n  cargo xtask build && target/release/netpol-agent --help")]
    Build,
    /// Make a small cluster of network namespaces, and show what policies do to it. Needs root.
    #[command(after_help = "Examples:\n  cargo xtask demo")]
    Demo(DemoArgs),
    /// Measure what a packet costs, with `BPF_PROG_TEST_RUN`. Needs root.
    #[command(after_help = "Examples:\n  cargo xtask bench\n  cargo xtask bench -o json")]
    Bench(BenchArgs),
}

/// Options of `demo`.
#[derive(Args, Debug)]
pub(crate) struct DemoArgs {}

/// Options of `bench`.
#[derive(Args, Debug)]
pub(crate) struct BenchArgs {
    /// How to print.
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    pub(crate) output: Output,
}

/// How to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// Does what was asked for.
pub(crate) fn dispatch(cli: Cli) -> Result<ExitCode> {
    match cli.verb {
        Verb::Setup => setup::run()?,
        Verb::Ebpf => println!("{}", ebpf::build()?.display()),
        Verb::Build => binaries::build()?,
        Verb::Demo(args) => return demo(&args),
        Verb::Bench(args) => return bench(&args),
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(feature = "lab")]
fn demo(args: &DemoArgs) -> Result<ExitCode> {
    crate::demo::run(args)
}

/// Builds the binaries that the demo runs, then the demo.
#[cfg(not(feature = "lab"))]
fn demo(_args: &DemoArgs) -> Result<ExitCode> {
    setup::run()?;
    binaries::build()?;
    match lab::again(lab::Profile::Dev)? {}
}

#[cfg(feature = "lab")]
fn bench(args: &BenchArgs) -> Result<ExitCode> {
    crate::bench::run(args)
}

/// Builds the object that is measured, then the bench.
#[cfg(not(feature = "lab"))]
fn bench(_args: &BenchArgs) -> Result<ExitCode> {
    setup::run()?;
    ebpf::build()?;
    match lab::again(lab::Profile::Release)? {}
}
