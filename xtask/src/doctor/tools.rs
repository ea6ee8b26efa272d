//! Checks tools and build products.

use std::process::Command;

use super::{Absence, Finding, optional, required};
use crate::binaries::static_target_directory;
use crate::setup::{KERNEL_TOOLS, TOOLS, Tool};
use crate::toolchain::{self, Compiler};
use crate::{kubectl, prometheus, run, workspace};

const GROUP: &str = "tools";

pub(super) fn check() -> Vec<Finding> {
    let mut findings = vec![
        finding("cargo", "everything", version("cargo"), required("install rustup: https://rustup.rs")),
        finding("rustc", "everything", rustc(), required("rustup toolchain install stable")),
        finding(
            "C compiler",
            "linking, and building bpf-linker",
            version("cc"),
            required("apt-get install -y gcc libc6-dev"),
        ),
        finding("rustfmt", "tidy", version("rustfmt"), optional("rustup component add rustfmt")),
        finding("clippy", "tidy", version("cargo-clippy"), optional("rustup component add clippy")),
        finding("git", "tidy", version("git"), optional("apt-get install -y git")),
        finding("Rust compiler for BPF", "ebpf, build, test", bpf_compiler(), required("cargo xtask setup")),
        finding(
            "standard library for static binaries",
            "netpol-cni",
            static_target_directory(),
            required("cargo xtask setup"),
        ),
        finding("bpf-linker", "ebpf, build, test", version("bpf-linker"), required("cargo xtask setup")),
        finding("BPF object", "embedded in the agent", bpf_object(), optional("cargo xtask build")),
    ];
    findings.push(finding("kubectl", "tests of deploy/", kubectl::describe(), required("cargo xtask setup")));
    let found = prometheus::describe();
    findings.push(finding("prometheus, promtool", "tests of deploy/monitoring/", found, required("cargo xtask setup")));
    findings.extend(TOOLS.iter().map(|tool| program(tool, required)));
    findings.extend(KERNEL_TOOLS.iter().map(|tool| program(tool, optional)));
    findings
}

fn finding(name: &str, used_by: &'static str, found: Result<String, String>, absence: Absence) -> Finding {
    Finding::new(GROUP, name, used_by, found, absence)
}

/// Checks that a tool is on the PATH. `absence`: [`required`] or [`optional`].
fn program(tool: &Tool, absence: impl Fn(String) -> Absence) -> Finding {
    let install = format!("apt-get install -y --no-install-recommends {}", tool.package);
    let found = run::find(tool.program).map(|path| path.display().to_string()).ok_or_else(|| "not on the PATH".into());
    finding(tool.program, tool.used_by, found, absence(install))
}

/// Returns the first line that a program prints with `--version`.
fn version(program: &str) -> Result<String, String> {
    let path = run::find(program).ok_or("not on the PATH")?;
    let output = Command::new(path).arg("--version").output().map_err(|error| error.to_string())?;
    let stdout = String::from_utf8_lossy(&output.stdout);
    match stdout.lines().next() {
        Some(line) if output.status.success() => Ok(line.to_owned()),
        _ => Err(format!("{program} --version: {}", output.status)),
    }
}

/// Checks that rustc has at least the version in Cargo.toml.
fn rustc() -> Result<String, String> {
    let line = version("rustc")?;
    let found = line.split(' ').nth(1).and_then(major_and_minor).ok_or_else(|| format!("cannot parse {line:?}"))?;
    let manifest = std::fs::read_to_string(workspace::root().join("Cargo.toml")).map_err(|error| error.to_string())?;
    let minimum = manifest.lines().find_map(|line| line.strip_prefix("rust-version = "));
    let minimum =
        minimum.and_then(|text| major_and_minor(text.trim_matches('"'))).ok_or("Cargo.toml has no rust-version")?;
    if found < minimum { Err(format!("{line}, but {}.{} is required", minimum.0, minimum.1)) } else { Ok(line) }
}

/// Returns the major and minor number of a version.
fn major_and_minor(version: &str) -> Option<(u32, u32)> {
    let mut parts = version.split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// Describes the compiler that builds the eBPF programs.
fn bpf_compiler() -> Result<String, String> {
    match toolchain::compiler() {
        Ok(Compiler::Prebuilt(rustc)) => Ok(format!("{}, with core for {}", rustc.display(), toolchain::TARGET)),
        Ok(Compiler::Nightly) => Ok("rustup's nightly with rust-src".into()),
        Err(error) => Err(error.to_string().lines().next().unwrap_or_default().to_owned()),
    }
}

/// Describes the object file of the eBPF programs.
fn bpf_object() -> Result<String, String> {
    let path = workspace::bpf_object();
    let size = std::fs::metadata(&path).map_err(|_| "not built yet")?.len();
    Ok(format!("{}, {} KiB", path.display(), size / 1024))
}

#[cfg(test)]
mod tests {
    use super::major_and_minor;

    #[test]
    fn versions_compare_by_number() {
        assert!(major_and_minor("1.100.0") > major_and_minor("1.95"));
        assert_eq!(major_and_minor("1.95.0-nightly"), Some((1, 95)));
        assert_eq!(major_and_minor("one"), None);
    }
}
