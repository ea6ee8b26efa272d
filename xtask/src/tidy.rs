//! `tidy`: what reviewers should not have to look for.

mod layers;
mod papers;
mod sources;

use std::process::ExitCode;

use anyhow::Result;

use crate::run;

/// Tells what is to be done, a line each.
type Check = fn() -> Result<Vec<String>>;

/// Runs all checks, whatever the first ones find.
pub(crate) fn run() -> Result<ExitCode> {
    let checks: [(&str, Check); 12] = [
        ("sources are small, and have no leftovers", sources::look),
        ("aya is named only by those who may", layers::who_names_aya),
        ("netpol-policy is pure, netpol-common lean", layers::pure_crates),
        ("every reason is explained in docs/", papers::reasons),
        ("every option and metric of the agent is in docs/", papers::agent),
        ("every line of docs/semantics.md has a test", papers::semantics),
        ("every example is listed, and links lead somewhere", papers::links),
        ("every verb is in CONTRIBUTING.md", papers::verbs),
        ("every test named in docs/threat-model.md exists", papers::threat_model),
        ("formatted", || cargo("fmt --all --check --quiet", "run: cargo fmt --all")),
        ("clippy, and docs of public items", || {
            let words = "clippy --workspace --all-targets --all-features --keep-going --quiet -- -D warnings";
            cargo(words, "see above; `cargo clippy --fix` does some of it")
        }),
        ("documentation builds without warnings", documentation),
    ];
    let mut all = 0;
    for (what, look) in checks {
        let findings = look()?;
        println!("{:<8}{what}", if findings.is_empty() { "ok" } else { "TO DO" });
        for finding in &findings {
            println!("        {finding}");
        }
        all += findings.len();
    }
    if all > 0 {
        println!("\n{all} to do.");
    }
    Ok(if all == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A cargo whose failure is a finding; what it says is shown.
fn cargo(words: &str, advice: &str) -> Result<Vec<String>> {
    finding(&mut run::cargo(words.split(' ')), advice)
}

fn documentation() -> Result<Vec<String>> {
    let mut doc = run::cargo(["doc", "--workspace", "--no-deps", "--all-features", "--quiet"]);
    finding(doc.env("RUSTDOCFLAGS", "-D warnings"), "see above")
}

fn finding(command: &mut std::process::Command, advice: &str) -> Result<Vec<String>> {
    let status = command.status()?;
    Ok(if status.success() { Vec::new() } else { vec![advice.to_owned()] })
}
