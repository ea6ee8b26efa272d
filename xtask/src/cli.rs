//! The command line.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Parser, Subcommand, ValueEnum};

#[cfg(not(feature = "lab"))]
use crate::lab;
use crate::{binaries, doctor, ebpf, image, kernels, setup, test, tidy};

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
    #[command(
        after_help = "Examples:\n  cargo xtask ebpf && bpftool btf dump file target/bpf/netpol.o\n  cargo xtask ebpf --log && netpol-agent run --bpf-object target/bpf/netpol-log.o …"
    )]
    Ebpf {
        /// Build target/bpf/netpol-log.o instead, whose programs tell the agent's log what should never happen
        #[arg(long)]
        log: bool,
    },
    /// Build target/release/netpol and target/release/netpol-agent, the BPF object inside.
    #[command(after_help = "Examples:\n  cargo xtask build && target/release/netpol-agent --help")]
    Build,
    /// Pack both into an image, without docker: an archive that `docker load`, `ctr images import` and kind read.
    #[command(after_help = "Examples:\n  cargo xtask image\n  k3s ctr images import target/netpol-image.tar")]
    Image(ImageArgs),
    /// Make a small cluster of network namespaces, and show what policies do to it. Needs root.
    #[command(after_help = "Examples:\n  cargo xtask demo")]
    Demo(DemoArgs),
    /// Run all tests; those that need root, too. Sets up and builds before. Its last line: N passed, N failed.
    #[command(after_help = "Examples:\n  cargo xtask test\n  cargo xtask test --filter s17_ --filter s18_\n  \
        cargo xtask test --filter agree --cases 5000\n\nExit code 1 when one fails.")]
    Test(TestArgs),
    /// Measure what a packet costs; or how long a change takes, or how much memory the agent, in a big cluster. Needs root.
    #[command(
        after_help = "Examples:\n  cargo xtask bench\n  cargo xtask bench -o json\n  cargo xtask bench convergence\n  \
        cargo xtask bench memory --pods 20000"
    )]
    Bench(BenchArgs),
    /// Boot kernels 5.10, 6.1 and 6.12 in emulated machines, and see netpol work there; then on this one. Needs root.
    #[command(after_help = "Examples:\n  cargo xtask kernels\n  cargo xtask kernels --only 5.10 --only running\n\n\
        Kernels are kept in target/kernels, each with the console.log of its last run. Exit code 1 when a check fails.")]
    Kernels(KernelsArgs),
    /// Tell which tools, kernel features and permissions are there, which are missing, and the line that brings them.
    #[command(
        after_help = "Examples:\n  cargo xtask doctor\n  cargo xtask doctor -o json | jq '.[] | select(.state == \
        \"missing\")'\n\nExit code 1 when something needed is missing."
    )]
    Doctor(DoctorArgs),
    /// Check what reviewers should not have to: format, lints, who may name what, docs of every reason, option and metric,
    /// tests of every line.
    #[command(
        after_help = "Examples:\n  cargo xtask tidy\n\nExit code 1 when something is to be done; each finding says what."
    )]
    Tidy,
}

/// Options of `image`.
#[derive(Args, Debug)]
pub(crate) struct ImageArgs {
    /// Its name and tag. The default, with the version of this checkout, is what deploy/ runs: `localhost` is no registry that anyone
    /// else can push to.
    #[arg(long, default_value = concat!("localhost/netpol:", env!("CARGO_PKG_VERSION")))]
    pub(crate) tag: String,
    /// Where to write it; target/netpol-image.tar unless named.
    #[arg(long, value_name = "FILE")]
    pub(crate) output: Option<std::path::PathBuf>,
}

/// Options of `test`.
#[derive(Args, Debug)]
pub(crate) struct TestArgs {
    /// Only tests with this in their path; may be given more than once.
    #[arg(short, long, value_name = "PART")]
    pub(crate) filter: Vec<String>,
    /// Random cases per property, instead of each property's own number.
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) cases: Option<u32>,
    /// Tests at a time; by default as many as CPUs, live ones twice that.
    #[arg(long, value_name = "N")]
    pub(crate) threads: Option<usize>,
}

/// Options of `kernels`.
#[derive(Args, Debug)]
pub(crate) struct KernelsArgs {
    /// Only this one (5.10, 6.1, 6.12, running); may be given more than once.
    #[arg(long, value_name = "KERNEL")]
    pub(crate) only: Vec<String>,
    /// Download the newest kernel of each series, instead of using what was downloaded before.
    #[arg(long)]
    pub(crate) update: bool,
}

/// Options of `doctor`.
#[derive(Args, Debug)]
pub(crate) struct DoctorArgs {
    /// How to print.
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    pub(crate) output: Output,
}

/// Options of `demo`.
#[derive(Args, Debug)]
pub(crate) struct DemoArgs {}

/// Options of `bench`.
#[derive(Args, Debug)]
pub(crate) struct BenchArgs {
    /// What to measure.
    #[arg(value_enum, default_value_t = Measured::Packets)]
    pub(crate) what: Measured,
    /// Pods of the cluster; unless told, 10,000 for convergence and churn, 100,000 for memory
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1000..=1_000_000))]
    pub(crate) pods: Option<u32>,
    /// Policies of the cluster
    #[arg(long, value_name = "N", default_value_t = 1_000)]
    pub(crate) policies: u32,
    /// Services of the cluster, with all of its pods behind them; unless told, 5,000 for memory and none else
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(..=60_000))]
    pub(crate) services: Option<u32>,
    /// How long changes are made, for convergence; pods come and go at each rate, for churn; and each kind of traffic runs, for net
    #[arg(long, value_name = "S", default_value_t = 25)]
    pub(crate) seconds: u32,
    /// How to print.
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    pub(crate) output: Output,
}

/// What to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Measured {
    /// Nanoseconds a packet, with `BPF_PROG_TEST_RUN`
    Packets,
    /// Milliseconds from a watch event to the kernel's tables, while pods come and go
    Convergence,
    /// Pods a second that come and go and are enforced
    Churn,
    /// The agent's resident memory
    Memory,
    /// Gbit/s, requests and connections a second between two pods, beside packet filters, and programs' time on real traffic
    Net,
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
        Verb::Ebpf { log: false } => println!("{}", ebpf::build()?.display()),
        Verb::Ebpf { log: true } => println!("{}", ebpf::build_with_log()?.display()),
        Verb::Build => binaries::build()?,
        Verb::Image(args) => image::run(&args)?,
        Verb::Demo(args) => return demo(&args),
        Verb::Test(args) => return test::run(&args),
        Verb::Bench(args) => return bench(&args),
        Verb::Kernels(args) => return kernels::run(&args),
        Verb::Doctor(args) => return doctor::run(&args),
        Verb::Tidy => return tidy::run(),
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

/// Builds what is measured, then the bench.
#[cfg(not(feature = "lab"))]
fn bench(args: &BenchArgs) -> Result<ExitCode> {
    setup::run()?;
    match args.what {
        Measured::Packets => drop(ebpf::build()?),
        Measured::Convergence | Measured::Churn | Measured::Memory | Measured::Net => binaries::build()?,
    }
    match lab::again(lab::Profile::Release)? {}
}
