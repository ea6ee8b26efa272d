//! Paths of pinned maps, links and programs, which outlive the agent.
//!
//! The programs of an interface are attached as TCX links, or as clsact filters. Links are pinned. Filters cannot be
//! pinned, so a directory records each interface with filters. Marks (empty directories) record other facts.
//!
//! ```text
//! /sys/fs/bpf/netpol/            --pin-path; locked by the running agent
//!   v1/                          the layout version
//!     ALLOW, ENDPOINTS, …        maps
//!     programs/netpol_ingress    programs
//!     links/12-ingress           TCX links, by ifindex
//!     tc/12/                     an interface with clsact filters, by ifindex. Marks in this directory:
//!       qdisc/                   netpol created the qdisc
//!       recheck/                 the device runs `netpol_recheck`
//!       recheck-l3/              the device runs `netpol_recheck_l3`: its packets have no link-layer header
//!     observing/12/              mark: the programs of interface 12 enforce nothing (--observe)
//!     flows/v4-12                flow tables, by family and endpoint ID
//!     flows/v4-12-next           a table of a new size, until it replaces v4-12
//!     resize/                    maps of new sizes, until they replace the old ones
//! ```

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use netpol_common::{IfIndex, LAYOUT_VERSION};
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use super::program::{Program, Role};
use super::{KernelError, MapName};

/// The usual mount point of bpffs.
const BPFFS: &str = "/sys/fs/bpf";

/// Mounts bpffs if it is missing.
#[derive(Debug)]
pub struct Mounts;

impl Mounts {
    /// Makes sure that `path`, which may not exist yet, is on a bpffs. If there is no bpffs, mounts one at
    /// `/sys/fs/bpf`. Returns whether it mounted one.
    ///
    /// # Errors
    /// If `path` is not on a bpffs, and either `path` is not below `/sys/fs/bpf`, or the mount fails.
    pub fn ensure(path: &Path) -> Result<bool, KernelError> {
        let existing = path.ancestors().find(|ancestor| ancestor.exists()).unwrap_or(Path::new("/"));
        if statfs(existing).is_ok_and(|filesystem| filesystem.filesystem_type() == BPF_FS_MAGIC) {
            return Ok(false);
        }
        let missing = |message: String| KernelError::NoBpffs { path: path.to_owned(), message };
        if !path.starts_with(BPFFS) {
            let path = path.display();
            return Err(missing(format!(
                "use a path below {BPFFS}, or run `mkdir -p {path} && mount -t bpf bpf {path}`"
            )));
        }
        mount(Some("bpf"), BPFFS, Some("bpf"), MsFlags::empty(), None::<&str>).map_err(|error| {
            missing(format!("mounting it failed ({error}); run `mount -t bpf bpf {BPFFS}` as root"))
        })?;
        Ok(true)
    }
}

/// The lock of a running agent. Two agents on one pin path would undo each other's work.
#[derive(Debug)]
pub struct Lock {
    _flock: Flock<File>,
}

impl Lock {
    /// Takes the lock. Creates the directory if needed.
    ///
    /// # Errors
    /// If another agent has the lock, or the directory cannot be created.
    pub fn take(pin_path: &Path) -> Result<Self, KernelError> {
        make_dir(pin_path)?;
        let directory = File::open(pin_path).map_err(|error| pin_error("open", pin_path, &error))?;
        Flock::lock(directory, FlockArg::LockExclusiveNonblock)
            .map(|flock| Self { _flock: flock })
            .map_err(|_| KernelError::Locked(pin_path.to_owned()))
    }
}

/// The paths below the pin path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pins {
    /// Directory of this layout version.
    pub(super) root: PathBuf,
    /// Maps that are pinned in `resize/`, because they have new sizes and have not replaced the old maps yet.
    pub(super) resized: BTreeSet<MapName>,
}

impl Pins {
    pub(super) fn new(pin_path: &Path) -> Self {
        Self::at(pin_path.join(version_dir()))
    }

    /// Returns the paths in the directory `root` of a layout version.
    pub(super) fn at(root: PathBuf) -> Self {
        Self { root, resized: BTreeSet::new() }
    }

    pub(super) fn map(&self, map: MapName) -> PathBuf {
        let directory = if self.resized.contains(&map) { self.resize_dir() } else { self.root.clone() };
        directory.join(map.name())
    }

    /// Returns the directory for maps of new sizes.
    pub(super) fn resize_dir(&self) -> PathBuf {
        self.root.join("resize")
    }

    pub(super) fn make_dirs(&self) -> Result<(), KernelError> {
        [self.root.clone(), self.programs(), self.links(), self.tc()].iter().try_for_each(|path| make_dir(path))
    }

    pub(super) fn programs(&self) -> PathBuf {
        self.root.join("programs")
    }

    pub(super) fn links(&self) -> PathBuf {
        self.root.join("links")
    }

    pub(super) fn tc(&self) -> PathBuf {
        self.root.join("tc")
    }

    pub(super) fn link(&self, ifindex: IfIndex, program: Program) -> PathBuf {
        self.links().join(format!("{ifindex}-{}", program.short_name()))
    }

    /// Returns the paths of all pinned links of an interface.
    pub(super) fn links_of(&self, ifindex: IfIndex) -> Vec<PathBuf> {
        if self.root.ends_with(version_dir()) {
            let paths = Program::ALL.into_iter().map(|program| self.link(ifindex, program));
            return paths.filter(|path| path.exists()).collect();
        }
        // In another layout version, links may have other names.
        let (links, prefix) = (self.links(), format!("{ifindex}-"));
        names(&links).iter().filter(|name| name.starts_with(&prefix)).map(|name| links.join(name)).collect()
    }

    /// Returns the role of an interface, from its marks and the names of its pinned links. See [`Self::set_role`].
    pub(super) fn role(&self, ifindex: IfIndex) -> Role {
        let is_recorded = |role: &Role| {
            role.mark_program().is_some_and(|program| {
                self.link(ifindex, program).exists() || self.device_mark(ifindex, program).exists()
            })
        };
        [Role::Device, Role::Tunnel].into_iter().find(is_recorded).unwrap_or(Role::Pod)
    }

    /// Records the role of an interface with a mark, and removes the marks of other roles. An interface with TCX links
    /// needs no mark, because the names of its pinned links include the program.
    pub(super) fn set_role(&self, ifindex: IfIndex, role: Role, has_links: bool) -> Result<(), KernelError> {
        for program in [Program::Recheck, Program::RecheckL3] {
            let path = self.device_mark(ifindex, program);
            if role.mark_program() == Some(program) && !has_links {
                make_dir(&path)?;
                continue;
            }
            remove_dir(&path)?;
        }
        Ok(())
    }

    /// Returns the path of the mark for the role of a device. `program`: see [`Role::mark_program`].
    fn device_mark(&self, ifindex: IfIndex, program: Program) -> PathBuf {
        self.filter_dir(ifindex).join(program.short_name())
    }

    /// Returns whether the programs of an interface only observe (enforce nothing), as [`Self::set_observing`]
    /// recorded.
    pub(super) fn is_observing(&self, ifindex: IfIndex) -> bool {
        self.observing_mark(ifindex).exists()
    }

    /// Records whether the programs of an interface only observe.
    pub(super) fn set_observing(&self, ifindex: IfIndex, observing: bool) -> Result<(), KernelError> {
        let mark = self.observing_mark(ifindex);
        if observing {
            return make_dir(&mark);
        }
        remove_dir(&mark)
    }

    /// Returns the path of the mark for an interface with programs that only observe.
    fn observing_mark(&self, ifindex: IfIndex) -> PathBuf {
        self.root.join("observing").join(ifindex.to_string())
    }

    /// Returns the directory that records an interface with clsact filters.
    pub(super) fn filter_dir(&self, ifindex: IfIndex) -> PathBuf {
        self.tc().join(ifindex.to_string())
    }

    /// Removes the directory that records an interface with clsact filters, and all marks in it.
    pub(super) fn remove_filter_dir(&self, ifindex: IfIndex) -> Result<(), KernelError> {
        let directory = self.filter_dir(ifindex);
        let marks = names(&directory).into_iter().map(|name| directory.join(name));
        marks.chain([directory.clone()]).try_for_each(|path| remove_dir(&path))
    }

    /// Returns the interfaces with pinned links or clsact filters.
    pub(super) fn interfaces(&self) -> Vec<IfIndex> {
        let mut interfaces = self.interfaces_with_links();
        interfaces.extend(self.interfaces_with_filters());
        interfaces.sort_unstable();
        interfaces.dedup();
        interfaces
    }

    /// Returns the interfaces with pinned links.
    pub(super) fn interfaces_with_links(&self) -> Vec<IfIndex> {
        let mut linked: Vec<IfIndex> =
            names(&self.links()).iter().filter_map(|name| name.split_once('-')?.0.parse().ok().map(IfIndex)).collect();
        linked.dedup();
        linked
    }

    /// Returns the interfaces with clsact filters.
    pub(super) fn interfaces_with_filters(&self) -> Vec<IfIndex> {
        names(&self.tc()).iter().filter_map(|name| name.parse().ok().map(IfIndex)).collect()
    }
}

/// Returns the name of the directory of this layout version.
fn version_dir() -> String {
    format!("v{LAYOUT_VERSION}")
}

/// Returns the sorted names in a directory, or none if there is no directory.
pub(super) fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(directory)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    names.sort();
    names
}

pub(super) fn make_dir(path: &Path) -> Result<(), KernelError> {
    fs::create_dir_all(path).map_err(|error| pin_error("create the directory", path, &error))
}

/// Removes an empty directory. A missing directory is not an error.
fn remove_dir(path: &Path) -> Result<(), KernelError> {
    match fs::remove_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(pin_error("remove", path, &error)),
        _ => Ok(()),
    }
}

/// Removes a pin. A missing pin is not an error.
pub(super) fn unpin(path: &Path) -> Result<(), KernelError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(pin_error("remove", path, &error)),
        _ => Ok(()),
    }
}

pub(super) fn pin_error(verb: &'static str, path: &Path, message: &dyn std::fmt::Display) -> KernelError {
    KernelError::Pin { verb, path: path.to_owned(), message: message.to_string() }
}
