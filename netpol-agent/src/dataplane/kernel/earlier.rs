//! What agents of another layout version left. It stays in force on each interface until this agent's programs are there.

use std::fs;

use netpol_common::IfIndex;

use super::attach::{detach, detach_tcx, name_of};
use super::pins::{Pins, names};
use super::program::Program;
use super::uninstall::{Removed, remove_tree};
use super::versions;
use crate::dataplane::AttachError;

/// The pins of other versions beside these.
fn others(pins: &Pins) -> Vec<Pins> {
    let beside = pins.root.parent().map(versions).unwrap_or_default();
    beside.into_iter().filter(|root| *root != pins.root).map(Pins::at).collect()
}

/// Takes over a qdisc that netpol made: filters are replaced in it in one step.
pub(super) fn inherit(pins: &Pins, ifindex: IfIndex) {
    if others(pins).iter().any(|other| other.filter(ifindex).join("qdisc").exists()) {
        // Without the mark the qdisc counts as somebody else's: it is left there at the end.
        let _ = fs::create_dir_all(pins.filter(ifindex).join("qdisc"));
    }
}

/// Takes what is left off an interface that has this agent's programs, and forgets a version that is on no interface any more.
pub(super) fn take_off(pins: &Pins, ifindex: IfIndex) -> Result<(), AttachError> {
    let has_filters = pins.filter(ifindex).exists();
    for other in others(pins) {
        if has_filters {
            // Its filters were replaced by this agent's.
            detach_tcx(&other, ifindex, Program::ALL)?;
            let mark = other.filter(ifindex);
            for name in names(&mark) {
                let _ = fs::remove_dir(mark.join(name));
            }
            let _ = fs::remove_dir(&mark);
        } else {
            detach(&other, ifindex)?;
        }
    }
    clear(pins);
    Ok(())
}

/// Forgets versions that are on no interface that is there.
pub(super) fn clear(pins: &Pins) {
    for other in others(pins) {
        if other.interfaces().into_iter().all(|ifindex| name_of(ifindex).is_none()) {
            let mut report = Removed::default();
            remove_tree(&other.root, &mut report);
            let (version, remains) = (other.root.display(), report.remains.join("; "));
            if remains.is_empty() {
                tracing::info!(%version, "what an agent of another layout version had is gone");
            } else {
                tracing::warn!(%version, remains, "some of what an agent of another layout version had stays; see netpol-agent uninstall");
            }
        }
    }
}
