//! `dir:PATH`: a directory tree of manifests. What its files say is what there is.
//!
//! Any hint leads to one scan; files whose stamp changed are read. A tree or file that cannot be read keeps its last
//! content, and is looked at again; what is wrong with it is told once. Scans and reads are jobs of a blocking thread: they
//! take as long as the files are large.

mod scan;
mod store;
mod watch;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use netpol_files::{Limits, ReadError, read_regular};
use netpol_policy::manifest::{self, SkipReason};
use netpol_policy::model::Object;
use netpol_policy::world::Event;
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
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
/// Diagnostics that one look writes to the log; the rest is counted.
const LOGGED: usize = 500;

/// Reads the tree and goes on watching it in a task.
///
/// # Errors
/// Where the directory cannot be listed or watched.
pub fn start(root: &Path, limits: Limits) -> Result<Feed, SourceError> {
    let tree = Tree::open(root, limits)?;
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
    limits: Limits,
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
    /// Nothing is read yet.
    fn open(root: &Path, limits: Limits) -> Result<Self, SourceError> {
        let failed = |verb| move |source| SourceError::Dir { verb, path: root.to_owned(), source };
        let mut watch = Watch::new().map_err(failed("watch"))?;
        watch.add(root).map_err(failed("watch"))?;
        std::fs::read_dir(root).map_err(failed("list"))?;
        let (root, files, troubles) = (root.to_owned(), BTreeMap::new(), BTreeMap::new());
        Ok(Self { root, limits, files, store: Store::default(), watch, busy: false, troubles })
    }

    /// Looks on a blocking thread. `None` where that thread panicked.
    async fn look_aside(mut self) -> Option<(Self, Vec<Event>)> {
        let looked = spawn_blocking(move || {
            let events = self.look();
            (self, events)
        });
        looked.await.inspect_err(|error| tracing::error!(%error, "cannot read the manifests")).ok()
    }

    async fn follow(self, mut teller: Teller, mut asked: mpsc::Receiver<Inquiry>) {
        let Some((mut tree, _)) = self.look_aside().await else { return };
        if !teller.tell(vec![Event::Reset(tree.store.objects())], Instant::now()).await {
            return;
        }
        loop {
            let wait = if tree.busy { BUSY } else { RESCAN };
            let mut inquiry = None;
            tokio::select! {
                Some(asked) = asked.recv() => inquiry = Some(asked),
                changed = timeout(wait, tree.watch.changed()) => match changed {
                    Ok(Ok(())) => tree.settle().await,
                    Ok(Err(error)) => {
                        tracing::error!(%error, "inotify failed; changes are found by looking every {RESCAN:?}");
                        sleep(RESCAN).await;
                    }
                    Err(_) => {}
                },
            }
            let received = Instant::now();
            let Some((same, events)) = tree.look_aside().await else { return };
            tree = same;
            if !events.is_empty() && !teller.tell(events, received).await {
                return;
            }
            if let Some(Inquiry { subject, answer }) = inquiry {
                let exists = match &subject {
                    Subject::Object(key) => tree.store.contains(key),
                    Subject::Everything => true,
                };
                let known = match tree.troubles.iter().next() {
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
        let (mut events, mut warnings) = (Vec::new(), Vec::new());
        let gone: Vec<PathBuf> = self
            .store
            .paths()
            .filter(|path| !found.files.contains_key(*path))
            .filter(|path| !found.unreadable.iter().any(|(unreadable, _)| path.starts_with(unreadable)))
            .map(Path::to_owned)
            .collect();
        for path in gone {
            self.files.remove(&path);
            collect(self.store.remove(&path), &mut events, &mut warnings);
        }
        let mut unreadable = found.unreadable;
        let mut bytes_before = 0;
        self.busy = false;
        for (path, stamp) in found.files {
            if self.files.get(&path).is_some_and(|read| read.stamp == stamp && read.young.is_none()) {
                bytes_before += stamp.size();
                continue;
            }
            if self.watch.is_being_written(&path) {
                self.busy = true;
                continue;
            }
            match read_regular(&path, bytes_before, self.limits) {
                Ok(bytes) => {
                    bytes_before += bytes.len() as u64;
                    let outcome = self.read(path, stamp, bytes);
                    collect(outcome, &mut events, &mut warnings);
                }
                Err(ReadError::Io(error)) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => unreadable.push((path, error)),
            }
        }
        for (path, error) in unreadable {
            troubles.insert(path, format!("this file {error}; what it said last stays in force"));
        }
        if !events.is_empty() {
            events.extend(self.store.derive());
        }
        self.told(troubles);
        log(&warnings);
        events
    }

    fn read(&mut self, path: PathBuf, stamp: Stamp, bytes: Vec<u8>) -> Outcome {
        let (text, is_text) = match String::from_utf8(bytes) {
            Ok(text) => (text, true),
            Err(error) => (String::from_utf8_lossy(error.as_bytes()).into_owned(), false),
        };
        let before = self.files.get(&path).and_then(|read| read.young.as_ref());
        let outcome = if before == Some(&text) {
            Outcome::default()
        } else if is_text {
            self.store.put(&path, understand(&text, &path))
        } else {
            let errors = vec![format!("{}: it is not UTF-8", path.display())];
            self.store.put(&path, Content { objects: Vec::new(), errors, broken: true })
        };
        let young = stamp.is_young().then_some(text);
        self.busy |= young.is_some();
        self.files.insert(path, Read { stamp, young });
        outcome
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
    let mut errors: Vec<String> = parsed.errors.iter().map(ToString::to_string).collect();
    if parsed.skipped == Some(SkipReason::NotKubernetes) {
        errors.push(format!("{}: has no Kubernetes object in it; the file is skipped", path.display()));
    }
    // What replaces a policy and is none is a mistake rather than its removal.
    let broken = parsed.left_out > 0 || parsed.skipped.is_some();
    Content { objects, errors, broken }
}

fn collect(outcome: Outcome, events: &mut Vec<Event>, warnings: &mut Vec<String>) {
    events.extend(outcome.events);
    warnings.extend(outcome.warnings);
}

fn log(warnings: &[String]) {
    for warning in warnings.iter().take(LOGGED) {
        tracing::warn!("{warning}");
    }
    if warnings.len() > LOGGED {
        let more = warnings.len() - LOGGED;
        tracing::warn!(more, "more diagnostics of manifests are not logged; list them with `netpol lint -f DIR`");
    }
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
        let mut tree = Tree::open(&root, Limits::default()).expect("it can be listed");
        tree.look();
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
            assert!(tree.troubles[&file].contains("cannot be read"), "{:?}", tree.troubles);
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

    #[tokio::test]
    async fn what_is_no_regular_file_or_too_large_is_told_and_keeps_no_other_file_from_being_read() {
        let (_directory, mut tree) = tree(&[("a.yaml", "a")]);
        let root = tree.root.clone();
        let path = |name: &str| root.join(name);
        nix::unistd::mkfifo(&path("fifo.yaml"), nix::sys::stat::Mode::S_IRWXU).expect("it can be made");
        std::os::unix::fs::symlink("/dev/zero", path("zero.yaml")).expect("it can be linked");
        let sparse = fs::File::create(path("sparse.yaml")).and_then(|file| file.set_len(1 << 30));
        sparse.expect("it can be made");
        fs::write(path("b.yaml"), node("b")).expect("it can be written");
        for (name, says) in [
            ("fifo.yaml", "this file is a FIFO; only regular files are read; what it said last stays in force"),
            ("zero.yaml", "is a character device; only regular files are read"),
            ("sparse.yaml", "is larger than 128 MiB, the limit for one file (--max-manifest-file)"),
        ] {
            let file = path(name);
            tree.look();
            assert!(tree.troubles[&file].contains(says), "{:?}", tree.troubles);
        }
        assert_eq!(tree.store.objects().len(), 2);
        assert_eq!(tree.troubles.len(), 3);
    }

    #[tokio::test]
    async fn files_beyond_the_limit_for_all_are_told_and_read_when_there_is_room() {
        let (_directory, mut tree) = tree(&[]);
        tree.limits = Limits { file: 200, all: 200 };
        let text = |name: &str| format!("{}{}", node(name), " ".repeat(40));
        for name in ["a", "b", "c"] {
            fs::write(tree.root.join(format!("{name}.yaml")), text(name)).expect("it can be written");
        }
        assert_eq!(names(&tree.look()), ["+Node a", "+Node b"]);
        assert!(tree.troubles[&tree.root.join("c.yaml")].contains("--max-manifests"), "{:?}", tree.troubles);
        fs::remove_file(tree.root.join("a.yaml")).expect("it is there");
        assert_eq!(names(&tree.look()), ["-Node a", "+Node c"]);
        assert!(tree.troubles.is_empty());
    }

    #[test]
    fn a_file_of_bad_documents_costs_a_few_lines() {
        let text = "---\nkind: [\n".repeat(100_000) + "---\n" + &[node("n1"), node("n1")].join("\n---\n");
        let mut store = Store::default();
        let outcome = store.put(Path::new("a.yaml"), understand(&text, Path::new("a.yaml")));
        assert_eq!(names(&outcome.events), ["+Node n1"]);
        assert_eq!(outcome.warnings.len(), 12, "{:?}", outcome.warnings);
        assert!(outcome.warnings[10].contains("99990 more errors in this file"), "{:?}", outcome.warnings);
    }
}
