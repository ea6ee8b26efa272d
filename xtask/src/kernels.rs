//! Tests netpol on several kernels with `netpol-smoke`, a smoke test: on Debian's kernels, each booted in a virtual
//! machine, and on the kernel of this machine.

mod image;
mod machine;
mod report;
mod suite;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};

use crate::cli::KernelsArgs;
use crate::{binaries, run, setup, workspace};
use report::Report;
use suite::Suite;

/// Debian's cloud kernels, each with the Debian suite (release) that contains it. On these kernels, the agent attaches
/// its programs with clsact, the default. TCX is tested only on the running kernel.
const SUITES: &[Suite] = &[
    Suite { version: "5.10", name: "bullseye" },
    Suite { version: "6.1", name: "bookworm" },
    Suite { version: "6.12", name: "bookworm-backports" },
];
/// The name of this machine's kernel in `--only`.
const RUNNING: &str = "running";

/// Files that each virtual machine needs.
#[derive(Debug)]
struct Programs {
    smoke: PathBuf,
    agent: PathBuf,
    /// The object file of the eBPF programs.
    object: PathBuf,
}

/// Tests all kernels, or those selected by options, and prints a table.
pub(crate) fn run(args: &KernelsArgs) -> Result<ExitCode> {
    let versions = || SUITES.iter().map(|suite| suite.version).chain([RUNNING]);
    if let Some(unknown) = args.only.iter().find(|only| !versions().any(|version| version == **only)) {
        bail!("unknown kernel {unknown:?}; available: {}", versions().collect::<Vec<_>>().join(", "));
    }
    let selected = |version: &str| args.only.is_empty() || args.only.iter().any(|only| only == version);

    setup::run()?;
    setup::install_packages(setup::KERNEL_TOOLS)?;
    let programs = build()?;
    let mut reports = Vec::new();
    for suite in SUITES.iter().filter(|suite| selected(suite.version)) {
        let kernel = suite.kernel(args.update)?;
        let image = image::build(&kernel, &programs)?;
        reports.push(machine::boot(&kernel, &image)?);
    }
    if selected(RUNNING) {
        // `tc` attaches the programs with clsact.
        for attach in ["tcx", "tc"] {
            reports.push(test_running_kernel(&programs, attach)?);
        }
    }
    print!("{}", report::table(&reports));
    for report in reports.iter().filter(|report| !report.passed()) {
        println!("\n{}: {}", report.kernel, report.failure());
    }
    Ok(if reports.iter().all(Report::passed) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Builds the release agent and the smoke test.
fn build() -> Result<Programs> {
    binaries::build()?;
    run::step(
        "building netpol-smoke",
        &mut run::cargo(["build", "--package", "netpol-tests", "--bin", "netpol-smoke"]),
    )?;
    Ok(Programs {
        smoke: workspace::target().join("debug/netpol-smoke"),
        agent: workspace::target().join("release/netpol-agent"),
        object: workspace::bpf_object(),
    })
}

/// Runs the smoke test on this machine's kernel.
fn test_running_kernel(programs: &Programs, attach: &str) -> Result<Report> {
    if !run::is_root() {
        bail!("the test on the running kernel creates network namespaces: run as root, or exclude it with --only");
    }
    setup::mount_bpffs()?;
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").context("reading the kernel release")?;
    let title = format!("{} (running, --attach {attach})", release.trim());
    run::announce(&format!("checking {title}"));
    let mut smoke = run::command(path_str(&programs.smoke)?, ["--attach", attach]);
    let output = smoke
        .env("NETPOL_AGENT", &programs.agent)
        .env("NETPOL_BPF_OBJECT", &programs.object)
        .output()
        .with_context(|| format!("starting {}", programs.smoke.display()))?;
    let output_text = [output.stdout, output.stderr].concat();
    Ok(Report::read(title, &String::from_utf8_lossy(&output_text)))
}

fn path_str(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))
}
