//! Removes what agents with another layout version have pinned: programs, links and maps. The layout version is the
//! version of the data structures in BPF maps. Each version has its own directory of pins. On each interface, the
//! programs of these agents stay in force until this agent's programs are attached.

use std::fs;

use netpol_common::IfIndex;

use super::attach::{detach, detach_tcx, name_of};
use super::pins::Pins;
use super::uninstall::{UninstallReport, remove_tree};
use super::versions;
use crate::AttachError;

/// Returns the pins of other layout versions.
fn others(pins: &Pins) -> Vec<Pins> {
    let all = pins.root.parent().map(versions).unwrap_or_default();
    all.into_iter().filter(|root| *root != pins.root).map(Pins::at).collect()
}

/// Takes over a clsact qdisc that an agent with another layout version created. When the current agent then attaches
/// its filters, each filter replaces the old one in one step.
pub(super) fn adopt_qdisc(pins: &Pins, ifindex: IfIndex) {
    if others(pins).iter().any(|other| other.filter_dir(ifindex).join("qdisc").exists()) {
        // This directory marks the qdisc as created by netpol. If the directory cannot be created, the qdisc is treated
        // as another process's, and is not removed.
        let _ = fs::create_dir_all(pins.filter_dir(ifindex).join("qdisc"));
    }
}

/// Detaches the programs of other layout versions from an interface that has this agent's programs. Then removes the
/// pinned state of versions that no interface uses.
pub(super) fn detach_old_programs(pins: &Pins, ifindex: IfIndex) -> Result<(), AttachError> {
    // This agent attaches either clsact filters or TCX links.
    let uses_filters = pins.filter_dir(ifindex).exists();
    for other in others(pins) {
        if uses_filters {
            // This agent's filters replaced the old filters, but not old TCX links. Of the old filters, only the
            // directories that record them remain.
            detach_tcx(&other, ifindex, &[])?;
            // If this fails, the directory remains until no interface with pins of the other version exists any more.
            // Then `remove_unused` removes everything that the other version pinned.
            let _ = other.remove_filter_dir(ifindex);
        } else {
            detach(&other, ifindex)?;
        }
    }
    remove_unused(pins);
    Ok(())
}

/// Removes the pinned state of other layout versions that no existing interface uses.
pub(super) fn remove_unused(pins: &Pins) {
    for other in others(pins) {
        if other.interfaces().into_iter().all(|ifindex| name_of(ifindex).is_none()) {
            let mut report = UninstallReport::default();
            remove_tree(&other.root, &mut report);
            let (version, remains) = (other.root.display(), report.remains.join("; "));
            if remains.is_empty() {
                tracing::info!(%version, "removed the state of another layout version");
            } else {
                tracing::warn!(%version, remains, "cannot remove all state of another layout version; run netpol-agent uninstall");
            }
        }
    }
}
