//! `doctor`: what is needed, what of it is missing, and the line that brings it.

mod kernel;
mod permissions;
mod tools;

use std::process::ExitCode;

use anyhow::Result;
use serde::Serialize;

use crate::cli::{DoctorArgs, Output};

/// One thing that was looked for.
#[derive(Debug, Serialize)]
struct Finding {
    /// `tools`, `kernel` or `permissions`.
    group: &'static str,
    /// What was looked for.
    name: String,
    state: State,
    /// What was found, or how it was noticed that it is missing.
    found: String,
    /// What needs it.
    used_by: &'static str,
    /// A line to run, or what to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    fix: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum State {
    /// There.
    Ok,
    /// Missing, and something else does; or one verb of several goes without.
    Optional,
    /// Only root can try.
    Unknown,
    /// Missing, and needed to build or to test.
    Missing,
}

/// Where something may be missing: what to do then.
struct Absence {
    state: State,
    fix: String,
}

fn needed(fix: impl Into<String>) -> Absence {
    Absence { state: State::Missing, fix: fix.into() }
}

fn optional(fix: impl Into<String>) -> Absence {
    Absence { state: State::Optional, fix: fix.into() }
}

impl Finding {
    /// `found` tells what is there, or else how that was noticed.
    fn new(
        group: &'static str,
        name: impl Into<String>,
        used_by: &'static str,
        found: Result<String, String>,
        absence: Absence,
    ) -> Self {
        let (state, found, fix) = match found {
            Ok(found) => (State::Ok, found, None),
            Err(why) => (absence.state, why, Some(absence.fix)),
        };
        Self { group, name: name.into(), state, found, used_by, fix }
    }
}

/// Looks and prints.
pub(crate) fn run(args: &DoctorArgs) -> Result<ExitCode> {
    let findings: Vec<_> = [tools::look(), kernel::look(), permissions::look()].into_iter().flatten().collect();
    match args.output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&findings)?),
        Output::Text => print(&findings),
    }
    let missing = findings.iter().any(|finding| matches!(finding.state, State::Missing | State::Unknown));
    Ok(if missing { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn print(findings: &[Finding]) {
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
    match (count(State::Missing), count(State::Optional)) {
        (0, 0) => println!("All is there."),
        (0, optional) => println!("All that is needed is there; {optional} optional not."),
        (missing, _) => println!("{missing} missing: `cargo xtask setup` installs tools; for the rest see above."),
    }
}
