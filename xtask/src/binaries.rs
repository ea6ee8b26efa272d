//! `build`: the binaries for users.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{ebpf, run, workspace};

/// Target triple of the CNI plugin. It is static, because it runs with the libraries of the host.
pub(crate) const STATIC: &str = "x86_64-unknown-linux-musl";

/// Builds everything for users: see [`build`], and the CNI plugin.
pub(crate) fn build_all() -> Result<()> {
    build()?;
    build_plugin()
}

/// Builds the BPF object, then the agent with the object embedded, and the CLI.
pub(crate) fn build() -> Result<()> {
    ebpf::build()?;
    run::step(
        "building target/release/netpol and target/release/netpol-agent",
        &mut run::cargo(["build", "--release", "--package", "netpol-agent", "--package", "netpol-cli"]),
    )
}

/// Writes the manual pages of the CLI to target/man.
pub(crate) fn manual() -> Result<()> {
    let directory = workspace::target().join("man");
    let mut write = run::cargo(["run", "--quiet", "--package", "netpol-cli", "--", "man"]);
    run::step("writing manual pages to target/man", write.arg(&directory))
}

fn build_plugin() -> Result<()> {
    setup()?;
    run::step(
        "building target/release/netpol-cni",
        &mut run::cargo(["build", "--release", "--package", "netpol-cni", "--target", STATIC]),
    )?;
    let (built, copy) =
        (workspace::target().join(STATIC).join("release/netpol-cni"), workspace::target().join("release/netpol-cni"));
    fs::copy(&built, &copy).with_context(|| format!("copying {} to {}", built.display(), copy.display()))?;
    Ok(())
}

/// Installs the standard library for [`STATIC`], if it is missing.
fn setup() -> Result<()> {
    if has_static_target().is_ok() {
        return Ok(());
    }
    if run::find("rustup").is_none() {
        bail!(
            "rustc has no standard library for {STATIC}, which netpol-cni needs: install rustup, or the package of your system"
        );
    }
    let mut install = run::command("rustup", ["target", "add", STATIC]);
    run::step("installing the standard library for static binaries", &mut install)
}

/// Reports whether rustc has a standard library for [`STATIC`].
pub(crate) fn has_static_target() -> Result<String, String> {
    let output = Command::new("rustc").args(["--print", "target-libdir", "--target", STATIC]).output();
    let output = output.map_err(|error| error.to_string())?;
    let directory = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if fs::read_dir(&directory).is_ok() { Ok(directory) } else { Err("not installed".to_owned()) }
}
