//! Mirrors a directory of manifests to the server's objects.

use std::collections::BTreeMap;
use std::fs::{self, Metadata};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use inotify::{Inotify, WatchMask};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::Value;
use thiserror::Error;

use crate::resource::Resource;
use crate::shared::Shared;
use crate::store::identify;

/// How often the thread checks whether it should stop, in milliseconds.
const POLL_MILLISECONDS: u16 = 100;

/// A scan always reads the files that were modified within this time before the scan. Reason: if a file is written
/// twice within the resolution of its modification time, the second write may leave inode, size and time unchanged.
const RECENT: Duration = Duration::from_secs(1);

/// Why a directory cannot be mirrored.
#[derive(Debug, Error)]
#[error("cannot mirror {directory}: {source}; it must be a directory of YAML or JSON files")]
pub struct MirrorError {
    /// The directory.
    pub directory: PathBuf,
    /// The cause.
    #[source]
    pub source: io::Error,
}

/// Keeps a server's objects in sync with a directory until this value is dropped. Objects from other sources are not
/// changed.
#[derive(Debug)]
pub struct Mirror {
    directory: Arc<Mutex<Directory>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// Identifies an object: its resource, and `namespace/name`.
type Key = (Resource, String);

#[derive(Debug)]
struct Directory {
    shared: Arc<Shared>,
    path: PathBuf,
    files: BTreeMap<PathBuf, File>,
    /// The objects that the mirror has applied to the server.
    applied: BTreeMap<Key, Value>,
    /// The errors of each file.
    diagnostics: BTreeMap<PathBuf, String>,
    /// The files that the last scan could not read, with the errors. Their previous objects are kept.
    unreadable: BTreeMap<PathBuf, String>,
}

#[derive(Debug)]
struct File {
    /// Inode, size and modification time.
    stamp: (u64, u64, i64, i64),
    text: String,
    objects: Vec<(Key, Value)>,
}

impl Mirror {
    pub(crate) fn start(shared: Arc<Shared>, path: &Path) -> Result<Self, MirrorError> {
        let failed = |source| MirrorError { directory: path.to_owned(), source };
        let inotify = Inotify::init().map_err(failed)?;
        let mask = WatchMask::CLOSE_WRITE | WatchMask::MODIFY | WatchMask::MOVE | WatchMask::CREATE | WatchMask::DELETE;
        inotify.watches().add(path, mask).map_err(failed)?;
        let (files, applied) = (BTreeMap::new(), BTreeMap::new());
        let (diagnostics, unreadable) = (BTreeMap::new(), BTreeMap::new());
        let mut directory = Directory { shared, path: path.to_owned(), files, applied, diagnostics, unreadable };
        directory.rescan().map_err(failed)?;
        let directory = Arc::new(Mutex::new(directory));
        let stop = Arc::new(AtomicBool::new(false));
        let (shared_directory, stopped) = (directory.clone(), stop.clone());
        let thread = std::thread::Builder::new().name("apiserver-mirror".to_owned());
        let thread = thread.spawn(move || follow(inotify, &shared_directory, &stopped)).map_err(failed)?;
        Ok(Self { directory, stop, thread: Some(thread) })
    }

    /// Applies the current manifests of the directory and returns the errors. If a file cannot be read or is not valid
    /// YAML, its previous objects are kept.
    ///
    /// # Errors
    /// If the directory cannot be listed.
    pub fn sync(&self) -> Result<Vec<String>, MirrorError> {
        let mut directory = locked(&self.directory);
        let path = directory.path.clone();
        directory.rescan().map_err(|source| MirrorError { directory: path, source })?;
        let errors = directory.diagnostics.iter().chain(&directory.unreadable);
        Ok(errors.map(|(path, error)| format!("{}: {error}", path.display())).collect())
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn locked(directory: &Mutex<Directory>) -> MutexGuard<'_, Directory> {
    directory.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Applies the manifests after each change in the directory.
fn follow(mut inotify: Inotify, directory: &Mutex<Directory>, stop: &AtomicBool) {
    let mut buffer = [0; 4096];
    while !stop.load(Ordering::Relaxed) {
        let mut events = [PollFd::new(inotify.as_fd(), PollFlags::POLLIN)];
        if poll(&mut events, PollTimeout::from(POLL_MILLISECONDS)).is_ok_and(|ready| ready == 0) {
            continue;
        }
        // The events are discarded: they only trigger a scan, which finds the changes.
        while inotify.read_events(&mut buffer).is_ok_and(|mut events| events.next().is_some()) {}
        // The scan fails if the directory was removed. Then all objects are kept.
        let _ = locked(directory).rescan();
    }
}

impl Directory {
    fn rescan(&mut self) -> io::Result<()> {
        let mut present = BTreeMap::new();
        for entry in fs::read_dir(&self.path)? {
            let path = entry?.path();
            let is_manifest =
                path.extension().is_some_and(|extension| ["yaml", "yml", "json"].iter().any(|one| extension == *one));
            if is_manifest && let Ok(metadata) = fs::metadata(&path) {
                present.insert(path, metadata);
            }
        }
        self.files.retain(|path, _| present.contains_key(path));
        self.diagnostics.retain(|path, _| present.contains_key(path));
        self.unreadable.clear();
        for (path, metadata) in present {
            self.read(path, &metadata);
        }
        self.apply_changes();
        Ok(())
    }

    fn read(&mut self, path: PathBuf, metadata: &Metadata) {
        let stamp = (metadata.ino(), metadata.size(), metadata.mtime(), metadata.mtime_nsec());
        let recent =
            metadata.modified().is_ok_and(|time| SystemTime::now().duration_since(time).is_ok_and(|age| age < RECENT));
        if !recent && self.files.get(&path).is_some_and(|file| file.stamp == stamp) {
            return;
        }
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            // The file was removed after the directory was listed.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return,
            Err(error) => {
                self.unreadable.insert(path, error.to_string());
                return;
            }
        };
        if let Some(file) = self.files.get_mut(&path).filter(|file| file.text == text) {
            file.stamp = stamp;
            return;
        }
        let mut diagnostics = Vec::new();
        match objects(&text, &mut diagnostics) {
            Ok(objects) => drop(self.files.insert(path.clone(), File { stamp, text, objects })),
            Err(error) => {
                diagnostics.push(error);
                match self.files.get_mut(&path) {
                    Some(file) => (file.stamp, file.text) = (stamp, text),
                    None => drop(self.files.insert(path.clone(), File { stamp, text, objects: Vec::new() })),
                }
            }
        }
        if diagnostics.is_empty() {
            self.diagnostics.remove(&path);
        } else {
            self.diagnostics.insert(path, diagnostics.join("; "));
        }
    }

    /// Applies each new or changed object of the files to the server, and deletes applied objects that no file contains
    /// any more. If two files contain the same object, the object of the file that sorts last is applied.
    fn apply_changes(&mut self) {
        let objects = self.files.values().flat_map(|file| &file.objects);
        let wanted: BTreeMap<_, _> = objects.map(|(key, value)| (key, value)).collect();
        let removed: Vec<Key> = self.applied.keys().filter(|key| !wanted.contains_key(key)).cloned().collect();
        let new: Vec<(Key, Value)> = wanted
            .into_iter()
            .filter(|(key, value)| self.applied.get(key) != Some(value))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
        if removed.is_empty() && new.is_empty() {
            return;
        }
        self.shared.change(|state| {
            for (key, value) in new {
                // The object was already checked when the file was read.
                let _ = state.store.apply(value.clone());
                self.applied.insert(key, value);
            }
            for key in removed {
                state.store.delete(key.0, &key.1);
                self.applied.remove(&key);
            }
        });
    }
}

fn objects(text: &str, diagnostics: &mut Vec<String>) -> Result<Vec<(Key, Value)>, String> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(text).map_err(|error| error.to_string())?;
    let mut objects = Vec::new();
    for document in documents {
        flatten(document, &mut objects, diagnostics);
    }
    Ok(objects)
}

/// Adds the objects of a document, which can be a list of objects.
fn flatten(document: Value, objects: &mut Vec<(Key, Value)>, diagnostics: &mut Vec<String>) {
    match document {
        Value::Null => {}
        Value::Object(mut list) if list.get("items").is_some_and(Value::is_array) => {
            if let Some(Value::Array(items)) = list.remove("items") {
                for item in items {
                    flatten(item, objects, diagnostics);
                }
            }
        }
        other => match identify(&other) {
            Ok(key) => objects.push((key, other)),
            Err(error) => diagnostics.push(error.to_string()),
        },
    }
}
