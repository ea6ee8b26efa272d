//! Lists the test executables, from cargo's messages.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use crate::run;

/// The crate with the live tests: integration tests that use real packets.
const LIVE: &str = "tests";

/// Executables with live tests that run a second time, unchanged. The second time, their agents read Kubernetes objects
/// from a fake API server.
const ALSO_WITH_API_SERVER: [&str; 4] = ["independent_of_rules", "change", "selection", "unknown_pods"];

/// The source from which the agents under test read Kubernetes objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Source {
    /// The source that the test selects.
    Default,
    /// A fake API server that serves the test's manifests.
    ApiServer,
}

/// An executable with tests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Executable {
    /// The crate's folder.
    pub(super) folder: PathBuf,
    /// The cargo target.
    pub(super) target: String,
    /// Whether it has integration tests, from `tests/*.rs` of the crate. Otherwise it has unit tests.
    pub(super) integration: bool,
    /// The file to run.
    pub(super) path: PathBuf,
    /// The source from which the agents under test read Kubernetes objects.
    pub(super) source: Source,
}

impl Executable {
    /// Reports whether its tests are live tests, which use real packets.
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
            Source::Default => Ok(()),
            Source::ApiServer => formatter.write_str(", with objects from an API server"),
        }
    }
}

/// Programs that tests run. Cargo builds a crate's programs with its integration tests.
const PROGRAMS: [&str; 3] = ["netpol-agent", "netpol", "netpol-cni"];

/// Builds all tests, and the programs that they run. Returns the executables with tests (those with live tests last),
/// and the path of the agent. The other programs are in the same folder as the agent.
pub(super) fn build() -> Result<(Vec<Executable>, PathBuf)> {
    run::announce("building the tests");
    let mut cargo = run::cargo(["test", "--workspace", "--all-features", "--no-run"]);
    cargo.arg("--message-format=json-render-diagnostics").stdin(Stdio::null()).stderr(Stdio::inherit());
    let output = cargo.output().context("building the tests: cannot start cargo")?;
    if !output.status.success() {
        bail!("the tests do not compile: cargo test --workspace --all-features --no-run");
    }
    let output = String::from_utf8_lossy(&output.stdout);
    let built = output.lines().filter_map(|line| parse(line).transpose()).collect::<Result<Vec<_>>>()?;
    let (mut executables, mut programs) = (Vec::new(), BTreeMap::new());
    for artifact in built {
        match artifact {
            Built::Test(executable) => executables.push(executable),
            Built::Program(name, path) => drop(programs.insert(name, path)),
        }
    }
    for program in PROGRAMS {
        ensure!(programs.contains_key(program), "cargo has not built {program} with the tests of its crate");
    }
    let agent = programs.remove(PROGRAMS[0]).context("no agent was built")?;
    executables.extend(with_api_server(&executables)?);
    executables.sort_by_key(|executable| {
        let (folder, target) = (executable.folder.clone(), executable.target.clone());
        (executable.is_live(), executable.source, executable.integration, folder, target)
    });
    Ok((executables, agent))
}

/// Returns the executables that run a second time, with an API server.
fn with_api_server(executables: &[Executable]) -> Result<Vec<Executable>> {
    let find = |name: &&str| {
        let found = executables.iter().find(|executable| executable.is_live() && executable.target == *name);
        let found = found.with_context(|| {
            format!("ALSO_WITH_API_SERVER has {name}, but there is no test executable of this name")
        })?;
        Ok(Executable { source: Source::ApiServer, ..found.clone() })
    };
    ALSO_WITH_API_SERVER.iter().map(find).collect()
}

/// An executable that cargo has built.
#[derive(Debug, PartialEq, Eq)]
enum Built {
    Test(Executable),
    /// The name and the path of a program.
    Program(String, PathBuf),
}

/// Parses one line of cargo's messages. Returns the executable if the line has one.
fn parse(line: &str) -> Result<Option<Built>> {
    let message: Message = serde_json::from_str(line).with_context(|| format!("parsing cargo's message {line}"))?;
    let (Some(path), Some(manifest), Some(target), Some(profile)) =
        (message.executable, message.manifest_path, message.target, message.profile)
    else {
        return Ok(None);
    };
    if !profile.test {
        return Ok(Some(Built::Program(target.name, path)));
    }
    let folder = manifest.parent().context("the manifest's path has no folder")?.to_owned();
    let integration = target.kind.iter().any(|kind| kind == "test");
    Ok(Some(Built::Test(Executable { folder, target: target.name, integration, path, source: Source::Default })))
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
    fn test_executables_are_read_from_cargo_messages() {
        let artifact = |kind: &str, test: bool| {
            format!(
                r#"{{"reason":"compiler-artifact","manifest_path":"/w/tests/Cargo.toml","executable":"/t/x-1",
                "target":{{"name":"x","kind":["{kind}"]}},"profile":{{"test":{test}}}}}"#
            )
        };
        let test = |kind| match parse(&artifact(kind, true)).unwrap() {
            Some(Built::Test(test)) => test,
            other => panic!("{other:?} is no test"),
        };
        assert!(test("test").is_live());
        assert!(!test("lib").is_live() && !test("lib").integration);
        let program = parse(&artifact("bin", false)).unwrap();
        assert_eq!(program, Some(Built::Program("x".to_owned(), "/t/x-1".into())));
        assert_eq!(parse(r#"{"reason":"build-finished","success":true}"#).unwrap(), None);
        assert!(parse("warning: not a message").is_err());
    }

    #[test]
    fn executables_that_also_run_with_an_api_server_are_found_and_labeled() {
        let executable = |target: &str| Executable {
            folder: "/w/tests".into(),
            target: target.to_owned(),
            integration: true,
            path: "/t/x-1".into(),
            source: Source::Default,
        };
        let all: Vec<_> = ALSO_WITH_API_SERVER.iter().map(|target| executable(target)).collect();
        let repeated = with_api_server(&all).unwrap();
        assert_eq!(repeated.len(), ALSO_WITH_API_SERVER.len());
        assert!(
            repeated[0].to_string().ends_with("independent_of_rules.rs, with objects from an API server"),
            "{}",
            repeated[0]
        );
        assert!(with_api_server(&all[1..]).is_err(), "a missing executable is an error");
    }
}
