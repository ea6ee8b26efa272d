//! kubectl, for its kustomize: the tests of deploy/ build the manifests with it.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::{debian, run, workspace};

/// Names a kubectl to use.
const OVERRIDE: &str = "NETPOL_KUBECTL";
/// Its kustomize is 4.2, which knows components and `labels`.
const WANTED: (u32, u32) = (1, 22);
/// Its kubectl is 1.32; the suite before has 1.20.
const SUITE: &str = "trixie";
const PACKAGE: &str = "kubectl";

/// Makes sure that there is one; never replaces the system's.
pub(crate) fn setup() -> Result<()> {
    if find().is_ok() {
        return Ok(());
    }
    if std::env::var_os(OVERRIDE).is_some() {
        find()?;
    }
    run::say(&format!("downloading Debian's kubectl ({SUITE}) to {}", folder().display()));
    debian::fetch(SUITE, &folder(), |_| Ok(PACKAGE.into()))
        .with_context(|| format!("no kubectl: put one of {}.{} or later on the PATH", WANTED.0, WANTED.1))?;
    find().map(drop)
}

/// Which one the tests take, for people.
pub(crate) fn look() -> Result<String, String> {
    find()
        .map(|(path, (major, minor))| format!("{}, {major}.{minor}", path.display()))
        .map_err(|error| error.to_string())
}

/// As named, else our own, else from the PATH: as in tests/tests/deploy/kubectl.rs.
fn find() -> Result<(PathBuf, (u32, u32))> {
    let path = if let Some(named) = std::env::var_os(OVERRIDE) {
        named.into()
    } else {
        let own = folder().join("root/usr/bin/kubectl");
        if own.is_file() { own } else { run::find("kubectl").context("not on the PATH")? }
    };
    let found = version(&path)?;
    if found < WANTED {
        let (path, (major, minor)) = (path.display(), found);
        bail!("{path} is {major}.{minor}, {}.{} is needed", WANTED.0, WANTED.1);
    }
    Ok((path, found))
}

fn version(path: &Path) -> Result<(u32, u32)> {
    let mut ask = run::command(&path.to_string_lossy(), ["version", "--client", "-o", "json"]);
    let said = run::output("asking kubectl for its version", &mut ask)?;
    parse(&said).with_context(|| format!("{} tells its version as nobody knows it: {said}", path.display()))
}

fn parse(said: &str) -> Option<(u32, u32)> {
    let said: serde_json::Value = serde_json::from_str(said).ok()?;
    // Some vendors write `22+`.
    let number = |part| said["clientVersion"][part].as_str()?.trim_end_matches('+').parse().ok();
    Some((number("major")?, number("minor")?))
}

fn folder() -> PathBuf {
    workspace::target().join("tools").join(PACKAGE)
}

#[cfg(test)]
mod tests {
    use super::{WANTED, parse};

    #[test]
    fn a_kubectl_tells_whether_it_is_new_enough() {
        let said = |minor: &str| format!(r#"{{"clientVersion":{{"major":"1","minor":"{minor}","gitVersion":"v"}}}}"#);
        assert!(parse(&said("20")).unwrap() < WANTED && parse(&said("22+")).unwrap() >= WANTED);
        assert_eq!(parse("{}"), None);
    }
}
