//! The BPF objects a process holds, and whether they are still there when it is gone.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

use anyhow::{Context, Result};

/// What kind of BPF object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A map.
    Map,
    /// A program.
    Program,
    /// A link: a program attached.
    Link,
}

impl Kind {
    const ALL: [Self; 3] = [Self::Map, Self::Program, Self::Link];

    /// The key in `/proc/PID/fdinfo/FD`.
    const fn key(self) -> &'static str {
        match self {
            Self::Map => "map_id:",
            Self::Program => "prog_id:",
            Self::Link => "link_id:",
        }
    }

    /// The command of `bpf(2)` that opens one by its id.
    const fn open_by_id(self) -> i32 {
        match self {
            Self::Program => 13,
            Self::Map => 14,
            Self::Link => 30,
        }
    }
}

/// The objects a process holds, by kind and id.
///
/// # Errors
/// Where the process cannot be looked into.
pub fn held_by(pid: u32) -> Result<BTreeSet<(Kind, u32)>> {
    let directory = format!("/proc/{pid}/fdinfo");
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(&directory).with_context(|| format!("listing {directory}"))?.flatten() {
        // A descriptor may be closed while we look.
        let text = fs::read_to_string(entry.path()).unwrap_or_default();
        for kind in Kind::ALL {
            let id = text.lines().find_map(|line| line.strip_prefix(kind.key()));
            found.extend(id.and_then(|id| id.trim().parse().ok()).map(|id| (kind, id)));
        }
    }
    Ok(found)
}

/// Whether the kernel still has an object of this id.
///
/// # Errors
/// Where the kernel does not tell.
pub fn exists(kind: Kind, id: u32) -> Result<bool> {
    const SIZE: libc::c_uint = 16;
    // As much of `union bpf_attr` as these commands read: the id, the next id, flags.
    let attributes: [u32; 4] = [id, 0, 0, 0];
    // SAFETY: the pointer and size are those of `attributes`; the kernel reads it and returns a descriptor.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, kind.open_by_id(), attributes.as_ptr(), SIZE) };
    if fd >= 0 {
        let fd = i32::try_from(fd).context("a descriptor fits")?;
        // SAFETY: the descriptor was just made and nobody else owns it.
        drop(unsafe { OwnedFd::from_raw_fd(fd) });
        return Ok(true);
    }
    let error = io::Error::last_os_error();
    match error.raw_os_error() {
        Some(libc::ENOENT) => Ok(false),
        _ => Err(error).with_context(|| format!("asking the kernel about {kind:?} {id}")),
    }
}
