//! Reads files, and replaces them atomically.

use std::fs::{self, File, Metadata, OpenOptions, Permissions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use netpol_cni::PLUGIN;

use crate::conflicts::cni::MAX_SIZE;

/// Permissions of the executable of the plugin `netpol-cni`.
const EXECUTABLE: u32 = 0o755;

/// Reads a CNI configuration.
pub(super) fn read(path: &Path) -> io::Result<(String, Metadata)> {
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() || metadata.len() > MAX_SIZE {
        return Err(io::Error::new(ErrorKind::InvalidData, "not a regular file, or too large"));
    }
    let mut text = String::new();
    file.take(MAX_SIZE).read_to_string(&mut text)?;
    Ok((text, metadata))
}

/// Replaces a file by a new one with this content, and with the owner and permissions of the old file.
pub(super) fn replace(path: &Path, content: &[u8], old: &Metadata) -> io::Result<()> {
    write(path, content, old.mode() & 0o7777, Some((old.uid(), old.gid())))
}

/// Writes an executable, unless the file at `path` already has this content and the permissions [`EXECUTABLE`]. Returns
/// whether the file was written.
pub(super) fn install_executable(path: &Path, content: &[u8]) -> io::Result<bool> {
    let has_permissions = fs::metadata(path).is_ok_and(|file| file.mode() & 0o777 == EXECUTABLE);
    if has_permissions && fs::read(path).is_ok_and(|present| present == content) {
        return Ok(false);
    }
    write(path, content, EXECUTABLE, None).map(|()| true)
}

fn write(path: &Path, content: &[u8], mode: u32, owner: Option<(u32, u32)>) -> io::Result<()> {
    let directory = path.parent().ok_or(ErrorKind::InvalidInput)?;
    let draft = Draft::new(directory)?;
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft.0)?;
    file.write_all(content)?;
    let created = file.metadata()?;
    // Changing the owner needs CAP_CHOWN, which the agent may lack.
    if let Some((user, group)) = owner.filter(|owner| *owner != (created.uid(), created.gid())) {
        fchown(&file, Some(user), Some(group))?;
    }
    file.set_permissions(Permissions::from_mode(mode))?;
    file.sync_all()?;
    fs::rename(&draft.0, path)?;
    // After this, the rename survives a power failure.
    File::open(directory)?.sync_all()
}

/// A file that is not complete yet. The container runtime ignores it, because its name does not have the extension of a
/// configuration. Dropping this value removes the file.
struct Draft(PathBuf);

impl Draft {
    fn new(directory: &Path) -> io::Result<Self> {
        let path = directory.join(format!(".{PLUGIN}.draft"));
        // An agent that was killed may have left this file.
        match fs::remove_file(&path) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => Ok(Self(path)),
        }
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // The file is absent if it was renamed.
        let _ = fs::remove_file(&self.0);
    }
}
