//! Does netpol work on other kernels? Boots them in emulated machines and runs `netpol-smoke` there, and here.

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

/// Debian's cloud kernels, by the suite whose current kernel they are. All attach by clsact; TCX is tried on the one
/// that this runs on.
const SUITES: &[Suite] = &[
    Suite { version: "5.10", name: "bullseye" },
    Suite { version: "6.1", name: "bookworm" },
    Suite { version: "6.12", name: "bookworm-backports" },
];
/// The kernel that this runs on.
const RUNNING: &str = "running";

/// What runs on each kernel.
#[derive(Debug)]
struct Programs {
    smoke: PathBuf,
    agent: PathBuf,
    object: PathBuf,
}

/// Checks all kernels, or those asked for, and prints a table.
pub(crate) fn run(args: &KernelsArgs) -> Result<ExitCode> {
    let known = || SUITES.iter().map(|suite| suite.version).chain([RUNNING]);
    if let Some(unknown) = args.only.iter().find(|only| !known().any(|version| version == **only)) {
        bail!("no kernel {unknown:?}; there are {}", known().collect::<Vec<_>>().join(", "));
    }
    let wanted = |version: &str| args.only.is_empty() || args.only.iter().any(|only| only == version);

    setup::run()?;
    setup::packages(setup::KERNEL_TOOLS)?;
    let programs = build()?;
    let mut reports = Vec::new();
    for suite in SUITES.iter().filter(|suite| wanted(suite.version)) {
        let kernel = suite.kernel(args.update)?;
        let image = image::make(&kernel, &programs)?;
        reports.push(machine::boot(&kernel, &image)?);
    }
    if wanted(RUNNING) {
        for attach in ["tcx", "tc"] {
            reports.push(here(&programs, attach)?);
        }
    }
    print!("{}", report::table(&reports));
    for report in reports.iter().filter(|report| !report.passed()) {
        println!("\n{}: {}", report.kernel, report.failure());
    }
    Ok(if reports.iter().all(Report::passed) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The agent as users get it, and the smoke test.
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
fn here(programs: &Programs, attach: &str) -> Result<Report> {
    if !run::is_root() {
        bail!("the running kernel's check makes network namespaces: run as root, or leave it out with --only");
    }
    setup::mount_bpffs()?;
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").context("reading the kernel's version")?;
    let title = format!("{} (running, --attach {attach})", release.trim());
    run::say(&format!("checking {title}"));
    let mut smoke = run::command(path(&programs.smoke)?, ["--attach", attach]);
    let output = smoke
        .env("NETPOL_AGENT", &programs.agent)
        .env("NETPOL_BPF_OBJECT", &programs.object)
        .output()
        .with_context(|| format!("starting {}", programs.smoke.display()))?;
    let said = [output.stdout, output.stderr].concat();
    Ok(Report::read(title, &String::from_utf8_lossy(&said)))
}

fn path(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))
}
