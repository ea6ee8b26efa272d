//! Attaches netpol's programs to interfaces, as clsact filters. If programs of other software use the hooks of an
//! interface, netpol's programs are attached as pinned TCX links instead, because TCX programs run before all filters.
//! Filters need no pin, and attaching them to a pod's interface takes 1 to 4 ms. Attaching TCX links takes about 26 ms
//! under `rtnl_lock`, and the removal of the interface takes about 26 ms more.
//!
//! For each interface with filters, netpol has a directory on bpffs ([`Pins::filter_dir`]). Its subdirectories are
//! empty and are called marks. They record what netpol has created on the interface.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use aya::Ebpf;
use aya::programs::links::{FdLink, LinkError, PinnedLink};
use aya::programs::tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle, qdisc_add_clsact};
use aya::programs::{Link, LinkOrder, ProgramError, SchedClassifier, TcAttachType};
use aya::util::KernelVersion;
use netpol_common::IfIndex;
use nix::net::if_::{if_indextoname, if_nameindex};

use super::pins::{Pins, unpin};
use super::program::{Program, Role};
use super::query::tcx_programs;
use crate::AttachError;
use netpol_node::{Hook, Netlink};
use netpol_policy::text::error_chain;

/// Priority and handle of netpol's filters. They run early, because another program's filter that allows a packet ends
/// the evaluation of filters.
const PRIORITY: u16 = 2;
const HANDLE: TcHandle = TcHandle::new(0, HANDLE_MINOR);
const HANDLE_MINOR: u16 = 0x6e70;

/// How programs are attached to interfaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum AttachMode {
    /// clsact filters; TCX (Linux 6.6 or later) if other programs use the hooks.
    #[default]
    Auto,
    /// TCX links.
    Tcx,
    /// clsact filters.
    Tc,
}

impl AttachMode {
    /// Returns whether to use TCX on an interface. In mode `auto`, an interface to which an earlier agent attached TCX
    /// links keeps using TCX. For any other interface, this function tries to create the qdisc for filters, and returns
    /// true if other programs use the hooks: see [`create_own_qdisc`].
    fn uses_tcx(self, pins: &Pins, ifindex: IfIndex, name: &str) -> bool {
        let has_pinned_link = || !pins.links_of(ifindex).is_empty();
        match self {
            Self::Auto => has_tcx() && (has_pinned_link() || !create_own_qdisc(pins, ifindex, name)),
            Self::Tcx => true,
            Self::Tc => false,
        }
    }
}

fn has_tcx() -> bool {
    KernelVersion::current().is_ok_and(|kernel| kernel >= KernelVersion::new(6, 6, 0))
}

/// Creates the clsact qdisc if no other program uses the hooks. Returns whether the interface has no TCX program, and
/// its qdisc was created by netpol.
///
/// If one of these conditions is false, packets could bypass netpol's filters. A TCX program of other software runs
/// before filters, and most such programs end the evaluation. In a qdisc of other software, other filters may run
/// first, and a qdisc of kind `ingress` has no egress hook.
fn create_own_qdisc(pins: &Pins, ifindex: IfIndex, name: &str) -> bool {
    let is_empty = |hook| tcx_programs(ifindex, hook).is_ok_and(|programs| programs.is_empty());
    [TcAttachType::Ingress, TcAttachType::Egress].into_iter().all(is_empty)
        && ensure_qdisc(&pins.filter_dir(ifindex), name).unwrap_or(false)
}

pub(super) fn find_program(ebpf: &mut Ebpf, program: Program) -> Result<&mut SchedClassifier, String> {
    let name = program.name();
    let program = ebpf.program_mut(name).ok_or_else(|| format!("the BPF object has no program {name}"))?;
    program.try_into().map_err(|error: ProgramError| error.to_string())
}

/// Returns the ids of the loaded programs.
pub(super) fn ids(ebpf: &mut Ebpf) -> Vec<u32> {
    let id = |wanted| Some(find_program(ebpf, wanted).ok()?.info().ok()?.id());
    Program::ALL.into_iter().filter_map(id).collect()
}

/// Attaches the programs of a role (pod's veth, or device of the node) to an interface. Replaces an earlier agent's
/// programs atomically, and detaches those of another role.
pub(super) fn attach(
    ebpf: &mut Ebpf,
    pins: &Pins,
    mode: AttachMode,
    ifindex: IfIndex,
    name: &str,
    role: Role,
) -> Result<(), AttachError> {
    let tcx = mode.uses_tcx(pins, ifindex, name);
    let attach_error = |message: String| {
        let gone = name_of(ifindex).is_none_or(|now| now != name);
        AttachError { interface: name.to_owned(), message, gone }
    };
    for &wanted in role.programs() {
        let program = find_program(ebpf, wanted).map_err(attach_error)?;
        let attached = if tcx {
            attach_tcx(program, &pins.link(ifindex, wanted), wanted.hook(), ifindex, name)
        } else {
            attach_filter(program, &pins.filter_dir(ifindex), wanted.hook(), name)
        };
        attached.map_err(|error| attach_error(error_chain(error.as_ref())))?;
    }
    pins.set_role(ifindex, role, tcx).map_err(|error| attach_error(error.to_string()))?;
    // Detach what an earlier agent attached in the other way (TCX or filters), and the programs of another role. A
    // filter of another role at the egress hook was replaced above: all of netpol's filters have the same priority and
    // handle.
    if tcx {
        detach_tcx(pins, ifindex, role.programs())?;
        detach_filters(pins, ifindex)?;
    } else {
        detach_tcx(pins, ifindex, &[])?;
        if role.is_device() {
            detach_filter(name, TcAttachType::Ingress);
        }
    }
    Ok(())
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

fn attach_tcx(
    program: &mut SchedClassifier,
    pin: &Path,
    hook: TcAttachType,
    ifindex: IfIndex,
    name: &str,
) -> Result<(), Failure> {
    if let Some(link) = pinned_link(pin)? {
        if runs_on(&link, hook, ifindex)? {
            let id = program.attach_to_link(SchedClassifierLink::try_from(link)?)?;
            // The pin keeps the program attached.
            drop(program.take_link(id)?);
            return Ok(());
        }
        // The link belongs to a removed interface that had the same index, maybe in a removed network namespace.
        unpin(pin)?;
    }
    let order = TcAttachOptions::TcxOrder(LinkOrder::first());
    let id = program.attach_with_options(name, hook, order)?;
    let link: FdLink = program.take_link(id)?.try_into()?;
    link.pin(pin)?;
    Ok(())
}

/// Returns the link pinned at a path, if any.
pub(super) fn pinned_link(pin: &Path) -> Result<Option<FdLink>, LinkError> {
    match PinnedLink::from_pin(pin) {
        Ok(link) => Ok(Some(link.into())),
        Err(LinkError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Returns whether a link's program runs on this interface. A pinned link outlives its interface.
fn runs_on(link: &FdLink, hook: TcAttachType, ifindex: IfIndex) -> Result<bool, Failure> {
    let program = link.info()?.program_id();
    Ok(tcx_programs(ifindex, hook)?.contains(&program))
}

/// Returns whether an interface runs all programs of its role, according to the kernel rather than the pins.
pub(super) fn is_running(pins: &Pins, ifindex: IfIndex) -> Result<bool, Failure> {
    let programs = pins.role(ifindex).programs();
    let mut linked = true;
    for program in programs {
        linked = linked
            && match pinned_link(&pins.link(ifindex, *program))? {
                Some(link) => runs_on(&link, program.hook(), ifindex)?,
                None => false,
            };
    }
    if linked || !pins.filter_dir(ifindex).exists() {
        return Ok(linked);
    }
    let hook = |program: &Program| match program.hook() {
        TcAttachType::Ingress => Hook::Ingress,
        _ => Hook::Egress,
    };
    let hooks: Vec<Hook> = programs.iter().map(hook).collect();
    Ok(Netlink::open()?.has_filters(ifindex, &hooks, PRIORITY, HANDLE_MINOR)?)
}

/// Creates the qdisc for filters, unless there is one. Returns whether netpol created it, now or earlier.
fn ensure_qdisc(mark_dir: &Path, name: &str) -> io::Result<bool> {
    let own_qdisc_mark = mark_dir.join("qdisc");
    if qdisc_add_clsact(name).is_ok() {
        fs::create_dir_all(&own_qdisc_mark)?;
    }
    Ok(own_qdisc_mark.exists())
}

fn attach_filter(
    program: &mut SchedClassifier,
    mark_dir: &Path,
    hook: TcAttachType,
    name: &str,
) -> Result<(), Failure> {
    fs::create_dir_all(mark_dir)?;
    ensure_qdisc(mark_dir, name)?;
    let options = NlOptions { priority: PRIORITY, handle: HANDLE, classid: None };
    let id = match program.attach_with_options(name, hook, TcAttachOptions::Netlink(options)) {
        Ok(id) => id,
        // netpol already has a filter at this hook: replace it in one step.
        Err(_) => program.attach_to_link(own_filter(name, hook)?)?,
    };
    // The kernel owns the filter now; dropping the link would remove it.
    std::mem::forget(program.take_link(id)?);
    Ok(())
}

fn own_filter(name: &str, hook: TcAttachType) -> io::Result<SchedClassifierLink> {
    SchedClassifierLink::attached(name, hook, PRIORITY, HANDLE, None)
}

/// Detaches netpol's filter. Returns whether there was one.
fn detach_filter(name: &str, hook: TcAttachType) -> bool {
    matches!(own_filter(name, hook).map(Link::detach), Ok(Ok(())))
}

/// Detaches all of netpol's programs, and returns what was removed. Succeeds if the interface does not exist any more.
pub(super) fn detach(pins: &Pins, ifindex: IfIndex) -> Result<Vec<String>, AttachError> {
    let mut removed = detach_tcx(pins, ifindex, &[])?;
    removed.extend(detach_filters(pins, ifindex)?);
    pins.set_observing(ifindex, false).map_err(|error| detach_error(ifindex, &error))?;
    Ok(removed)
}

/// Returns all interfaces of this network namespace.
pub(super) fn interfaces() -> BTreeSet<IfIndex> {
    if_nameindex().map(|all| (&all).into_iter().map(|one| IfIndex(one.index())).collect()).unwrap_or_default()
}

/// Returns the name of an interface, or `None` if it does not exist. For a missing interface, nix returns an empty name
/// instead of an error.
pub(super) fn name_of(ifindex: IfIndex) -> Option<String> {
    if_indextoname(ifindex.0).ok()?.into_string().ok().filter(|name| !name.is_empty())
}

fn display_name(ifindex: IfIndex) -> String {
    name_of(ifindex).unwrap_or_else(|| format!("interface {ifindex}"))
}

fn detach_error(ifindex: IfIndex, message: &dyn std::fmt::Display) -> AttachError {
    AttachError { interface: display_name(ifindex), message: message.to_string(), gone: false }
}

/// Detaches netpol's TCX links, except those of the programs in `keep`.
pub(super) fn detach_tcx(pins: &Pins, ifindex: IfIndex, keep: &[Program]) -> Result<Vec<String>, AttachError> {
    let keep: Vec<PathBuf> = keep.iter().map(|program| pins.link(ifindex, *program)).collect();
    let mut removed = Vec::new();
    for pin in pins.links_of(ifindex).into_iter().filter(|pin| !keep.contains(pin)) {
        unpin(&pin).map_err(|error| detach_error(ifindex, &error))?;
        removed.push(format!("TCX link {} on {}", pin.display(), display_name(ifindex)));
    }
    Ok(removed)
}

/// Detaches netpol's filters, and removes the qdisc if netpol created it. The role of an interface is read from its
/// marks, and an agent of another layout version can write other marks. So this function does not use the role: it
/// detaches at both hooks, and removes all marks.
fn detach_filters(pins: &Pins, ifindex: IfIndex) -> Result<Vec<String>, AttachError> {
    let mark_dir = pins.filter_dir(ifindex);
    let mut removed = Vec::new();
    if !mark_dir.exists() {
        return Ok(removed);
    }
    if let Some(name) = name_of(ifindex) {
        for (hook, hook_name) in [(TcAttachType::Ingress, "ingress"), (TcAttachType::Egress, "egress")] {
            if detach_filter(&name, hook) {
                removed.push(format!("clsact filter at the {hook_name} hook of {name}"));
            }
        }
        if mark_dir.join("qdisc").exists() {
            let mut netlink = Netlink::open().map_err(|error| detach_error(ifindex, &error))?;
            if netlink.delete_clsact_if_empty(ifindex).map_err(|error| detach_error(ifindex, &error))? {
                removed.push(format!("clsact qdisc on {name}"));
            }
        }
    }
    pins.remove_filter_dir(ifindex).map_err(|error| detach_error(ifindex, &error))?;
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_removed_interface_has_no_name() {
        assert_eq!(name_of(IfIndex(1)).as_deref(), Some("lo"));
        assert_eq!(name_of(IfIndex(i32::MAX.unsigned_abs())), None);
    }
}
