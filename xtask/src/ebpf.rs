//! Builds and checks the BPF object.

mod calls;
mod lines;
mod stack;

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::{run, toolchain, workspace};

/// Builds netpol-ebpf for the kernel and returns the object's path. Writes the object only if it changed: the agent
/// embeds it and is rebuilt after each write.
pub(crate) fn build() -> Result<PathBuf> {
    build_as(workspace::bpf_object(), &[])
}

/// Builds the object with `aya-log`, in another file. libbpf and bpftool reject this object, because its ring buffer
/// has no BTF.
pub(crate) fn build_with_log() -> Result<PathBuf> {
    build_as(workspace::bpf_object().with_file_name("netpol-log.o"), &["--features", "log"])
}

fn build_as(object: PathBuf, features: &[&str]) -> Result<PathBuf> {
    toolchain::setup()?;
    let mut cargo = toolchain::compiler()?.cargo();
    cargo.args(["build", "--package", "netpol-ebpf", "--bin", "netpol-ebpf", "--profile", "bpf"]);
    cargo.args(features);
    cargo.args(["--target", toolchain::TARGET, "--target-dir"]).arg(target_directory());
    run::step("building the BPF object", &mut cargo)?;
    let built = target_directory().join(toolchain::TARGET).join("bpf/netpol-ebpf");
    let mut new = std::fs::read(&built).with_context(|| format!("reading the new object {}", built.display()))?;
    lines::keep_one_for_each_instruction(&mut new)?;
    calls::check(&new)?;
    stack::check(&new)?;
    if std::fs::read(&object).is_ok_and(|old| old == new) {
        return Ok(object);
    }
    let folder = object.parent().context("the object's path has no folder")?;
    std::fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    // Renaming is atomic: a concurrent reader gets the old object or the new one.
    let temporary = object.with_extension("o.new");
    std::fs::write(&temporary, &new).with_context(|| format!("writing {}", temporary.display()))?;
    std::fs::rename(&temporary, &object).with_context(|| format!("replacing {}", object.display()))?;
    Ok(object)
}

/// Returns a separate target directory: with another compiler, cargo would rebuild everything each time.
fn target_directory() -> PathBuf {
    workspace::target().join("bpf-build")
}
