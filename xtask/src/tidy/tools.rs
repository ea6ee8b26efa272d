//! Checks by two other programs: typos and cargo-deny. Cargo builds pinned versions of these programs in target/tools.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use super::finding;
use crate::{run, workspace};

/// A program, its crate and version.
struct Tool {
    program: &'static str,
    package: &'static str,
    version: &'static str,
}

const TYPOS: Tool = Tool { program: "typos", package: "typos-cli", version: "1.52.0" };
const DENY: Tool = Tool { program: "cargo-deny", package: "cargo-deny", version: "0.20.2" };

/// Checks the spelling of all files; `_typos.toml` has the exceptions.
pub(super) fn spelling() -> Result<Vec<String>> {
    finding(TYPOS.command()?.args(["--format", "brief"]), "see above; exceptions are in _typos.toml")
}

/// Checks the licenses, versions and sources of dependencies by the rules in deny.toml.
pub(super) fn dependencies() -> Result<Vec<String>> {
    let mut check = deny()?;
    check.args(["check", "--hide-inclusion-graph", "bans", "licenses", "sources"]);
    finding(&mut check, "see above; the rules are in deny.toml")
}

/// Checks that no dependency has a security advisory or was withdrawn from the registry. The inner error is the reason
/// why advisories cannot be checked on this machine.
pub(super) fn advisories() -> Result<Result<Vec<String>, String>> {
    if let Err(error) = run::output("fetching the advisory database", deny()?.args(["fetch", "db"])) {
        return Ok(Err(format!("{error:#}")));
    }
    let mut check = deny()?;
    check.args(["check", "--disable-fetch", "--hide-inclusion-graph", "advisories"]);
    finding(&mut check, "see above; update the dependency, or give the reason for an exception in deny.toml").map(Ok)
}

/// Returns a command for cargo-deny. It prints only errors, because it has many warnings about crates that are used in
/// two versions.
fn deny() -> Result<Command> {
    let mut command = DENY.command()?;
    command.args(["--log-level", "error", "--all-features"]);
    Ok(command)
}

impl Tool {
    /// Returns a command for the program. Installs this version if neither the PATH nor target/tools has it.
    fn command(&self) -> Result<Command> {
        let root = workspace::target().join("tools");
        let installed = root.join("bin").join(self.program);
        for program in run::find(self.program).into_iter().chain([installed.clone()]) {
            if self.is_version(&program)? {
                return Ok(run::command::<&str>(&program.to_string_lossy(), []));
            }
        }
        let mut install =
            run::cargo(["install", self.package, "--version", self.version, "--locked", "--force", "--root"]);
        // Runs outside of the workspace, so that the workspace's Cargo configuration does not apply.
        install.arg(&root).current_dir("/");
        run::step(&format!("building {} {} (a few minutes)", self.package, self.version), &mut install)?;
        Ok(run::command::<&str>(&installed.to_string_lossy(), []))
    }

    /// Returns whether the program exists and has this version. Programs print, for example, `typos-cli 1.52.0`.
    fn is_version(&self, program: &PathBuf) -> Result<bool> {
        if !program.exists() {
            return Ok(false);
        }
        let mut query = Command::new(program);
        let output = run::output(self.program, query.arg("--version"))?;
        let version = output.split_whitespace().nth(1).with_context(|| format!("{} has no version", self.program))?;
        Ok(version == self.version)
    }
}
