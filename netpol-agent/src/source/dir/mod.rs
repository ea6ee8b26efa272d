//! `dir:PATH`: a directory tree of manifests. What its files say is what there is.
//!
//! Any hint leads to one scan; files whose stamp changed are read. A tree or file that cannot be read keeps its last
//! content, and is looked at again; what is wrong with it is told once.

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

use super::{Batch, Feed, Inquiry, Known, Revision, SourceError, SourceState, Subject};
use scan::{Scan, Stamp, scan};
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
pub fn start(root: &Path) -> Result<Feed, SourceError> {
    let tree = Tree::open(root)?;
    let (sender, batches) = mpsc::channel(16);
    let (inquiries, asked) = mpsc::channel(16);
    tokio::spawn(tree.follow(Teller { sender, revision: Revision::default() }, asked));
    Ok(Feed { batches, inquiries, state: SourceState::default() })
}

/// Numbers batches and sends them.
struct Teller {
    sender: mpsc::Sender<Batch>,
    revision: Revision,
}

impl Teller {
    /// False where nobody listens any more.
    async fn tell(&mut self, events: Vec<Event>, received: Instant) -> bool {
        self.revision.0 += 1;
        let batch = Batch { revision: self.revision, events, after_gap: false, received: received.into_std() };
        self.sender.send(batch).await.is_ok()
    }
}

#[derive(Debug)]
struct Tree {
    root: PathBuf,
    files: BTreeMap<PathBuf, Read>,
    store: Store,
    watch: Watch,
    /// Something is to be looked at again soon, whether or not it changes.
    busy: bool,
    /// What the last look could not do.
    troubles: BTreeMap<PathBuf, String>,
}

/// What was read of a file.
#[derive(Debug)]
struct Read {
    stamp: Stamp,
    /// Its text, where the stamp was so young that a write after it may have left the same.
    young: Option<String>,
}

impl Tree {
    fn open(root: &Path) -> Result<Self, SourceError> {
        let failed = |verb| move |source| SourceError::Dir { verb, path: root.to_owned(), source };
        let mut watch = Watch::new().map_err(failed("watch"))?;
        watch.add(root).map_err(failed("watch"))?;
        let found = scan(root).map_err(failed("list"))?;
        let (files, troubles) = (BTreeMap::new(), BTreeMap::new());
        let mut tree = Self { root: root.to_owned(), files, store: Store::default(), watch, busy: false, troubles };
        tree.take_in(found);
        Ok(tree)
    }

    async fn follow(mut self, mut teller: Teller, mut asked: mpsc::Receiver<Inquiry>) {
        if !teller.tell(vec![Event::Reset(self.store.objects())], Instant::now()).await {
            return;
        }
        loop {
            let wait = if self.busy { BUSY } else { RESCAN };
            let mut inquiry = None;
            tokio::select! {
                Some(asked) = asked.recv() => inquiry = Some(asked),
                changed = timeout(wait, self.watch.changed()) => match changed {
                    Ok(Ok(())) => self.settle().await,
                    Ok(Err(error)) => {
                        tracing::error!(%error, "inotify failed; changes are found by looking every {RESCAN:?}");
                        sleep(RESCAN).await;
                    }
                    Err(_) => {}
                },
            }
            let received = Instant::now();
            let events = self.look();
            if !events.is_empty() && !teller.tell(events, received).await {
                return;
            }
            if let Some(Inquiry { subject, answer }) = inquiry {
                let exists = match &subject {
                    Subject::Object(key) => self.store.contains(key),
                    Subject::Everything => true,
                };
                let known = match self.troubles.iter().next() {
                    None => Ok(Known { exists, revision: teller.revision }),
                    Some((path, trouble)) => Err(format!("{}: {trouble}", path.display())),
                };
                // Whoever asked may have gone.
                let _ = answer.send(known);
            }
        }
    }

    async fn settle(&mut self) {
        let begun = Instant::now();
        while begun.elapsed() < BURST && matches!(timeout(QUIET, self.watch.changed()).await, Ok(Ok(()))) {}
    }

    /// Scans, reads what changed and tells what that means.
    fn look(&mut self) -> Vec<Event> {
        match scan(&self.root) {
            Ok(found) => self.take_in(found),
            Err(error) => {
                let text = format!("cannot list the manifests: {error}; what they said last stays in force");
                self.told(BTreeMap::from([(self.root.clone(), text)]));
                self.busy = true;
                Vec::new()
            }
        }
    }

    fn take_in(&mut self, found: Scan) -> Vec<Event> {
        let mut troubles = BTreeMap::new();
        for directory in found.directories {
            if let Err(error) = self.watch.add(&directory) {
                let text = format!(
                    "cannot watch it: {error}; changes are found by looking every {RESCAN:?} (fs.inotify.max_user_watches?)"
                );
                troubles.insert(directory, text);
            }
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
            self.files.remove(&path);
            tell(self.store.remove(&path), &mut events);
        }
        let mut unreadable = found.unreadable;
        self.busy = false;
        for (path, stamp) in found.files {
            if self.files.get(&path).is_some_and(|read| read.stamp == stamp && read.young.is_none()) {
                continue;
            }
            if self.watch.is_being_written(&path) {
                self.busy = true;
                continue;
            }
            match std::fs::read(&path) {
                Ok(bytes) => self.read(path, stamp, &bytes, &mut events),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => unreadable.push((path, error)),
            }
        }
        for (path, error) in unreadable {
            troubles.insert(path, format!("cannot read it: {error}; what it said last stays in force"));
        }
        self.told(troubles);
        events
    }

    fn read(&mut self, path: PathBuf, stamp: Stamp, bytes: &[u8], events: &mut Vec<Event>) {
        let text = String::from_utf8_lossy(bytes).into_owned();
        let before = self.files.get(&path).and_then(|read| read.young.as_ref());
        if before != Some(&text) {
            let content = if text.as_bytes() == bytes {
                understand(&text, &path)
            } else {
                let errors = vec![format!("{}: it is not UTF-8", path.display())];
                Content { objects: Vec::new(), errors, broken: true }
            };
            tell(self.store.put(&path, content), events);
        }
        let young = stamp.is_young().then_some(text);
        self.busy |= young.is_some();
        self.files.insert(path, Read { stamp, young });
    }

    /// Tells what is new of the troubles there are now.
    fn told(&mut self, troubles: BTreeMap<PathBuf, String>) {
        for (path, trouble) in troubles.iter().filter(|(path, trouble)| self.troubles.get(*path) != Some(*trouble)) {
            tracing::error!(path = %path.display(), "{trouble}");
        }
        for path in self.troubles.keys().filter(|path| !troubles.contains_key(*path)) {
            tracing::info!(path = %path.display(), "no longer in trouble");
        }
        self.troubles = troubles;
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

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn node(name: &str) -> String {
        format!("{{apiVersion: v1, kind: Node, metadata: {{name: {name}}}}}")
    }

    fn names(events: &[Event]) -> Vec<String> {
        let name = |event: &Event| match event {
            Event::Apply(object) => format!("+{}", object.key()),
            Event::Delete(key) => format!("-{key}"),
            other => format!("{other:?}"),
        };
        events.iter().map(name).collect()
    }

    fn tree(files: &[(&str, &str)]) -> (tempfile::TempDir, Tree) {
        let directory = tempfile::tempdir().expect("a directory");
        let root = directory.path().join("manifests");
        fs::create_dir(&root).expect("it can be made");
        for (file, name) in files {
            fs::write(root.join(file), node(name)).expect("it can be written");
        }
        let tree = Tree::open(&root).expect("it can be read");
        (directory, tree)
    }

    #[tokio::test]
    async fn a_directory_that_goes_away_as_a_whole_keeps_what_it_said() {
        let (directory, mut tree) = tree(&[("a.yaml", "a")]);
        let aside = directory.path().join("aside");
        fs::rename(&tree.root, &aside).expect("it can be moved");
        assert_eq!(names(&tree.look()), [""; 0]);
        assert!(tree.busy && tree.troubles.contains_key(&tree.root), "it is told, and looked for again soon");
        fs::write(aside.join("b.yaml"), node("b")).expect("it can be written");
        fs::rename(&aside, &tree.root).expect("it can be moved");
        assert_eq!(names(&tree.look()), ["+Node b"]);
        assert!(tree.troubles.is_empty());
    }

    #[tokio::test]
    async fn a_file_that_cannot_be_read_keeps_what_it_said_and_is_tried_again() {
        let (_directory, mut tree) = tree(&[("a.yaml", "a")]);
        let file = tree.root.join("a.yaml");
        fs::remove_file(&file).expect("it is there");
        // Reading it from its beginning is an I/O error, for root too.
        std::os::unix::fs::symlink("/proc/self/mem", &file).expect("it can be linked");
        for _ in 0..2 {
            assert_eq!(names(&tree.look()), [""; 0]);
            assert!(tree.troubles[&file].contains("cannot read it"), "{:?}", tree.troubles);
        }
        assert_eq!(tree.store.objects().len(), 1);
    }

    #[tokio::test]
    async fn a_write_right_after_a_look_is_seen() {
        let (_directory, mut tree) = tree(&[("a.yaml", "n0")]);
        for round in 1..10 {
            // As long as before, and within the same tick of the clock that stamps files.
            fs::write(tree.root.join("a.yaml"), node(&format!("n{round}"))).expect("it can be written");
            assert_eq!(names(&tree.look()), [format!("-Node n{}", round - 1), format!("+Node n{round}")]);
        }
    }
}
