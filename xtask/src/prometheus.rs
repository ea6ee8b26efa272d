//! Finds or downloads Prometheus and promtool. The tests of deploy/monitoring/ use them.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::{debian, run, workspace};

/// Environment variable with the directory of both programs.
const OVERRIDE: &str = "NETPOL_PROMETHEUS";
/// Debian suite with Prometheus 2.42. In the next suite, the package has no promtool.
const SUITE: &str = "bookworm";
const PACKAGE: &str = "prometheus";
const PROGRAMS: [&str; 2] = ["prometheus", "promtool"];

/// Downloads and unpacks Debian's package if the programs are not found. The package is not installed, because that
/// would start a Prometheus server on this machine.
pub(crate) fn setup() -> Result<()> {
    if find().is_ok() {
        return Ok(());
    }
    // If the environment variable is set, return the error instead of downloading other programs.
    if std::env::var_os(OVERRIDE).is_some() {
        find()?;
    }
    run::announce(&format!("downloading Debian's Prometheus ({SUITE}) to {}", folder().display()));
    debian::fetch(SUITE, &folder(), |_| Ok(PACKAGE.into()))
        .context("cannot download Prometheus: put prometheus and promtool on the PATH")?;
    find().map(drop)
}

/// Returns the path of the Prometheus that the tests use, or the reason why the programs are not found.
pub(crate) fn describe() -> Result<String, String> {
    find().map(|path| path.display().to_string()).map_err(|error| error.to_string())
}

/// Finds both programs: in the directory that the environment variable names, or else the downloaded ones, or else
/// those on the PATH. Returns the path of the first program. tests/src/prometheus.rs finds programs in the same way.
fn find() -> Result<PathBuf> {
    let programs = PROGRAMS.map(|name| {
        let in_folder = |folder: &Path| Some(folder.join(name)).filter(|path| path.is_file());
        match std::env::var_os(OVERRIDE) {
            Some(folder) => in_folder(Path::new(&folder)),
            None => in_folder(&folder().join("root/usr/bin")).or_else(|| run::find(name)),
        }
    });
    ensure!(programs.iter().all(Option::is_some), "{} not found", PROGRAMS.join(" and "));
    programs.into_iter().flatten().next().context("not found")
}

/// Returns the directory of downloaded programs.
fn folder() -> PathBuf {
    workspace::target().join("tools").join(PACKAGE)
}
