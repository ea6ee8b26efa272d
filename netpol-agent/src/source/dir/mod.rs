//! `dir:PATH`: a directory tree of manifests. What its files say is what there is.
//!
//! Any hint leads to one scan; files whose stamp changed are read. A tree or file that cannot be read keeps its last
//! content: an unmounted volume must not open pods.

mod scan;
mod store;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use netpol_policy::manifest;
use netpol_policy::model::{Object, Severity};
use netpol_policy::world::Event;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};

use super::{Batch, SourceError};
use scan::{Stamp, scan};
use store::{Content, Outcome, Store};
use watch::Watch;

/// Quiet for this long: a burst of writes is over.
const QUIET: Duration = Duration::from_millis(20);
/// A burst is looked into after this long, over or not.
const BURST: Duration = Duration::from_millis(200);
/// What no event told is found after this long.
const RESCAN: Duration = Duration::from_secs(15);
/// Files still being written are looked at again after this long.
const BUSY: Duration = Duration::from_millis(250);

/// Reads the tree and goes on watching it in a task.
///
/// # Errors
/// Where the directory cannot be listed or watched.
pub fn start(root: &Path) -> Result<mpsc::Receiver<Batch>, SourceError> {
    let failed = |verb| {
        let path = root.to_owned();
        move |source| SourceError::Dir { verb, path, source }
    };
    let mut watch = Watch::new().map_err(failed("watch"))?;
    watch.add(root).map_err(failed("watch"))?;
    let mut tree = Tree { root: root.to_owned(), stamps: BTreeMap::new(), store: Store::default(), watch, busy: false };
    tree.look().map_err(failed("list"))?;
    let (sender, receiver) = mpsc::channel(16);
    let first = vec![Event::Reset(tree.store.objects())];
    tokio::spawn(async move {
        if sender.send(first).await.is_ok() {
            tree.follow(&sender).await;
        }
    });
    Ok(receiver)
}

#[derive(Debug)]
struct Tree {
    root: PathBuf,
    stamps: BTreeMap<PathBuf, Stamp>,
    store: Store,
    watch: Watch,
    busy: bool,
}

impl Tree {
    async fn follow(mut self, sender: &mpsc::Sender<Batch>) {
        loop {
            let wait = if self.busy { BUSY } else { RESCAN };
            match timeout(wait, self.watch.changed()).await {
                Ok(Ok(())) => self.settle().await,
                Ok(Err(error)) => {
                    tracing::error!(%error, "inotify failed; changes are found by looking every {RESCAN:?}");
                    sleep(RESCAN).await;
                }
                Err(_) => {}
            }
            match self.look() {
                Ok(events) if events.is_empty() => {}
                Ok(events) => {
                    if sender.send(events).await.is_err() {
                        return;
                    }
                }
                Err(error) => {
                    tracing::error!(directory = %self.root.display(), %error,
                        "cannot list the manifests; what they said last stays in force");
                    sleep(BUSY).await;
                }
            }
        }
    }

    async fn settle(&mut self) {
        let begun = Instant::now();
        while begun.elapsed() < BURST && matches!(timeout(QUIET, self.watch.changed()).await, Ok(Ok(()))) {}
    }

    /// Scans, reads what changed and tells what that means.
    fn look(&mut self) -> std::io::Result<Vec<Event>> {
        let found = scan(&self.root)?;
        for directory in &found.directories {
            if let Err(error) = self.watch.add(directory) {
                tracing::warn!(directory = %directory.display(), %error,
                    "cannot watch it; changes are found by looking every {RESCAN:?} (fs.inotify.max_user_watches?)");
            }
        }
        for (path, error) in &found.unreadable {
            tracing::error!(path = %path.display(), %error, "cannot read it; what it said last stays in force");
        }
        let mut events = Vec::new();
        let gone: Vec<PathBuf> = self
            .store
            .paths()
            .filter(|path| !found.files.contains_key(*path))
            .filter(|path| !found.unreadable.iter().any(|(unreadable, _)| path.starts_with(unreadable)))
            .map(Path::to_owned)
            .collect();
        for path in gone {
            self.stamps.remove(&path);
            tell(self.store.remove(&path), &mut events);
        }
        self.busy = false;
        for (path, stamp) in found.files {
            if self.stamps.get(&path) == Some(&stamp) {
                continue;
            }
            if self.watch.is_being_written(&path) {
                self.busy = true;
                continue;
            }
            match std::fs::read_to_string(&path) {
                Ok(text) => tell(self.store.put(&path, understand(&text, &path)), &mut events),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                Err(error) => {
                    let errors = vec![format!("{}: cannot read it: {error}", path.display())];
                    tell(self.store.put(&path, Content { objects: Vec::new(), errors, broken: true }), &mut events);
                }
            }
            self.stamps.insert(path, stamp);
        }
        Ok(events)
    }
}

/// A policy that is understood in part counts as it is, and isolates; a document that gave no object at all means that
/// the file is broken.
fn understand(text: &str, path: &Path) -> Content {
    let parsed = manifest::parse(text, &path.to_string_lossy());
    let objects: Vec<Object> = parsed.objects.into_iter().map(|located| located.object).collect();
    let names: BTreeSet<String> = objects.iter().map(|object| object.key().to_string()).collect();
    let broken = parsed.errors.iter().any(|error| {
        error.severity == Severity::Error && error.object.as_ref().is_none_or(|name| !names.contains(name))
    });
    Content { objects, errors: parsed.errors.iter().map(ToString::to_string).collect(), broken }
}

fn tell(outcome: Outcome, events: &mut Vec<Event>) {
    for warning in outcome.warnings {
        tracing::warn!("{warning}");
    }
    events.extend(outcome.events);
}
