//! Removes everything that netpol created in the kernel, and checks that nothing is left. Pins of each layout version
//! (the version of the BPF maps) are in a directory below the pin path. All of these directories are removed.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use aya::maps::MapInfo;
use aya::programs::{ProgramInfo, TcAttachType};
use netpol_common::IfIndex;

use super::attach::{detach, pinned_link};
use super::foreign::has_own_name;
use super::pins::{Pins, names, pin_error};
use super::query::tcx_programs;
use super::{KernelError, Lock, versions};
use netpol_node::Netlink;

/// How long to wait for the kernel to remove links.
const TIMEOUT: Duration = Duration::from_secs(3);

/// The result of uninstalling.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UninstallReport {
    /// Removed objects, one line each.
    pub removed: Vec<String>,
    /// Remaining objects, one line each. Empty on success.
    pub remains: Vec<String>,
}

/// Removes links, filters, qdiscs, programs and maps below a pin path. A missing path is not an error.
///
/// # Errors
/// If an agent is still running on this path.
pub fn uninstall(pin_path: &Path) -> Result<UninstallReport, KernelError> {
    let mut report = UninstallReport::default();
    if !pin_path.exists() {
        return Ok(report);
    }
    let lock = Lock::take(pin_path)?;
    let mut own = OwnObjects::default();
    for root in versions(pin_path) {
        let pins = Pins::at(root.clone());
        own.maps.extend(map_ids(&root));
        own.maps.extend(map_ids(&pins.resize_dir()));
        own.programs.extend(program_ids(&pins));
        for ifindex in pins.interfaces() {
            match detach(&pins, ifindex) {
                Ok(removed) => report.removed.extend(removed),
                Err(error) => report.remains.push(error.to_string()),
            }
        }
        remove_tree(&root, &mut report);
    }
    drop(lock);
    // The directory can be a mount point. Then it cannot be removed, and only its contents are removed.
    if let Err(error) = fs::remove_dir(pin_path)
        && error.kind() != std::io::ErrorKind::ResourceBusy
    {
        report.remains.push(pin_error("remove", pin_path, &error).to_string());
    }
    report.remains.extend(remaining_pins(pin_path));
    report.remains.extend(remaining_programs(&own));
    Ok(report)
}

/// Removes all pins below a directory, and the directories.
pub(super) fn remove_tree(directory: &Path, report: &mut UninstallReport) {
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

/// Returns the ids of the maps pinned in a directory. Programs that use these maps belong to this pin path.
fn map_ids(directory: &Path) -> BTreeSet<u32> {
    names(directory).iter().filter_map(|name| Some(MapInfo::from_pin(directory.join(name)).ok()?.id())).collect()
}

/// Returns the ids of programs that are pinned, linked, or attached as filters.
fn program_ids(pins: &Pins) -> BTreeSet<u32> {
    let pinned = names(&pins.programs()).into_iter().filter_map(|name| {
        let program = ProgramInfo::from_pin(pins.programs().join(name)).ok()?;
        Some(program.id())
    });
    let links = names(&pins.links()).into_iter().map(|name| pins.links().join(name));
    let linked = links.filter_map(|link| Some(pinned_link(&link).ok()??.info().ok()?.program_id()));
    let mut ids: BTreeSet<u32> = pinned.chain(linked).collect();
    if let Ok(mut netlink) = Netlink::open() {
        let filters = pins
            .interfaces_with_filters()
            .into_iter()
            .flat_map(|ifindex| netlink.bpf_filters(ifindex).unwrap_or_default());
        ids.extend(filters.filter(has_own_name).map(|filter| filter.program));
    }
    ids
}

/// The ids of this pin path's maps and programs. A program without a pin is recognized by a map that it uses; reading a
/// program's maps needs `CAP_SYS_ADMIN`.
#[derive(Debug, Default)]
struct OwnObjects {
    maps: BTreeSet<u32>,
    programs: BTreeSet<u32>,
}

/// Returns netpol's programs on interfaces of this network namespace. The kernel removes a link shortly after its last
/// pin was removed. So this function waits up to [`TIMEOUT`] until there are no such programs.
fn remaining_programs(own: &OwnObjects) -> Vec<String> {
    let started = Instant::now();
    loop {
        let remaining = running_programs(own);
        if remaining.is_empty() || started.elapsed() > TIMEOUT {
            return remaining;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn running_programs(own: &OwnObjects) -> Vec<String> {
    let mut netlink = match Netlink::open() {
        Ok(netlink) => netlink,
        Err(error) => return vec![format!("maybe clsact filters, which cannot be listed: {error}")],
    };
    let mut remaining = Vec::new();
    for interface in nix::net::if_::if_nameindex().iter().flatten() {
        let name = interface.name().to_string_lossy();
        let mut ids = BTreeSet::new();
        for hook in [TcAttachType::Ingress, TcAttachType::Egress] {
            // Linux before 6.6 has no TCX.
            ids.extend(tcx_programs(IfIndex(interface.index()), hook).unwrap_or_default());
        }
        match netlink.filter_programs(IfIndex(interface.index())) {
            Ok(filters) => ids.extend(filters),
            // The interface was just removed.
            Err(_) if nix::net::if_::if_nametoindex(&*name).is_err() => {}
            Err(error) => remaining.push(format!("maybe clsact filters on {name}, which cannot be listed: {error}")),
        }
        for id in ids {
            let program = program_of_id(id);
            if own.programs.contains(&id) || program.as_ref().is_some_and(|program| uses(program, &own.maps)) {
                let program_name = program.as_ref().and_then(ProgramInfo::name_as_str).unwrap_or("?");
                remaining.push(format!("program {program_name} (id {id}) on {name}"));
            }
        }
    }
    remaining
}

fn program_of_id(id: u32) -> Option<ProgramInfo> {
    aya::programs::loaded_programs().flatten().find(|program| program.id() == id)
}

fn uses(program: &ProgramInfo, maps: &BTreeSet<u32>) -> bool {
    program.map_ids().ok().flatten().is_some_and(|used| used.iter().any(|map| maps.contains(map)))
}
