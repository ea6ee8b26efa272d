//! `test`: runs all tests, including those that need root.

mod executables;
mod tally;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{ExitCode, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::cli::TestArgs;
use crate::{ebpf, run, setup, workspace};
use executables::{Executable, Source};
use tally::Tally;

/// Number of live tests for each CPU. Live tests use real packets. These tests spend most of their time waiting for
/// packets that were dropped, so more of them run in parallel than there are CPUs.
const LIVE_PER_CPU: usize = 2;

/// How long an executable may run without output before it counts as hung.
const SILENCE_LIMIT: Duration = Duration::from_mins(5);

/// Sets up, builds, runs all tests and prints the totals.
pub(crate) fn run(args: &TestArgs) -> Result<ExitCode> {
    if !run::is_root() {
        bail!(
            "the tests create network namespaces and load BPF programs, and no test is skipped silently: run as root, \
             for example\n  sudo -E env \"PATH=$PATH\" cargo xtask test\n`cargo xtask doctor` lists other missing requirements; \
             `cargo test -p netpol-policy -p netpol-cli` does not need root"
        );
    }
    let start = Instant::now();
    setup::run()?;
    setup::mount_bpffs()?;
    ebpf::build_with_tests()?;
    let (executables, agent) = executables::build()?;
    let build_time = start.elapsed();

    let mut tally = Tally::default();
    for executable in &executables {
        run_executable(executable, &agent, args, &mut tally)?;
    }
    run::announce("documentation tests");
    let mut doc = run::cargo(["test", "--workspace", "--all-features", "--doc", "--no-fail-fast", "--"]);
    doc.args(&args.filter);
    follow(&mut doc, "documentation", &mut tally)?;

    report(&tally, args, start.elapsed().saturating_sub(build_time), build_time)
}

/// Runs one test executable, with the environment that its tests need.
fn run_executable(executable: &Executable, agent: &Path, args: &TestArgs, tally: &mut Tally) -> Result<()> {
    run::announce(&executable.to_string());
    let mut command = std::process::Command::new(&executable.path);
    // `cargo test` sets this directory and this variable, too. Some tests use them to find their data.
    command.current_dir(&executable.folder).env("CARGO_MANIFEST_DIR", &executable.folder);
    command.env("NETPOL_AGENT", agent);
    command.env("NETPOL_BPF_OBJECT", workspace::bpf_object());
    // Selects where the agents of the tests read objects from.
    match executable.source {
        Source::Default => command.env_remove("NETPOL_TEST_SOURCE"),
        Source::ApiServer => command.env("NETPOL_TEST_SOURCE", "kube"),
    };
    if let Some(cases) = args.cases {
        command.env("NETPOL_CASES", cases.to_string()).env("PROPTEST_CASES", cases.to_string());
    }
    command.args(&args.filter);
    command.arg(format!("--test-threads={}", threads(executable, args)));
    follow(&mut command, &executable.to_string(), tally)
}

fn threads(executable: &Executable, args: &TestArgs) -> usize {
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let default = if executable.is_live() { cpus * LIVE_PER_CPU } else { cpus };
    args.threads.unwrap_or(default)
}

/// Prints the output of the tests and counts results. An executable that ends without a result counts as failed.
fn follow(command: &mut std::process::Command, name: &str, tally: &mut Tally) -> Result<()> {
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().with_context(|| format!("starting {name}"))?;
    let stdout = child.stdout.take().context("the tests' stdout is not a pipe")?;
    let (sender, lines) = mpsc::channel();
    let reader = std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    tally.begin(name);
    loop {
        match lines.recv_timeout(SILENCE_LIMIT) {
            Ok(line) => {
                if tally.line(&line) {
                    println!("{line}");
                }
            }
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                println!("{name} printed nothing for {} s and was stopped", SILENCE_LIMIT.as_secs());
                child.kill().with_context(|| format!("stopping {name}"))?;
                tally.hung();
                break;
            }
        }
    }
    let status = child.wait().with_context(|| format!("waiting for {name}"))?;
    tally.end(status.success());
    // After a kill, a grandchild process may still have the pipe open. Then the reader does not end, so do not wait for
    // it.
    drop(lines);
    if reader.is_finished() {
        reader.join().ok();
    }
    Ok(())
}

fn report(tally: &Tally, args: &TestArgs, test_time: Duration, build_time: Duration) -> Result<ExitCode> {
    println!();
    for failure in tally.failures() {
        println!("failed: {failure}");
    }
    if let Some(first) = tally.first_failed_test() {
        println!("to run a failed test again: cargo xtask test --filter {first}");
    }
    println!("setup and build {}, tests {}", minutes(build_time), minutes(test_time));
    if tally.passed + tally.failed == 0 {
        bail!("no test matches {}: a filter is a part of a test's path", args.filter.join(" or "));
    }
    if tally.ignored > 0 {
        println!("tests with the attribute `ignore`: {}. Remove the attribute, or the test", tally.ignored);
    }
    println!("{} passed, {} failed", tally.passed, tally.failed);
    Ok(if tally.failed == 0 && tally.ignored == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn minutes(time: Duration) -> String {
    let seconds = time.as_secs();
    if seconds < 60 {
        format!("{:.1} s", time.as_secs_f64())
    } else {
        format!("{} min {} s", seconds / 60, seconds % 60)
    }
}

/// Formats a path relative to the checkout.
fn short(path: &Path) -> String {
    path.strip_prefix(workspace::root()).unwrap_or(path).display().to_string()
}
