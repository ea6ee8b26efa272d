//! `build`: builds the binaries for users, see [`build_all`]. `man`: writes the manual pages of the CLI.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{ebpf, run, workspace};

/// Target triple of the CNI plugin. The plugin is linked statically, because the agent copies it to nodes, which may
/// have other libraries than the image.
pub(crate) const STATIC_TARGET: &str = "x86_64-unknown-linux-musl";

/// Builds everything for users: what [`build`] builds, and the CNI plugin.
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
    install_static_target()?;
    run::step(
        "building target/release/netpol-cni",
        &mut run::cargo(["build", "--release", "--package", "netpol-cni", "--target", STATIC_TARGET]),
    )?;
    let (built, copy) = (
        workspace::target().join(STATIC_TARGET).join("release/netpol-cni"),
        workspace::target().join("release/netpol-cni"),
    );
    fs::copy(&built, &copy).with_context(|| format!("copying {} to {}", built.display(), copy.display()))?;
    Ok(())
}

/// Installs the standard library for [`STATIC_TARGET`], if it is missing.
fn install_static_target() -> Result<()> {
    if static_target_directory().is_ok() {
        return Ok(());
    }
    if run::find("rustup").is_none() {
        bail!(
            "rustc has no standard library for {STATIC_TARGET}, which netpol-cni needs: install rustup, or your distribution's package of this library"
        );
    }
    let mut install = run::command("rustup", ["target", "add", STATIC_TARGET]);
    run::step("installing the standard library for static binaries", &mut install)
}

/// Returns the directory of rustc's standard library for [`STATIC_TARGET`]. Returns an error if the library is missing.
pub(crate) fn static_target_directory() -> Result<String, String> {
    let output = Command::new("rustc").args(["--print", "target-libdir", "--target", STATIC_TARGET]).output();
    let output = output.map_err(|error| error.to_string())?;
    let directory = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if fs::read_dir(&directory).is_ok() { Ok(directory) } else { Err("not installed".to_owned()) }
}
