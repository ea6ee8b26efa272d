//! The `kubectl` that tests run, without a cluster.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context as _, Result};

/// The environment variable that names a `kubectl` to use.
const OVERRIDE: &str = "NETPOL_KUBECTL";

/// Runs it. Its exit status is the caller's to check.
///
/// # Errors
/// Where it cannot be started.
pub fn run<I: AsRef<std::ffi::OsStr>>(arguments: impl IntoIterator<Item = I>) -> Result<Output> {
    let program = program();
    Command::new(&program).args(arguments).output().with_context(|| {
        format!(
            "cannot start {}: run `cargo xtask setup`, or name a kubectl of 1.22 or later in {OVERRIDE}",
            program.display()
        )
    })
}

/// As named, else as `cargo xtask setup` installed it, else from the PATH.
fn program() -> PathBuf {
    if let Some(named) = std::env::var_os(OVERRIDE) {
        return named.into();
    }
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), |dir| root.join(dir));
    let own = target.join("tools/kubectl").join("root/usr/bin/kubectl");
    if own.is_file() { own } else { "kubectl".into() }
}
