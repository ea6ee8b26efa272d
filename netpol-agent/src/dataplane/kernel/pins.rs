//! Where maps, links and programs are pinned, so that they outlive the agent.
//!
//! ```text
//! /sys/fs/bpf/netpol/            --pin-path; locked by the agent that runs
//!   v1/                          the layout version
//!     ALLOW, ENDPOINTS, …        maps
//!     programs/netpol_ingress    programs
//!     links/12-ingress           TCX links, by ifindex
//!     tc/12/                     an interface with clsact filters; with qdisc/ in it where the qdisc is ours too, and behind/
//!                                or bare/ where it is no pod's veth
//!     flows/v4-12                flow tables, by family and endpoint ID; with -next while one replaces another
//!     resize/                    maps of another size, while they take over
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

/// Where bpffs is usually mounted.
const BPFFS: &str = "/sys/fs/bpf";

/// Mounts bpffs where it is missing.
#[derive(Debug)]
pub struct Mounts;

impl Mounts {
    /// Makes sure that `path` is, or will be, on a bpffs; mounts one at `/sys/fs/bpf` where that is missing. Tells
    /// whether it did.
    ///
    /// # Errors
    /// Where there is none and none can be mounted.
    pub fn ensure(path: &Path) -> Result<bool, KernelError> {
        let existing = path.ancestors().find(|ancestor| ancestor.exists()).unwrap_or(Path::new("/"));
        if statfs(existing).is_ok_and(|filesystem| filesystem.filesystem_type() == BPF_FS_MAGIC) {
            return Ok(false);
        }
        let missing = |message: String| KernelError::NoBpffs { path: path.to_owned(), message };
        if !path.starts_with(BPFFS) {
            return Err(missing(format!("run `mount -t bpf bpf {}`", existing.display())));
        }
        mount(Some("bpf"), BPFFS, Some("bpf"), MsFlags::empty(), None::<&str>).map_err(|error| {
            missing(format!("mounting it failed ({error}); run `mount -t bpf bpf {BPFFS}` as root"))
        })?;
        Ok(true)
    }
}

/// Held while an agent runs: two of them on one pin path would undo each other's work.
#[derive(Debug)]
pub struct Lock {
    _flock: Flock<File>,
}

impl Lock {
    /// Takes the lock, making the directory where needed.
    ///
    /// # Errors
    /// Where another agent holds it, or the directory cannot be made.
    pub fn take(pin_path: &Path) -> Result<Self, KernelError> {
        make(pin_path)?;
        let directory = File::open(pin_path).map_err(|error| pin_error("open", pin_path, &error))?;
        Flock::lock(directory, FlockArg::LockExclusiveNonblock)
            .map(|flock| Self { _flock: flock })
            .map_err(|_| KernelError::Locked(pin_path.to_owned()))
    }
}

/// The directories below the pin path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pins {
    /// Of this layout version.
    pub(super) root: PathBuf,
    /// Maps of another size that have not taken over yet.
    pub(super) resized: BTreeSet<MapName>,
}

impl Pins {
    pub(super) fn new(pin_path: &Path) -> Self {
        Self::at(pin_path.join(format!("v{LAYOUT_VERSION}")))
    }

    /// Of the layout version whose directory this is.
    pub(super) fn at(root: PathBuf) -> Self {
        Self { root, resized: BTreeSet::new() }
    }

    pub(super) fn map(&self, map: MapName) -> PathBuf {
        let directory = if self.resized.contains(&map) { self.resize() } else { self.root.clone() };
        directory.join(map.name())
    }

    pub(super) fn resize(&self) -> PathBuf {
        self.root.join("resize")
    }

    pub(super) fn make(&self) -> Result<(), KernelError> {
        [self.root.clone(), self.programs(), self.links(), self.tc()].iter().try_for_each(|path| make(path))
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
        self.links().join(format!("{ifindex}-{}", program.place()))
    }

    /// Whose programs an interface has, as it was noted last.
    pub(super) fn role(&self, ifindex: IfIndex) -> Role {
        let noted = |role: &Role| {
            role.mark().is_some_and(|mark| self.link(ifindex, mark).exists() || self.device(ifindex, mark).exists())
        };
        [Role::Device, Role::Tunnel].into_iter().find(noted).unwrap_or(Role::Pod)
    }

    /// Notes whose programs an interface has; links tell by themselves.
    pub(super) fn set_role(&self, ifindex: IfIndex, role: Role, linked: bool) -> Result<(), KernelError> {
        for mark in [Program::Behind, Program::Bare] {
            let noted = self.device(ifindex, mark);
            if role.mark() == Some(mark) && !linked {
                make(&noted)?;
                continue;
            }
            match fs::remove_dir(&noted) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(pin_error("remove", &noted, &error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn device(&self, ifindex: IfIndex, mark: Program) -> PathBuf {
        self.filter(ifindex).join(mark.place())
    }

    pub(super) fn filter(&self, ifindex: IfIndex) -> PathBuf {
        self.tc().join(ifindex.to_string())
    }

    /// The interfaces that programs were put on, in either way.
    pub(super) fn interfaces(&self) -> Vec<IfIndex> {
        let mut interfaces = self.linked();
        interfaces.extend(self.filtered());
        interfaces.sort_unstable();
        interfaces.dedup();
        interfaces
    }

    /// The interfaces with pinned links.
    pub(super) fn linked(&self) -> Vec<IfIndex> {
        let mut linked: Vec<IfIndex> =
            names(&self.links()).iter().filter_map(|name| name.split_once('-')?.0.parse().ok().map(IfIndex)).collect();
        linked.dedup();
        linked
    }

    /// The interfaces with clsact filters.
    pub(super) fn filtered(&self) -> Vec<IfIndex> {
        names(&self.tc()).iter().filter_map(|name| name.parse().ok().map(IfIndex)).collect()
    }
}

/// The names in a directory, sorted; none where there is no directory.
pub(super) fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(directory)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    names.sort();
    names
}

pub(super) fn make(path: &Path) -> Result<(), KernelError> {
    fs::create_dir_all(path).map_err(|error| pin_error("make the directory", path, &error))
}

/// Removes a pin; none is fine.
pub(super) fn unpin(path: &Path) -> Result<(), KernelError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(pin_error("remove", path, &error)),
        _ => Ok(()),
    }
}

pub(super) fn pin_error(verb: &'static str, path: &Path, message: &dyn std::fmt::Display) -> KernelError {
    KernelError::Pin { verb, path: path.to_owned(), message: message.to_string() }
}
