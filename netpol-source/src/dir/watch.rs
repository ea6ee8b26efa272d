//! Watches a directory tree and reports when it should be scanned again.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use inotify::{EventMask, Inotify, WatchDescriptor, WatchMask};
use tokio::io::unix::AsyncFd;

/// A file that a process writes and does not close counts as being written for this time after the last write.
const MAX_WRITE_TIME: Duration = Duration::from_secs(2);

/// Watches directories, and tracks the files that are being written.
#[derive(Debug)]
pub struct Watch {
    inotify: AsyncFd<Inotify>,
    directories: HashMap<WatchDescriptor, PathBuf>,
    /// The files that are being written, with the time of the last write.
    writing: HashMap<PathBuf, Instant>,
}

impl Watch {
    /// Creates a watch without directories.
    ///
    /// # Errors
    /// If the kernel rejects the watch (`fs.inotify.max_user_instances`).
    pub fn new() -> io::Result<Self> {
        // SAFETY: the descriptor lives as long as the `Inotify`, which `AsyncFd` owns and which is never replaced.
        let inotify = unsafe { AsyncFd::register(Inotify::init()?) }?;
        Ok(Self { inotify, directories: HashMap::new(), writing: HashMap::new() })
    }

    /// Adds a directory, if it is not watched yet.
    ///
    /// # Errors
    /// If the kernel rejects the directory (`fs.inotify.max_user_watches`).
    pub fn add(&mut self, directory: &Path) -> io::Result<()> {
        let mask = WatchMask::CLOSE_WRITE
            | WatchMask::MODIFY
            | WatchMask::CREATE
            | WatchMask::DELETE
            | WatchMask::MOVE
            | WatchMask::ATTRIB
            | WatchMask::DELETE_SELF
            | WatchMask::MOVE_SELF
            | WatchMask::ONLYDIR;
        let descriptor = self.inotify.get_ref().watches().add(directory, mask)?;
        self.directories.insert(descriptor, directory.to_owned());
        Ok(())
    }

    /// Returns whether a process is writing the file.
    pub fn is_being_written(&mut self, path: &Path) -> bool {
        self.writing.retain(|_, last_write| last_write.elapsed() < MAX_WRITE_TIME);
        self.writing.contains_key(path)
    }

    /// Waits for a change that requires a scan.
    ///
    /// # Errors
    /// If inotify fails permanently.
    pub async fn changed(&mut self) -> io::Result<()> {
        loop {
            let mut ready = self.inotify.readable_mut().await?;
            let mut buffer = [0_u8; 4096];
            let events = match ready.get_inner_mut().read_events(&mut buffer) {
                Ok(events) => events,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    ready.clear_ready();
                    continue;
                }
                Err(error) => return Err(error),
            };
            let mut scan_needed = false;
            for event in events {
                if event.mask.contains(EventMask::IGNORED) {
                    self.directories.remove(&event.wd);
                    continue;
                }
                let path = match (self.directories.get(&event.wd), event.name) {
                    (Some(directory), Some(name)) => Some(directory.join(name)),
                    _ => None,
                };
                scan_needed |= needs_scan(&mut self.writing, event.mask, path);
            }
            if scan_needed {
                return Ok(());
            }
        }
    }
}

/// Returns whether an event requires a scan, and updates `writing`. A file that is being written is scanned when it is
/// closed.
fn needs_scan(writing: &mut HashMap<PathBuf, Instant>, mask: EventMask, path: Option<PathBuf>) -> bool {
    // Without a path, the event is about the directory itself, or the kernel has lost events.
    let Some(path) = path else { return true };
    if mask.contains(EventMask::MODIFY) {
        writing.insert(path, Instant::now());
        return false;
    }
    if mask.contains(EventMask::CREATE) && !mask.contains(EventMask::ISDIR) {
        // A new file that is still empty is scanned when it is closed. A new symbolic link, or a new hard link to a
        // file with content, is complete.
        return path.is_symlink() || std::fs::metadata(&path).is_ok_and(|file| file.len() > 0);
    }
    writing.remove(&path);
    true
}
