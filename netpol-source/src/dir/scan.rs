//! Lists the files of a directory tree, with stamps to detect changes.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use netpol_files::{ReadError, is_manifest, other_than_regular};

/// Upper limit for the resolution of file timestamps, with a large margin.
const TICK: Duration = Duration::from_millis(50);

/// Metadata that changes when a file is written. If the stamp is the same, the content is the same, too, unless the
/// stamp [is recent](Stamp::is_recent).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    /// Device and inode number.
    inode: (u64, u64),
    /// Time of the last change of the metadata or the content, in seconds and nanoseconds.
    changed: (i64, i64),
    /// Time of the last change of the content, in seconds and nanoseconds.
    modified: (i64, i64),
    size: u64,
}

impl Stamp {
    /// Returns the size of the file in bytes.
    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// Returns whether a write now could leave the stamp unchanged.
    pub(super) fn is_recent(&self) -> bool {
        let (Ok(seconds), Ok(nanoseconds)) = (u64::try_from(self.changed.0), u32::try_from(self.changed.1)) else {
            return false;
        };
        let changed = UNIX_EPOCH + Duration::new(seconds, nanoseconds);
        // A time in the future comes from the clock of another machine, so it does not show how recent the write is.
        SystemTime::now().duration_since(changed).is_ok_and(|age| age < TICK)
    }
}

/// The result of a scan.
#[derive(Debug, Default)]
pub(super) struct Scan {
    /// Manifests: `.yaml`, `.yml` and `.json` files that are not hidden. Symbolic links are followed, because the files
    /// of a mounted `ConfigMap` are symbolic links.
    pub(super) files: BTreeMap<PathBuf, Stamp>,
    /// Directories to watch.
    pub(super) directories: Vec<PathBuf>,
    /// Paths that could not be read. The objects that were read from these paths earlier stay in effect.
    pub(super) unreadable: Vec<(PathBuf, ReadError)>,
}

/// Scans the tree.
///
/// # Errors
/// If the root directory cannot be listed.
pub(super) fn scan(root: &Path) -> io::Result<Scan> {
    let mut scan = Scan::default();
    let mut visited = HashSet::new();
    let metadata = fs::metadata(root)?;
    visited.insert(inode(&metadata));
    walk(root, fs::read_dir(root)?, &mut visited, &mut scan);
    Ok(scan)
}

fn walk(directory: &Path, entries: fs::ReadDir, visited: &mut HashSet<(u64, u64)>, scan: &mut Scan) {
    scan.directories.push(directory.to_owned());
    for entry in entries {
        let path = match entry {
            Ok(entry) => entry.path(),
            Err(error) => {
                scan.unreadable.push((directory.to_owned(), error.into()));
                continue;
            }
        };
        let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if hidden {
            continue;
        }
        match fs::metadata(&path) {
            Ok(metadata) if metadata.is_dir() => {
                // Prevents an endless walk through a link to a parent directory.
                if visited.insert(inode(&metadata)) {
                    match fs::read_dir(&path) {
                        Ok(entries) => walk(&path, entries, visited, scan),
                        Err(error) => scan.unreadable.push((path, error.into())),
                    }
                }
            }
            Ok(metadata) if is_manifest(&path) => match other_than_regular(metadata.file_type()) {
                None => {
                    scan.files.insert(path, stamp(&metadata));
                }
                Some(other) => scan.unreadable.push((path, ReadError::NotRegular(other))),
            },
            Ok(_) => {}
            // The file was removed after the listing, or the link is broken: skipped.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => scan.unreadable.push((path, error.into())),
        }
    }
}

fn inode(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

fn stamp(metadata: &Metadata) -> Stamp {
    Stamp {
        inode: inode(metadata),
        changed: (metadata.ctime(), metadata.ctime_nsec()),
        modified: (metadata.mtime(), metadata.mtime_nsec()),
        size: metadata.size(),
    }
}
