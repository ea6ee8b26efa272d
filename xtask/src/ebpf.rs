//! Builds the BPF object.

use std::path::PathBuf;

use anyhow::Result;

use crate::{run, toolchain, workspace};

/// Builds netpol-ebpf for the kernel and returns the object's path.
pub(crate) fn build() -> Result<PathBuf> {
    toolchain::setup()?;
    let mut cargo = run::cargo([
        "build",
        "--release",
        "--package",
        "netpol-ebpf",
        "--bin",
        "netpol-ebpf",
        "--target",
        "bpfel-unknown-none",
        "--target-dir",
    ]);
    cargo
        .arg(workspace::target().join("bpf-build"))
        .env("RUSTC", "/usr/bin/rustc")
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", "-Cdebuginfo=2\x1f-Clink-arg=--btf");
    run::step("building the BPF object", &mut cargo)?;
    let object = workspace::bpf_object();
    std::fs::create_dir_all(object.parent().expect("in a folder"))?;
    std::fs::copy(workspace::target().join("bpf-build/bpfel-unknown-none/release/netpol-ebpf"), &object)?;
    Ok(object)
}
