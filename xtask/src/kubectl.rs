//! Finds or downloads kubectl. The tests of deploy/ use the kustomize that is part of kubectl.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::{debian, run, workspace};

/// Environment variable with the path of a kubectl to use.
const OVERRIDE: &str = "NETPOL_KUBECTL";
/// Oldest usable version. It contains kustomize 4.2, which supports components and `labels`.
const MINIMUM: (u32, u32) = (1, 22);
/// Debian suite with kubectl 1.32. The suite before it has kubectl 1.20.
const SUITE: &str = "trixie";
const PACKAGE: &str = "kubectl";

/// Downloads kubectl if none is found. Never replaces the kubectl of the system.
pub(crate) fn setup() -> Result<()> {
    if find().is_ok() {
        return Ok(());
    }
    // If the user has selected a kubectl, return the error instead of downloading another one.
    if std::env::var_os(OVERRIDE).is_some() {
        find()?;
    }
    run::announce(&format!("downloading Debian's kubectl ({SUITE}) to {}", folder().display()));
    debian::fetch(SUITE, &folder(), |_| Ok(PACKAGE.into())).with_context(|| {
        format!("cannot download kubectl: put version {}.{} or later on the PATH", MINIMUM.0, MINIMUM.1)
    })?;
    find().map(drop)
}

/// Describes the kubectl that the tests use.
pub(crate) fn describe() -> Result<String, String> {
    find()
        .map(|(path, (major, minor))| format!("{}, {major}.{minor}", path.display()))
        .map_err(|error| error.to_string())
}

/// Finds kubectl: the file that the environment variable names, or else the downloaded one, or else the one on the
/// PATH. tests/src/kubectl.rs finds it in the same way.
fn find() -> Result<(PathBuf, (u32, u32))> {
    let path = if let Some(path) = std::env::var_os(OVERRIDE) {
        path.into()
    } else {
        let downloaded = folder().join("root/usr/bin/kubectl");
        if downloaded.is_file() { downloaded } else { run::find("kubectl").context("not on the PATH")? }
    };
    let found = version(&path)?;
    if found < MINIMUM {
        let (path, (major, minor)) = (path.display(), found);
        bail!("{path} is version {major}.{minor}, but {}.{} is required", MINIMUM.0, MINIMUM.1);
    }
    Ok((path, found))
}

fn version(path: &Path) -> Result<(u32, u32)> {
    let mut command = run::command(&path.to_string_lossy(), ["version", "--client", "-o", "json"]);
    let output = run::output("running kubectl version", &mut command)?;
    parse(&output).with_context(|| format!("cannot parse the version of {}: {output}", path.display()))
}

fn parse(text: &str) -> Option<(u32, u32)> {
    let version: serde_json::Value = serde_json::from_str(text).ok()?;
    // Some vendors write `22+`.
    let number = |part| version["clientVersion"][part].as_str()?.trim_end_matches('+').parse().ok();
    Some((number("major")?, number("minor")?))
}

fn folder() -> PathBuf {
    workspace::target().join("tools").join(PACKAGE)
}

#[cfg(test)]
mod tests {
    use super::{MINIMUM, parse};

    #[test]
    fn kubectl_versions_are_parsed_and_compared() {
        let json = |minor: &str| format!(r#"{{"clientVersion":{{"major":"1","minor":"{minor}","gitVersion":"v"}}}}"#);
        assert!(parse(&json("20")).unwrap() < MINIMUM && parse(&json("22+")).unwrap() >= MINIMUM);
        assert_eq!(parse("{}"), None);
    }
}
