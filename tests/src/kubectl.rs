//! Runs `kubectl` without a cluster.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context as _, Result};

/// Environment variable with the path of the `kubectl` to use.
const OVERRIDE: &str = "NETPOL_KUBECTL";

/// Runs kubectl. The caller checks the exit status.
///
/// # Errors
/// Returns an error if kubectl cannot be started.
pub fn run<I: AsRef<std::ffi::OsStr>>(arguments: impl IntoIterator<Item = I>) -> Result<Output> {
    let program = program();
    Command::new(&program).args(arguments).output().with_context(|| {
        format!(
            "cannot start {}: run `cargo xtask setup`, or set {OVERRIDE} to a kubectl 1.22 or later",
            program.display()
        )
    })
}

/// Returns the kubectl that [`OVERRIDE`] names, or else the kubectl that `cargo xtask setup` installed, or else the
/// kubectl on the PATH.
fn program() -> PathBuf {
    if let Some(named) = std::env::var_os(OVERRIDE) {
        return named.into();
    }
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), |dir| root.join(dir));
    let installed = target.join("tools/kubectl").join("root/usr/bin/kubectl");
    if installed.is_file() { installed } else { "kubectl".into() }
}
