//! Checks dependencies between crates and modules.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};

use super::sources;
use crate::run;

/// Items of the standard library that do I/O or read the clock.
const IMPURE: [&str; 9] = [
    "std::fs",
    "std::process",
    "std::env",
    "std::thread",
    "std::os",
    "TcpStream",
    "UdpSocket",
    "Instant::now",
    "SystemTime",
];

/// Prefixes of the names of crates that do I/O.
const IMPURE_CRATES: [&str; 9] = ["aya", "tokio", "nix", "rustix", "libc", "mio", "socket2", "netlink", "inotify"];

/// Checks that crates have no forbidden dependencies, and that netpol-policy does no I/O.
pub(super) fn pure_crates() -> Result<Vec<String>> {
    let mut findings = Vec::new();
    for package in ["netpol-policy", "netpol-common"] {
        for name in dependencies(package)? {
            if IMPURE_CRATES.iter().any(|impure| name.starts_with(impure)) {
                findings
                    .push(format!("{package} depends on {name}: see `cargo tree -p {package} -e normal -i {name}`"));
            }
        }
    }
    for name in dependencies("netpol-cni")?.iter().filter(|name| ["tokio", "hyper"].contains(&name.as_str())) {
        findings.push(format!(
            "netpol-cni depends on {name}: netpol-cni must be small, because it is started for each pod"
        ));
    }
    for package in ["netpol-api", "netpol-cli", "netpol-cni", "netpol-source", "netpol-node", "netpol-nri"] {
        for name in dependencies(package)?.iter().filter(|name| name.starts_with("aya") || *name == "netpol-agent") {
            findings.push(format!("{package} depends on {name}: only the agent uses the data plane"));
        }
    }
    let allowed_in_common =
        ["bytemuck", "bytemuck_derive", "netpol-common", "proc-macro2", "quote", "syn", "unicode-ident"];
    for name in dependencies("netpol-common")?.iter().filter(|name| !allowed_in_common.contains(&name.as_str())) {
        findings.push(format!("netpol-common depends on {name}: the eBPF programs contain netpol-common"));
    }
    for (path, text) in sources::rust()? {
        if !path.starts_with("netpol-policy/src") {
            continue;
        }
        for (number, line) in (1..).zip(text.lines()) {
            for word in IMPURE.iter().filter(|word| code(line).contains(**word)) {
                findings.push(format!("{}:{number}: {word}: netpol-policy does no I/O", path.display()));
            }
        }
    }
    Ok(findings)
}

/// Checks that modules of netpol-ebpf use only modules of lower layers.
pub(super) fn ebpf_layers() -> Result<Vec<String>> {
    let sources = sources::rust()?;
    let netpol_ebpf =
        || sources.iter().filter_map(|(path, text)| Some((path.strip_prefix("netpol-ebpf/src").ok()?, text)));
    let (_, library) =
        netpol_ebpf().find(|(path, _)| *path == Path::new("lib.rs")).context("netpol-ebpf has no lib.rs")?;
    let layers = layers(library);
    let mut findings = Vec::new();
    for (path, text) in netpol_ebpf() {
        let module = path.iter().next().and_then(|name| name.to_str()).unwrap_or_default().trim_end_matches(".rs");
        for (number, line) in (1..).zip(text.lines()) {
            for used in not_in_lower_layers(&layers, module, line) {
                let shown = path.display();
                findings.push(format!(
                    "netpol-ebpf/src/{shown}:{number}: `crate::{used}` is not in a lower layer than {module}: see lib.rs"
                ));
            }
        }
    }
    Ok(findings)
}

/// Returns the modules that a line of `module` uses, but that are not in a lower layer than `module`.
fn not_in_lower_layers<'a>(layers: &BTreeMap<&str, usize>, module: &str, line: &'a str) -> Vec<&'a str> {
    let paths = code(line).split("crate::").skip(1);
    let used = paths.map(|path| path.split(|char: char| !char.is_alphanumeric() && char != '_').next().unwrap_or(path));
    let own_layer = layers.get(module);
    used.filter(|used| {
        *used != module && layers.get(used).is_none_or(|layer| own_layer.is_none_or(|own_layer| layer >= own_layer))
    })
    .collect()
}

/// Returns the number of each module's layer. lib.rs lists the modules from the lowest layer to the highest, and blank
/// lines separate the layers.
fn layers(library: &str) -> BTreeMap<&str, usize> {
    let mut layers = BTreeMap::new();
    for (layer, modules) in library.split("\n\n").enumerate() {
        let names = modules.lines().filter_map(|line| line.trim_start_matches("pub ").strip_prefix("mod "));
        layers.extend(names.map(|name| (name.trim_end_matches(';'), layer)));
    }
    layers
}

/// Returns the names of a crate and of all its dependencies, without development dependencies.
fn dependencies(package: &str) -> Result<Vec<String>> {
    let words = ["tree", "--package", package, "--edges", "normal", "--prefix", "none", "--format", "{p}"];
    let tree = run::output("listing dependencies", &mut run::cargo(words))?;
    let mut names: Vec<_> = tree.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect();
    names.sort_unstable();
    names.dedup();
    Ok(names)
}

/// Returns a line without its comment.
fn code(line: &str) -> &str {
    line.split("//").next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_use_lower_layers_only() {
        let library = "//! Docs.\n\nmod low;\n\nmod left;\nmod right;\n\n#[cfg(test)]\npub mod top;\n";
        let layers = layers(library);
        assert_eq!(layers, BTreeMap::from([("low", 1), ("left", 2), ("right", 2), ("top", 3)]));
        let none: [&str; 0] = [];
        assert_eq!(not_in_lower_layers(&layers, "right", "use crate::low::Low;"), none);
        assert_eq!(not_in_lower_layers(&layers, "right", "pub(in crate::right) fn up() // See crate::top."), none);
        assert_eq!(not_in_lower_layers(&layers, "right", "use crate::left; use crate::top::up;"), ["left", "top"]);
        // Each module needs its own `use`: a list in braces is reported as a module with an empty name.
        assert_eq!(not_in_lower_layers(&layers, "right", "use crate::{low, Low};"), [""]);
    }
}
