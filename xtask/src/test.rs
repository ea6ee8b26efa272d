//! `test`: all of them, those that need root included.

mod executables;
mod tally;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{ExitCode, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::cli::TestArgs;
use crate::{binaries, run, setup, workspace};
use executables::{Executable, Source};
use tally::Tally;

/// Live tests mostly wait for packets that do not come: more of them at once than there are CPUs.
const LIVE_PER_CPU: usize = 2;

/// How long an executable may say nothing before it counts as hung.
const SILENCE: Duration = Duration::from_mins(5);

/// Sets up, builds, runs all tests and prints the sum.
pub(crate) fn run(args: &TestArgs) -> Result<ExitCode> {
    if !run::is_root() {
        bail!(
            "the tests make network namespaces and load BPF programs, and none is left out in silence: run as root, \
             for example\n  sudo -E env \"PATH=$PATH\" cargo xtask test\n`cargo xtask doctor` tells what else is missing; \
             `cargo test -p netpol-policy -p netpol-cli` needs nothing"
        );
    }
    let start = Instant::now();
    setup::run()?;
    setup::mount_bpffs()?;
    binaries::build()?;
    let executables = executables::build()?;
    let built = start.elapsed();

    let mut tally = Tally::default();
    for executable in &executables {
        run_one(executable, args, &mut tally)?;
    }
    run::say("documentation tests");
    let mut doc = run::cargo(["test", "--workspace", "--all-features", "--doc", "--no-fail-fast", "--"]);
    doc.args(&args.filter);
    follow(&mut doc, "documentation", &mut tally)?;

    report(&tally, args, start.elapsed().saturating_sub(built), built)
}

fn run_one(executable: &Executable, args: &TestArgs, tally: &mut Tally) -> Result<()> {
    run::say(&executable.to_string());
    let mut command = std::process::Command::new(&executable.path);
    // As cargo would: some tests find their data by it.
    command.current_dir(&executable.folder).env("CARGO_MANIFEST_DIR", &executable.folder);
    command.env("NETPOL_AGENT", workspace::target().join("release/netpol-agent"));
    command.env("NETPOL_BPF_OBJECT", workspace::bpf_object());
    match executable.source {
        Source::Own => command.env_remove("NETPOL_TEST_SOURCE"),
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
    let usual = if executable.is_live() { cpus * LIVE_PER_CPU } else { cpus };
    args.threads.unwrap_or(usual)
}

/// Shows what the tests print, and counts. Whatever ends without having told a result counts as failed.
fn follow(command: &mut std::process::Command, name: &str, tally: &mut Tally) -> Result<()> {
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().with_context(|| format!("starting {name}"))?;
    let stdout = child.stdout.take().context("the tests' output is a pipe")?;
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
        match lines.recv_timeout(SILENCE) {
            Ok(line) => {
                if tally.line(&line) {
                    println!("{line}");
                }
            }
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                println!("{name} said nothing for {} s: ended", SILENCE.as_secs());
                child.kill().with_context(|| format!("ending {name}"))?;
                tally.hung();
                break;
            }
        }
    }
    let status = child.wait().with_context(|| format!("waiting for {name}"))?;
    tally.end(status.success());
    // After a kill a grandchild may still hold the pipe; nothing is read from it any more.
    drop(lines);
    if reader.is_finished() {
        reader.join().ok();
    }
    Ok(())
}

fn report(tally: &Tally, args: &TestArgs, tests: Duration, built: Duration) -> Result<ExitCode> {
    println!();
    for failure in tally.failures() {
        println!("failed: {failure}");
    }
    if let Some(first) = tally.first_failed_test() {
        println!("to run one again: cargo xtask test --filter {first}");
    }
    println!("set-up and build {}, tests {}", minutes(built), minutes(tests));
    if tally.passed + tally.failed == 0 {
        bail!("no test is named like {}: a filter is a part of a test's path", args.filter.join(" or "));
    }
    if tally.ignored > 0 {
        println!("{} tests are marked as ignored, which is not done here: let them run or remove them", tally.ignored);
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

/// A path as one reads it: within the checkout.
fn short(path: &Path) -> String {
    path.strip_prefix(workspace::root()).unwrap_or(path).display().to_string()
}
