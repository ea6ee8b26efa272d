//! Finds or installs the BPF toolchain.
//!
//! rustup has no prebuilt `core` for BPF. The first compiler found is used:
//! 1. `NETPOL_BPF_RUSTC`: a rustc that has `core` for BPF
//! 2. rustup's nightly with `rust-src`, which builds `core` from source
//! 3. Debian's `rustc-web`, with a prebuilt `core`
//!
//! All of them need bpf-linker, in a version with an LLVM that can read the compiler's bitcode.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Result, bail};

use crate::run;

/// Target triple of the BPF object.
pub(crate) const TARGET: &str = "bpfel-unknown-none";
/// Environment variable with the path of a compiler to use.
pub(crate) const OVERRIDE: &str = "NETPOL_BPF_RUSTC";
/// Version of bpf-linker. This version uses LLVM 22 of rustup and needs no LLVM on the system.
const LINKER_VERSION: &str = "0.10.3";
/// Path of Debian's compiler.
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
/// The command that installs this compiler.
const DEBIAN_INSTALL: &str = "apt-get install -y --no-install-recommends rustc-web libstd-rust-web-dev-bpf";

/// Flags for rustc.
const FLAGS: &[&str] = &[
    // Debug information becomes BTF. bpftool gets the names of map fields from BTF, and the loader creates maps from
    // it.
    "-Cdebuginfo=2",
    "-Clink-arg=--btf",
    // Without this flag, code that clears a few bytes calls `memset`. This is slower. The verifier also processes the
    // loop in `memset` again for each caller. Verifiers before Linux 6.2 process ten times as many instructions
    // for this loop as later verifiers. `cargo xtask ebpf` fails if a call of `memset` remains.
    "-Clink-arg=--disable-expand-memcpy-in-order",
    // Without this flag, LLVM places the last block of a loop before the first one, to save a jump. But before Linux
    // 6.4, a loop must end with a backward jump.
    "-Clink-arg=--llvm-args=-disable-block-placement",
];

/// A compiler for BPF.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Compiler {
    /// A rustc with a prebuilt `core`.
    Prebuilt(PathBuf),
    /// rustup's nightly with `rust-src`.
    Nightly,
}

impl Compiler {
    /// Returns a cargo command that uses this compiler.
    pub(crate) fn cargo(&self) -> Command {
        let mut cargo = match self {
            Self::Prebuilt(rustc) => {
                let mut cargo = run::cargo::<&str>([]);
                // Inline assembly for BPF is unstable in all releases so far.
                cargo.env("RUSTC", rustc).env("RUSTC_BOOTSTRAP", "1");
                cargo
            }
            Self::Nightly => {
                let mut cargo = run::command("rustup", ["run", "nightly", "cargo"]);
                cargo.env_remove("RUSTC").env_remove("RUSTUP_TOOLCHAIN").env_remove("CARGO");
                cargo.args(["-Z", "build-std=core"]);
                cargo
            }
        };
        cargo.env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\x1f"));
        cargo.env_remove("RUSTC_WRAPPER").env_remove("RUSTC_WORKSPACE_WRAPPER");
        cargo
    }
}

/// Returns the compiler for BPF objects on this machine.
pub(crate) fn compiler() -> Result<Compiler> {
    if let Some(rustc) = std::env::var_os(OVERRIDE) {
        let rustc = PathBuf::from(rustc);
        if !has_core(&rustc) {
            bail!(
                "{OVERRIDE} is {}, which has no `core` for {TARGET}: set it to another rustc, or unset it",
                rustc.display()
            );
        }
        return Ok(Compiler::Prebuilt(rustc));
    }
    if nightly_has_source() {
        return Ok(Compiler::Nightly);
    }
    let debian = Path::new(DEBIAN_RUSTC);
    if has_core(debian) {
        return Ok(Compiler::Prebuilt(debian.to_owned()));
    }
    bail!("{}", advice("no Rust compiler for BPF found"))
}

/// Installs the compiler and the linker for BPF objects, if they are missing.
pub(crate) fn setup() -> Result<()> {
    if std::env::var_os(OVERRIDE).is_none() && compiler().is_err() {
        install_compiler()?;
    }
    compiler()?;
    if run::find("bpf-linker").is_none() {
        install_linker()?;
    }
    Ok(())
}

fn install_compiler() -> Result<()> {
    if !run::is_root() || !Path::new("/etc/debian_version").exists() || run::find("apt-get").is_none() {
        bail!("{}", advice("no Rust compiler for BPF found, and it can be installed only as root on Debian"));
    }
    // The lists are always updated: old lists can lack one of the packages, or have versions that the mirror no longer
    // has.
    run::step("updating the package lists", &mut run::command("apt-get", ["update"]))?;
    let mut words = DEBIAN_INSTALL.split(' ');
    let mut install = run::command(words.next().unwrap_or_default(), words);
    install.env("DEBIAN_FRONTEND", "noninteractive");
    run::step("installing Debian's Rust for BPF (about a minute)", &mut install)
}

fn install_linker() -> Result<()> {
    let mut install = run::cargo(["install", "bpf-linker", "--version", LINKER_VERSION, "--locked"]);
    install.current_dir("/").env_remove("RUSTC").env_remove("CARGO_ENCODED_RUSTFLAGS");
    run::step("building bpf-linker (one to two minutes)", &mut install)?;
    if run::find("bpf-linker").is_none() {
        bail!("bpf-linker was installed, but is not on the PATH: add cargo's bin folder (~/.cargo/bin) to it");
    }
    Ok(())
}

/// Reports whether this rustc has a prebuilt `core` for [`TARGET`].
fn has_core(rustc: &Path) -> bool {
    let Ok(output) =
        Command::new(rustc).args(["--print", "target-libdir", "--target", TARGET]).stderr(Stdio::null()).output()
    else {
        return false;
    };
    let folder = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    let Ok(files) = folder.read_dir() else { return false };
    files.flatten().any(|file| file.file_name().to_string_lossy().starts_with("libcore-"))
}

/// Reports whether rustup's nightly has the source of `core`.
fn nightly_has_source() -> bool {
    let Ok(output) =
        Command::new("rustup").args(["run", "nightly", "rustc", "--print", "sysroot"]).stderr(Stdio::null()).output()
    else {
        return false;
    };
    let sysroot = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    output.status.success() && sysroot.join("lib/rustlib/src/rust/library/core/Cargo.toml").exists()
}

/// Returns an error message: the problem, and how to install a compiler.
fn advice(problem: &str) -> String {
    format!(
        "{problem}. Run one of\n  on Debian, as root:  {DEBIAN_INSTALL}\n  with rustup:         rustup toolchain \
         install nightly --component rust-src\nor set {OVERRIDE} to a compiler; then run cargo xtask setup"
    )
}
