//! What there is to run, as cargo tells it.

use std::fmt;
use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::run;

/// The crate whose integration tests make clusters.
const LIVE: &str = "tests";

/// Those of its executables that run once more, unchanged, with an agent that has its objects from an API server.
const ONCE_MORE: [&str; 4] = ["always", "change", "selection", "unknown"];

/// Where the agents under test get their objects from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Source {
    /// Where the test says.
    Own,
    /// An API server that says what the test's manifests say.
    ApiServer,
}

/// One executable full of tests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Executable {
    /// The crate's folder.
    pub(super) folder: PathBuf,
    /// The crate's target.
    pub(super) target: String,
    /// Whether it is a crate's `tests/*.rs`, not what is tested within its sources.
    pub(super) integration: bool,
    /// The file to run.
    pub(super) path: PathBuf,
    /// By what source.
    pub(super) source: Source,
}

impl Executable {
    /// Whether its tests spend their time waiting for packets.
    pub(super) fn is_live(&self) -> bool {
        self.integration && self.folder.ends_with(LIVE)
    }
}

impl fmt::Display for Executable {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let folder = super::short(&self.folder);
        if self.integration {
            write!(formatter, "{folder}/tests/{}.rs", self.target)?;
        } else {
            write!(formatter, "{folder}, {}", self.target)?;
        }
        match self.source {
            Source::Own => Ok(()),
            Source::ApiServer => formatter.write_str(", with objects from an API server"),
        }
    }
}

/// Builds all tests; returns them with the quick ones first.
pub(super) fn build() -> Result<Vec<Executable>> {
    run::say("building the tests");
    let mut cargo = run::cargo(["test", "--workspace", "--all-features", "--no-run"]);
    cargo.arg("--message-format=json-render-diagnostics").stdin(Stdio::null()).stderr(Stdio::inherit());
    let output = cargo.output().context("building the tests: cannot start cargo")?;
    if !output.status.success() {
        bail!("the tests do not compile: cargo test --workspace --all-features --no-run");
    }
    let mut executables = String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| parse(line).transpose())
        .collect::<Result<Vec<_>>>()?;
    executables.extend(once_more(&executables)?);
    executables.sort_by_key(|one| (one.is_live(), one.source, one.integration, one.folder.clone(), one.target.clone()));
    Ok(executables)
}

/// Those that are to run by an API server too.
fn once_more(executables: &[Executable]) -> Result<Vec<Executable>> {
    let find = |name: &&str| {
        let found = executables.iter().find(|one| one.is_live() && one.target == *name);
        let found =
            found.with_context(|| format!("no tests named {name} to run once more: ONCE_MORE has an old name"))?;
        Ok(Executable { source: Source::ApiServer, ..found.clone() })
    };
    ONCE_MORE.iter().map(find).collect()
}

/// One line of cargo's messages, where it names an executable of tests.
fn parse(line: &str) -> Result<Option<Executable>> {
    let message: Message = serde_json::from_str(line).with_context(|| format!("reading cargo's message {line}"))?;
    let (Some(path), Some(manifest), Some(target), Some(profile)) =
        (message.executable, message.manifest_path, message.target, message.profile)
    else {
        return Ok(None);
    };
    if !profile.test {
        return Ok(None);
    }
    let folder = manifest.parent().context("a manifest is in a folder")?.to_owned();
    let integration = target.kind.iter().any(|kind| kind == "test");
    Ok(Some(Executable { folder, target: target.name, integration, path, source: Source::Own }))
}

#[derive(Deserialize)]
struct Message {
    executable: Option<PathBuf>,
    manifest_path: Option<PathBuf>,
    target: Option<Target>,
    profile: Option<Profile>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
}

#[derive(Deserialize)]
struct Profile {
    test: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cargo_tells_which_executables_are_tests() {
        let artifact = |kind: &str, test: bool| {
            format!(
                r#"{{"reason":"compiler-artifact","manifest_path":"/w/tests/Cargo.toml","executable":"/t/x-1",
                "target":{{"name":"x","kind":["{kind}"]}},"profile":{{"test":{test}}}}}"#
            )
        };
        let found = parse(&artifact("test", true)).unwrap().unwrap();
        assert!(found.is_live());
        let unit = parse(&artifact("lib", true)).unwrap().unwrap();
        assert!(!unit.is_live() && !unit.integration);
        assert_eq!(parse(&artifact("bin", false)).unwrap(), None, "a program, not a test");
        assert_eq!(parse(r#"{"reason":"build-finished","success":true}"#).unwrap(), None);
        assert!(parse("warning: not a message").is_err());
    }

    #[test]
    fn what_runs_once_more_is_found_and_named_so() {
        let one = |target: &str| Executable {
            folder: "/w/tests".into(),
            target: target.to_owned(),
            integration: true,
            path: "/t/x-1".into(),
            source: Source::Own,
        };
        let all: Vec<_> = ONCE_MORE.iter().map(|target| one(target)).collect();
        let again = once_more(&all).unwrap();
        assert_eq!(again.len(), ONCE_MORE.len());
        assert!(again[0].to_string().ends_with("always.rs, with objects from an API server"), "{}", again[0]);
        assert!(once_more(&all[1..]).is_err(), "one of another name is missed");
    }
}
