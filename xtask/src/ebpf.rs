//! Builds and checks the BPF objects: ELF files with the eBPF programs.

mod calls;
mod lines;
mod stack;

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::{run, toolchain, workspace};

/// The cargo binary target that becomes the object in the agent.
const SHIPPED: &str = "netpol-ebpf";
/// The cargo binary target that becomes the object for tests and benchmarks.
const TEST: &str = "netpol-ebpf-test";

/// Builds the object that the agent embeds, and returns its path.
pub(crate) fn build() -> Result<PathBuf> {
    compile(&["--bin", SHIPPED])?;
    install(SHIPPED, workspace::bpf_object())
}

/// Builds the object that the agent embeds, and the one for tests and benchmarks, which has more programs. Returns the
/// paths of both objects.
pub(crate) fn build_with_tests() -> Result<[PathBuf; 2]> {
    compile(&["--bin", SHIPPED, "--bin", TEST])?;
    let test = workspace::bpf_object().with_file_name("netpol-test.o");
    Ok([install(SHIPPED, workspace::bpf_object())?, install(TEST, test)?])
}

/// Builds a variant of the agent's object that logs with `aya-log`, and returns its path. libbpf and bpftool reject
/// this object, because the ring buffer of `aya-log` has no BTF.
pub(crate) fn build_with_log() -> Result<PathBuf> {
    compile(&["--bin", SHIPPED, "--features", "log"])?;
    install(SHIPPED, workspace::bpf_object().with_file_name("netpol-log.o"))
}

fn compile(arguments: &[&str]) -> Result<()> {
    toolchain::setup()?;
    let mut cargo = toolchain::compiler()?.cargo();
    cargo.args(["build", "--package", "netpol-ebpf", "--profile", "bpf"]).args(arguments);
    cargo.args(["--target", toolchain::TARGET, "--target-dir"]).arg(target_directory());
    run::step("building the BPF object", &mut cargo)
}

/// Corrects the line info of the object that was built as `binary`, checks the object, and writes it to the file
/// `path`. Writes the file only if its content changes, because cargo rebuilds the agent after each write.
fn install(binary: &str, path: PathBuf) -> Result<PathBuf> {
    let built = target_directory().join(toolchain::TARGET).join("bpf").join(binary);
    let mut new = std::fs::read(&built).with_context(|| format!("reading the new object {}", built.display()))?;
    lines::keep_one_for_each_instruction(&mut new)?;
    calls::check(&new)?;
    stack::check(&new)?;
    if std::fs::read(&path).is_ok_and(|old| old == new) {
        return Ok(path);
    }
    let folder = path.parent().context("the object's path has no folder")?;
    std::fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    // Renaming is atomic: a concurrent reader gets the old object or the new one.
    let temporary = path.with_extension("o.new");
    std::fs::write(&temporary, &new).with_context(|| format!("writing {}", temporary.display()))?;
    std::fs::rename(&temporary, &path).with_context(|| format!("replacing {}", path.display()))?;
    Ok(path)
}

/// Returns cargo's target directory for the BPF objects. It is not the directory of the other crates, because BPF
/// objects can need another compiler. In one directory, cargo would rebuild everything after each switch of the
/// compiler.
fn target_directory() -> PathBuf {
    workspace::target().join("bpf-build")
}
