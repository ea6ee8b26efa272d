//! Finds the BPF objects (maps, programs and links) that a process has open or that are pinned, and checks whether they
//! still exist, for example after the process has ended.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use anyhow::{Context, Result};

/// Kind of a BPF object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ObjectKind {
    /// A map.
    Map,
    /// A program.
    Program,
    /// A link, which attaches a program.
    Link,
}

impl ObjectKind {
    const ALL: [Self; 3] = [Self::Map, Self::Program, Self::Link];

    /// Returns the prefix of the line with the object's ID in `/proc/PID/fdinfo/FD`.
    const fn id_prefix(self) -> &'static str {
        match self {
            Self::Map => "map_id:",
            Self::Program => "prog_id:",
            Self::Link => "link_id:",
        }
    }

    /// Returns the command of `bpf(2)` that opens an object by its ID. Source: `enum bpf_cmd` in `linux/bpf.h`.
    const fn open_by_id_command(self) -> i32 {
        match self {
            Self::Program => 13,
            Self::Map => 14,
            Self::Link => 30,
        }
    }
}

/// Returns the objects that a process has open, by kind and ID.
///
/// # Errors
/// Returns an error if the process cannot be inspected.
pub fn held_by(pid: u32) -> Result<BTreeSet<(ObjectKind, u32)>> {
    let directory = format!("/proc/{pid}/fdinfo");
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(&directory).with_context(|| format!("listing {directory}"))?.flatten() {
        // The process may have closed the descriptor after the directory was listed.
        let text = fs::read_to_string(entry.path()).unwrap_or_default();
        found.extend(ids_in(&text));
    }
    Ok(found)
}

/// Returns the objects pinned below a directory of bpffs.
///
/// # Errors
/// Returns an error if a pin cannot be opened.
pub fn pinned_below(directory: &Path) -> Result<BTreeSet<(ObjectKind, u32)>> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(directory).with_context(|| format!("listing {}", directory.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(pinned_below(&path)?);
            continue;
        }
        let pin = open_pin(&path).with_context(|| format!("opening the pin {}", path.display()))?;
        let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", pin.as_raw_fd()))?;
        found.extend(ids_in(&info));
    }
    Ok(found)
}

/// Returns all IDs in the text of an fdinfo file. The file of a link has two IDs: that of the link, and that of its
/// program.
fn ids_in(info: &str) -> impl Iterator<Item = (ObjectKind, u32)> {
    ObjectKind::ALL.into_iter().filter_map(move |kind| {
        let id = info.lines().find_map(|line| line.strip_prefix(kind.id_prefix()))?;
        Some((kind, id.trim().parse().ok()?))
    })
}

fn open_pin(path: &Path) -> Result<OwnedFd> {
    /// `BPF_OBJ_GET`. Source: `enum bpf_cmd` in `linux/bpf.h`.
    const OBJ_GET: i32 = 7;
    const SIZE: libc::c_uint = 16;
    let path = CString::new(path.as_os_str().as_bytes()).context("the path has a zero byte")?;
    // The part of `union bpf_attr` that this command reads: the path's address, a descriptor and flags.
    let attributes: [u64; 2] = [path.as_ptr().addr() as u64, 0];
    // SAFETY: the pointer and size are those of `attributes`, and the path is valid during the call.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, OBJ_GET, attributes.as_ptr(), SIZE) };
    if fd < 0 {
        return Err(io::Error::last_os_error().into());
    }
    let fd = i32::try_from(fd).context("the descriptor does not fit into i32")?;
    // SAFETY: the descriptor is new and has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Returns whether the kernel still has an object of this kind and ID.
///
/// # Errors
/// Returns an error if the kernel cannot open an object that exists.
pub fn exists(kind: ObjectKind, id: u32) -> Result<bool> {
    const SIZE: libc::c_uint = 16;
    // The part of `union bpf_attr` that these commands read: the ID, the next ID (not used here) and flags.
    let attributes: [u32; 4] = [id, 0, 0, 0];
    // SAFETY: the pointer and size are those of `attributes`. The kernel reads `attributes` and returns a
    // descriptor.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, kind.open_by_id_command(), attributes.as_ptr(), SIZE) };
    if fd >= 0 {
        let fd = i32::try_from(fd).context("the descriptor does not fit into i32")?;
        // SAFETY: the descriptor is new and has no other owner.
        drop(unsafe { OwnedFd::from_raw_fd(fd) });
        return Ok(true);
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::ENOENT) => Ok(false),
        _ => Err(error).with_context(|| format!("opening {kind:?} {id}")),
    }
}
