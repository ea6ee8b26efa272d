//! `doctor`: lists what netpol needs, what of this is missing, and how to get what is missing.

mod kernel;
mod permissions;
mod tools;

use std::process::ExitCode;

use anyhow::Result;
use serde::Serialize;

use crate::cli::{DoctorArgs, Output};

/// Result for one requirement.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Finding {
    /// `tools`, `kernel` or `permissions`.
    group: &'static str,
    /// The requirement.
    name: String,
    state: State,
    /// What was found, or why the requirement counts as missing.
    found: String,
    /// What needs it, such as a command of `cargo xtask` or the agent.
    used_by: &'static str,
    /// A command line or advice, if the requirement is missing or unknown.
    #[serde(skip_serializing_if = "Option::is_none")]
    fix: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
enum State {
    /// Found.
    Ok,
    /// Missing, but netpol has a substitute for it, or only one command needs it.
    Optional,
    /// Unknown, because only root can test it.
    Unknown,
    /// Missing, and required to build or to test.
    Missing,
}

/// What to report if a requirement is missing.
struct Absence {
    state: State,
    fix: String,
}

fn required(fix: impl Into<String>) -> Absence {
    Absence { state: State::Missing, fix: fix.into() }
}

fn optional(fix: impl Into<String>) -> Absence {
    Absence { state: State::Optional, fix: fix.into() }
}

impl Finding {
    /// Creates a finding. `found` is what was found, or why the requirement counts as missing.
    fn new(
        group: &'static str,
        name: impl Into<String>,
        used_by: &'static str,
        found: Result<String, String>,
        absence: Absence,
    ) -> Self {
        let (state, found, fix) = match found {
            Ok(found) => (State::Ok, found, None),
            Err(reason) => (absence.state, reason, Some(absence.fix)),
        };
        Self { group, name: name.into(), state, found, used_by, fix }
    }
}

/// Checks all requirements and prints the findings.
pub(crate) fn run(args: &DoctorArgs) -> Result<ExitCode> {
    let findings: Vec<_> = [tools::check(), kernel::check(), permissions::check()].into_iter().flatten().collect();
    match args.output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&findings)?),
        Output::Text => print_findings(&findings),
    }
    let is_incomplete = findings.iter().any(|finding| matches!(finding.state, State::Missing | State::Unknown));
    Ok(if is_incomplete { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn print_findings(findings: &[Finding]) {
    let mut group = "";
    for finding in findings {
        if finding.group != group {
            group = finding.group;
            println!("{group}");
        }
        let mark = match finding.state {
            State::Ok => "ok",
            State::Optional => "-",
            State::Unknown => "?",
            State::Missing => "MISSING",
        };
        println!("  {mark:<8}{:<28}{}", finding.name, finding.found);
        if let Some(fix) = finding.fix.as_ref().filter(|_| finding.state != State::Unknown) {
            println!("{:<10}for {}", "", finding.used_by);
            println!("{:<10}{fix}", "");
        }
    }
    let count = |state| findings.iter().filter(|finding| finding.state == state).count();
    println!();
    match (count(State::Missing), count(State::Unknown), count(State::Optional)) {
        (0, 0, 0) => println!("Everything was found."),
        (0, 0, optional) => println!("All requirements were found. Optional and missing: {optional}."),
        (0, unknown, _) => println!("Unknown: {unknown}. Run this command as root to check these requirements."),
        (missing, ..) => println!("Missing: {missing}. `cargo xtask setup` installs tools; see above for the rest."),
    }
}
