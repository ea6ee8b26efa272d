//! Removes everything netpol put into the kernel, of every layout version, and proves it.

use std::fs;
use std::path::{Path, PathBuf};

use netpol_common::Direction;

use super::attach::{detach, program_name};
use super::pins::{Pins, names, pin_error};
use super::{KernelError, Lock, versions};

/// What was there and what still is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// What was removed, one line each.
    pub removed: Vec<String>,
    /// What remains, one line each; empty when all is well.
    pub remains: Vec<String>,
}

/// Removes links, filters, qdiscs, programs and maps below a pin path. Nothing there is fine.
///
/// # Errors
/// Where an agent still runs on it.
pub fn uninstall(pin_path: &Path) -> Result<Removed, KernelError> {
    let mut report = Removed::default();
    if !pin_path.exists() {
        return Ok(report);
    }
    let lock = Lock::take(pin_path)?;
    for root in versions(pin_path) {
        let pins = Pins { root: root.clone() };
        let mut interfaces = pins.linked();
        interfaces.extend(pins.filtered());
        interfaces.sort_unstable();
        interfaces.dedup();
        for ifindex in interfaces {
            match detach(&pins, ifindex) {
                Ok(removed) => report.removed.extend(removed),
                Err(error) => report.remains.push(error.to_string()),
            }
        }
        remove_tree(&root, &mut report);
    }
    drop(lock);
    if let Err(error) = fs::remove_dir(pin_path) {
        report.remains.push(pin_error("remove", pin_path, &error).to_string());
    }
    report.remains.extend(remaining_pins(pin_path));
    report.remains.extend(remaining_programs());
    Ok(report)
}

/// Unpins every file below a directory, and removes the directories.
fn remove_tree(directory: &Path, report: &mut Removed) {
    for name in names(directory) {
        let path = directory.join(name);
        if path.is_dir() {
            remove_tree(&path, report);
        } else if let Err(error) = fs::remove_file(&path) {
            report.remains.push(pin_error("remove", &path, &error).to_string());
        } else {
            report.removed.push(format!("pin {}", path.display()));
        }
    }
    if let Err(error) = fs::remove_dir(directory) {
        report.remains.push(pin_error("remove", directory, &error).to_string());
    }
}

fn remaining_pins(path: &Path) -> Vec<String> {
    let below: Vec<PathBuf> = names(path).into_iter().map(|name| path.join(name)).collect();
    below.iter().map(|path| format!("pin {}", path.display())).collect()
}

/// Interfaces of this namespace that still run a program of netpol's. Agents on other pin paths have theirs, so that only
/// programs that no pin of theirs explains would be wrong; this tells all, by interface.
fn remaining_programs() -> Vec<String> {
    use aya::programs::{SchedClassifier, TcAttachType};

    let ours = |name: &str| {
        Direction::BOTH.iter().any(|direction| program_name(*direction).starts_with(name) && !name.is_empty())
    };
    let mut remaining = Vec::new();
    for interface in nix::net::if_::if_nameindex().iter().flatten() {
        let name = interface.name().to_string_lossy();
        for hook in [TcAttachType::Ingress, TcAttachType::Egress] {
            // Before Linux 6.6 there is nothing to ask.
            let Ok((_, programs)) = SchedClassifier::query_tcx(&name, hook) else { continue };
            for program in programs.iter().filter(|program| program.name_as_str().is_some_and(ours)) {
                remaining.push(format!(
                    "program {} (id {}) on {name}",
                    program.name_as_str().unwrap_or("?"),
                    program.id()
                ));
            }
        }
    }
    remaining
}
