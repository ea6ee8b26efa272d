//! The BPF toolchain: found, or installed.
//!
//! BPF is a target without a prebuilt `core` in rustup. In this order:
//! 1. `NETPOL_BPF_RUSTC`: a rustc that has `core` for BPF;
//! 2. rustup's nightly with `rust-src`, which builds `core` along;
//! 3. Debian's `rustc-web`, which has it prebuilt.
//!
//! All need bpf-linker, of a version whose LLVM reads what the compiler writes.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Result, bail};

use crate::run;

/// What the object is built for.
pub(crate) const TARGET: &str = "bpfel-unknown-none";
/// Names a compiler to use.
pub(crate) const OVERRIDE: &str = "NETPOL_BPF_RUSTC";
/// Uses rustup's own LLVM 22, so that it needs no LLVM of the system.
const LINKER_VERSION: &str = "0.10.3";
/// Debian's compiler.
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_LINE: &str = "apt-get install -y --no-install-recommends rustc-web libstd-rust-web-dev-bpf";

const FLAGS: &[&str] = &[
    // Debug information becomes BTF, which names maps' fields for bpftool and lets the loader make the maps.
    "-Cdebuginfo=2",
    "-Clink-arg=--btf",
    // Else clearing a few bytes is a call of `memset`: slower, and its loop is walked for each caller by the verifier, which
    // before 6.2 then looks at ten times as much. `ebpf` fails where there is such a call all the same.
    "-Clink-arg=--disable-expand-memcpy-in-order",
    // Puts the end of a loop before its start to save a jump. Before 6.4 a loop must go back with a jump.
    "-Clink-arg=--llvm-args=-disable-block-placement",
];

/// A way to compile for BPF.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Compiler {
    /// A rustc with a prebuilt `core`.
    Prebuilt(PathBuf),
    /// rustup's nightly, with `rust-src`.
    Nightly,
}

impl Compiler {
    /// A cargo that compiles so.
    pub(crate) fn cargo(&self) -> Command {
        let mut cargo = match self {
            Self::Prebuilt(rustc) => {
                let mut cargo = run::cargo::<&str>([]);
                // BPF's inline assembly is unstable in every release so far.
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

/// The compiler that builds BPF objects here.
pub(crate) fn compiler() -> Result<Compiler> {
    if let Some(rustc) = std::env::var_os(OVERRIDE) {
        let rustc = PathBuf::from(rustc);
        if !has_core(&rustc) {
            bail!(
                "{OVERRIDE} names {}, which has no `core` for {TARGET}: name another rustc, or unset it",
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

/// Makes sure that BPF objects can be built; does nothing when they can.
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
        bail!("{}", advice("no Rust compiler for BPF found, and not root on Debian to install one"));
    }
    if Command::new("apt-cache")
        .args(["show", "rustc-web"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| !status.success())
    {
        run::step("updating the package lists", &mut run::command("apt-get", ["update"]))?;
    }
    let mut words = DEBIAN_LINE.split(' ');
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

/// Whether this rustc has `core` for the target.
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

/// Whether rustup's nightly has the library's source.
fn nightly_has_source() -> bool {
    let Ok(output) =
        Command::new("rustup").args(["run", "nightly", "rustc", "--print", "sysroot"]).stderr(Stdio::null()).output()
    else {
        return false;
    };
    let sysroot = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    output.status.success() && sysroot.join("lib/rustlib/src/rust/library/core/Cargo.toml").exists()
}

fn advice(problem: &str) -> String {
    format!(
        "{problem}. Run one of\n  on Debian, as root:  {DEBIAN_LINE}\n  with rustup:         rustup toolchain install \
         nightly --component rust-src\nor name a compiler in {OVERRIDE}; then: cargo xtask setup"
    )
}
