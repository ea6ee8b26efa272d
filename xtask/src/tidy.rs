//! `tidy`: the checks that a reviewer would otherwise do by hand.

mod docs;
mod layers;
mod metrics;
mod monitoring;
mod promql;
mod sources;
mod tools;
mod words;

use std::process::ExitCode;

use anyhow::Result;

use crate::run;

/// Returns one line for each finding.
type Check = fn() -> Result<Vec<String>>;

const ADVISORIES: &str = "dependencies have no security advisories";

/// Runs all checks, even if some have findings.
pub(crate) fn run() -> Result<ExitCode> {
    let checks: [(&str, Check); 19] = [
        ("sources are small and have no leftovers", sources::check),
        ("netpol-policy does no I/O, netpol-common has few dependencies", layers::pure_crates),
        ("modules of netpol-ebpf use lower layers only", layers::ebpf_layers),
        ("every reason is explained in docs/", docs::reasons),
        ("every option of the agent is in docs/", docs::options),
        ("every metric is in docs/, and metrics in docs/ exist", metrics::check),
        ("metrics and labels in the dashboard and in alerts exist", monitoring::queries),
        ("every alert has a test and a section in docs/alerts.md", monitoring::alerts),
        ("every item of docs/semantics.md has a test", docs::semantics),
        ("every example is listed, and links have a target", docs::links),
        ("every command is in CONTRIBUTING.md", docs::commands),
        ("every test named in docs/threat-model.md exists", docs::threat_model),
        ("texts use the terms in CONTRIBUTING.md", words::replaced_words),
        ("commit subjects have at most 72 characters", words::subjects),
        ("formatted", || cargo("fmt --all --check --quiet", "run: cargo fmt --all")),
        ("clippy, and docs of public items", || {
            let arguments = "clippy --workspace --all-targets --all-features --keep-going --quiet -- -D warnings";
            cargo(arguments, "see above; `cargo clippy --fix` can fix some of them")
        }),
        ("documentation builds without warnings", documentation),
        ("spelling", tools::spelling),
        ("licenses, versions and sources of dependencies", tools::dependencies),
    ];
    let mut total = 0;
    for (what, check) in checks {
        total += report(what, &check()?);
    }
    match tools::advisories()? {
        Ok(findings) => total += report(ADVISORIES, &findings),
        // A machine without a network can check everything else. In CI, a missing network is a finding.
        Err(reason) => {
            println!("NOT CHECKED: {ADVISORIES}\n        {}", reason.replace('\n', "\n        "));
            total += usize::from(std::env::var_os("CI").is_some());
        }
    }
    if total > 0 {
        println!("\nFindings: {total}");
    }
    Ok(if total == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Prints the result of a check, and returns the number of its findings.
fn report(what: &str, findings: &[String]) -> usize {
    println!("{:<8}{what}", if findings.is_empty() { "ok" } else { "FAILED" });
    for finding in findings {
        println!("        {finding}");
    }
    findings.len()
}

/// Runs cargo with its output shown. If cargo fails, returns the advice as a finding.
fn cargo(arguments: &str, advice: &str) -> Result<Vec<String>> {
    finding(&mut run::cargo(arguments.split(' ')), advice)
}

fn documentation() -> Result<Vec<String>> {
    let mut doc = run::cargo(["doc", "--workspace", "--no-deps", "--all-features", "--quiet"]);
    finding(doc.env("RUSTDOCFLAGS", "-D warnings"), "see above")
}

/// Runs a command with its output shown. If it fails, returns the advice as a finding.
fn finding(command: &mut std::process::Command, advice: &str) -> Result<Vec<String>> {
    let status = command.status()?;
    Ok(if status.success() { Vec::new() } else { vec![advice.to_owned()] })
}
