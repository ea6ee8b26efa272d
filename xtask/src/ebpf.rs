//! Builds and checks the BPF object.

mod calls;
mod lines;
mod stack;

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::{run, toolchain, workspace};

/// The cargo binary of the object that the agent embeds.
const SHIPPED: &str = "netpol-ebpf";
/// The cargo binary of the object for tests and benchmarks.
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

/// Builds an object that logs with `aya-log`, in another file. libbpf and bpftool reject this object, because the ring
/// buffer of `aya-log` has no BTF.
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
/// `object`. Writes the file only if the content changed, because the agent embeds it and is rebuilt after each write.
fn install(binary: &str, object: PathBuf) -> Result<PathBuf> {
    let built = target_directory().join(toolchain::TARGET).join("bpf").join(binary);
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

/// Returns the target directory of the BPF object. It is separate, because the BPF object can have another compiler: in
/// a shared directory, cargo would rebuild everything after each switch of the compiler.
fn target_directory() -> PathBuf {
    workspace::target().join("bpf-build")
}
