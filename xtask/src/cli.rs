//! The command line.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Parser, Subcommand, ValueEnum};

#[cfg(not(feature = "lab"))]
use crate::lab;
use crate::{binaries, doctor, ebpf, image, kernels, krew, setup, test, tidy};

/// Commands for developers and CI.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", max_term_width = 100)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Install what building and testing need: the BPF toolchain and Debian packages. Does nothing if all are
    /// installed.
    #[command(after_help = "Examples:\n  cargo xtask setup")]
    Setup,
    /// Build the BPF object, target/bpf/netpol.o, and netpol-test.o with programs for tests.
    #[command(
        after_help = "Examples:\n  cargo xtask ebpf && bpftool btf dump file target/bpf/netpol.o\n  cargo xtask ebpf --log && netpol-agent run --bpf-object target/bpf/netpol-log.o …"
    )]
    Ebpf {
        /// Build target/bpf/netpol-log.o instead. With this object, the agent also logs errors of its programs, which
        /// should never happen.
        #[arg(long)]
        log: bool,
    },
    /// Build netpol, netpol-agent with the BPF object embedded, and netpol-cni in target/release.
    #[command(after_help = "Examples:\n  cargo xtask build && target/release/netpol-agent --help")]
    Build,
    /// Write the manual pages of netpol to target/man.
    #[command(after_help = "Examples:\n  cargo xtask man && man -l target/man/netpol-explain.1")]
    Man,
    /// Build netpol as a plugin of kubectl, and write its archive and the manifest for krew to target/krew.
    #[command(after_help = "Examples:\n  cargo xtask krew --homepage https://example.org \\
                           --url https://example.org/v0.1.0/kubectl-netpol-linux-amd64.tar.gz\n\n\
        packaging/README.md describes the release.")]
    Krew(KrewArgs),
    /// Build the programs and put them in a container image, without Docker. Writes an archive for `docker load`, `ctr
    /// images import` and kind.
    #[command(after_help = "Examples:\n  cargo xtask image\n  k3s ctr images import target/netpol-image.tar")]
    Image(ImageArgs),
    /// Create a small cluster of network namespaces, and show what policies do to its traffic. Needs root.
    #[command(after_help = "Examples:\n  cargo xtask demo")]
    Demo(DemoArgs),
    /// Run all tests, including those that need root. Sets up and builds first. The last line is "N passed, N
    /// failed".
    #[command(after_help = "Examples:\n  cargo xtask test\n  cargo xtask test --filter s17_ --filter s18_\n  \
        cargo xtask test --filter agree --cases 5000\n\nExit code 1 if a test fails.")]
    Test(TestArgs),
    /// Measure the cost of a packet, the time a change takes, or the agent's memory in a large cluster. Needs root.
    #[command(
        after_help = "Examples:\n  cargo xtask bench\n  cargo xtask bench -o json\n  cargo xtask bench convergence\n  \
        cargo xtask bench memory --pods 20000"
    )]
    Bench(BenchArgs),
    /// Boot kernels 5.10, 6.1 and 6.12 in virtual machines and test netpol there, then on the running kernel. Needs
    /// root.
    #[command(after_help = "Examples:\n  cargo xtask kernels\n  cargo xtask kernels --only 5.10 --only running\n\n\
        Kernels are stored in target/kernels, each with the console.log of its last run. Exit code 1 if a check fails.")]
    Kernels(KernelsArgs),
    /// List the tools, kernel features and permissions that netpol needs, and how to get those that are missing.
    #[command(
        after_help = "Examples:\n  cargo xtask doctor\n  cargo xtask doctor -o json | jq '.[] | select(.state == \
        \"missing\")'\n\nExit code 1 if something required is missing."
    )]
    Doctor(DoctorArgs),
    /// Check format, lints and dependencies between crates. Also check that each reason of a verdict, each option and
    /// each metric is documented, and that each item of docs/semantics.md has a test.
    #[command(
        after_help = "Examples:\n  cargo xtask tidy\n\nExit code 1 if there are findings; each finding states the fix."
    )]
    Tidy,
}

/// Options of `krew`.
#[derive(Args, Debug)]
pub(crate) struct KrewArgs {
    /// Where the archive will be available for download, with its file name.
    #[arg(long, value_name = "URL")]
    pub(crate) url: String,
    /// The home page of the plugin.
    #[arg(long, value_name = "URL")]
    pub(crate) homepage: String,
}

/// Options of `image`.
#[derive(Args, Debug)]
pub(crate) struct ImageArgs {
    /// Name and tag of the image. The manifests in deploy/ use the default, which has the version of this checkout.
    /// The registry `localhost` prevents pushing this image by mistake.
    #[arg(long, default_value = concat!("localhost/netpol:", env!("CARGO_PKG_VERSION")))]
    pub(crate) tag: String,
    /// File to write; default target/netpol-image.tar.
    #[arg(long, value_name = "FILE")]
    pub(crate) output: Option<std::path::PathBuf>,
}

/// Options of `test`.
#[derive(Args, Debug)]
pub(crate) struct TestArgs {
    /// Run only tests with this text in their path; can be repeated.
    #[arg(short, long, value_name = "PART")]
    pub(crate) filter: Vec<String>,
    /// Number of random cases for each property-based test, instead of the test's own number.
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) cases: Option<u32>,
    /// Number of tests to run in parallel; the default is the number of CPUs, or twice that for tests with real
    /// packets.
    #[arg(long, value_name = "N")]
    pub(crate) threads: Option<usize>,
}

/// Options of `kernels`.
#[derive(Args, Debug)]
pub(crate) struct KernelsArgs {
    /// Test only this kernel (5.10, 6.1, 6.12, running); can be repeated.
    #[arg(long, value_name = "KERNEL")]
    pub(crate) only: Vec<String>,
    /// Download the newest kernel of each series, even if an older one was downloaded before.
    #[arg(long)]
    pub(crate) update: bool,
}

/// Options of `doctor`.
#[derive(Args, Debug)]
pub(crate) struct DoctorArgs {
    /// Output format.
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
    #[arg(value_enum, default_value_t = Benchmark::Packets)]
    pub(crate) what: Benchmark,
    /// Number of pods in the cluster; default 10,000 for convergence, churn and starts, 100,000 for memory
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1000..=1_000_000))]
    pub(crate) pods: Option<u32>,
    /// Number of policies in the cluster
    #[arg(long, value_name = "N", default_value_t = 1_000)]
    pub(crate) policies: u32,
    /// Number of Services (each pod is a backend of one Service); default 5,000 for memory and none otherwise
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(..=60_000))]
    pub(crate) services: Option<u32>,
    /// Duration in seconds: of the changes (convergence), of each rate (churn), or of each round (net)
    #[arg(long, value_name = "S", default_value_t = 25)]
    pub(crate) seconds: u32,
    /// Output format.
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    pub(crate) output: Output,
}

/// What to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Benchmark {
    /// Nanoseconds per packet, measured with `BPF_PROG_TEST_RUN`
    Packets,
    /// Milliseconds from a watch event to the BPF maps, while pods are added and removed
    Convergence,
    /// At 25 to 100 new pods per second: milliseconds until policies are enforced, and number of pods that are removed
    /// before their policies are enforced
    Churn,
    /// Milliseconds for which the start gate holds pods, and which of their first packets arrive
    Starts,
    /// The agent's resident memory
    Memory,
    /// Gbit/s, requests and connections per second between two pods, with netpol and with other packet filters; run
    /// time of the eBPF programs for this traffic
    Net,
}

/// Output format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// Plain text.
    Text,
    /// JSON.
    Json,
}

/// Runs the command.
pub(crate) fn dispatch(cli: Cli) -> Result<ExitCode> {
    match cli.command {
        Command::Setup => setup::run()?,
        Command::Ebpf { log: false } => {
            ebpf::build_with_tests()?.iter().for_each(|object| println!("{}", object.display()));
        }
        Command::Ebpf { log: true } => println!("{}", ebpf::build_with_log()?.display()),
        Command::Build => binaries::build_all()?,
        Command::Man => binaries::manual()?,
        Command::Krew(args) => krew::run(&args)?,
        Command::Image(args) => image::run(&args)?,
        Command::Demo(args) => return demo(&args),
        Command::Test(args) => return test::run(&args),
        Command::Bench(args) => return bench(&args),
        Command::Kernels(args) => return kernels::run(&args),
        Command::Doctor(args) => return doctor::run(&args),
        Command::Tidy => return tidy::run(),
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(feature = "lab")]
fn demo(args: &DemoArgs) -> Result<ExitCode> {
    crate::demo::run(args)
}

/// Builds the binaries for the demo. Then replaces this process with an xtask with feature `lab`, which runs the demo.
#[cfg(not(feature = "lab"))]
fn demo(_args: &DemoArgs) -> Result<ExitCode> {
    setup::run()?;
    binaries::build()?;
    match lab::rerun(lab::Profile::Dev)? {}
}

#[cfg(feature = "lab")]
fn bench(args: &BenchArgs) -> Result<ExitCode> {
    crate::bench::run(args)
}

/// Builds what is measured. Then replaces this process with an xtask with feature `lab`, which runs the benchmark.
#[cfg(not(feature = "lab"))]
fn bench(args: &BenchArgs) -> Result<ExitCode> {
    setup::run()?;
    ebpf::build_with_tests()?;
    match args.what {
        Benchmark::Packets => {}
        Benchmark::Convergence | Benchmark::Churn | Benchmark::Starts | Benchmark::Memory | Benchmark::Net => {
            binaries::build()?;
        }
    }
    match lab::rerun(lab::Profile::Release)? {}
}
