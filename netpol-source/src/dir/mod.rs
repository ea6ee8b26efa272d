//! The source `dir:PATH`: a directory tree of manifests. The objects in the files are the cluster state.
//!
//! Inotify events trigger a scan; a burst of events triggers only one. A scan reads the files that have a changed stamp
//! (inode, times and size). A directory or file that cannot be read keeps its last objects and is read again later. Its
//! error is logged once. Scans and reads run on a blocking thread, because they take long for large files.

mod scan;
mod store;
pub mod watch;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use netpol_files::{Limits, ReadError, read_regular};
use netpol_policy::cluster_state::Event;
use netpol_policy::manifest::{self, SkipReason};
use netpol_policy::model::Object;
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep, timeout};

use super::{Batch, Feed, Generation, SourceError, SourceQuery, SourceState, Subject, SubjectState};
use scan::{Scan, Stamp, scan};
use store::{FileChanges, FileContent, Store};
use watch::Watch;

/// A burst of writes is over after a pause of this length.
const QUIET: Duration = Duration::from_millis(20);
/// A scan starts after this time even if the burst continues.
const MAX_BURST: Duration = Duration::from_millis(200);
/// Interval of scans if there are no events.
const RESCAN: Duration = Duration::from_secs(15);
/// Interval of scans while a file is being written, directly after a file was written, and while the root directory
/// cannot be listed.
const RESCAN_SOON: Duration = Duration::from_millis(250);
/// Maximum number of diagnostics that one scan logs; the others are counted.
const MAX_LOGGED: usize = 500;

/// Reads the tree and watches it in a task.
///
/// # Errors
/// If the directory cannot be listed or watched.
pub fn start(root: &Path, limits: Limits) -> Result<Feed, SourceError> {
    let tree = Tree::open(root, limits)?;
    let (sender, batches) = mpsc::channel(16);
    let (queries, received_queries) = mpsc::channel(16);
    tokio::spawn(tree.run(BatchSender { sender, generation: Generation::default() }, received_queries));
    Ok(Feed { batches, queries, state: SourceState::default() })
}

/// Sends batches, and gives each one a number (its generation).
struct BatchSender {
    sender: mpsc::Sender<Batch>,
    generation: Generation,
}

impl BatchSender {
    /// Returns false if the receiver was dropped.
    async fn send(&mut self, events: Vec<Event>, received: Instant) -> bool {
        self.generation.0 += 1;
        let batch = Batch { generation: self.generation, events, after_resync: false, received: received.into_std() };
        self.sender.send(batch).await.is_ok()
    }
}

/// The directory tree, with what was read from its files.
#[derive(Debug)]
struct Tree {
    root: PathBuf,
    limits: Limits,
    files: BTreeMap<PathBuf, FileRead>,
    store: Store,
    watch: Watch,
    /// Whether the next scan should be early, without waiting for an event.
    rescan_soon: bool,
    /// Errors of the last scan, by path.
    failures: BTreeMap<PathBuf, String>,
}

/// A file that was read.
#[derive(Debug)]
struct FileRead {
    stamp: Stamp,
    /// The text, if the file was written so recently that another write may leave the same stamp.
    recent_text: Option<String>,
}

impl Tree {
    /// Opens and watches the tree, without reading files.
    fn open(root: &Path, limits: Limits) -> Result<Self, SourceError> {
        let failed = |verb| move |source| SourceError::Dir { verb, path: root.to_owned(), source };
        let mut watch = Watch::new().map_err(failed("watch"))?;
        watch.add(root).map_err(failed("watch"))?;
        std::fs::read_dir(root).map_err(failed("list"))?;
        let (root, files, failures) = (root.to_owned(), BTreeMap::new(), BTreeMap::new());
        Ok(Self { root, limits, files, store: Store::default(), watch, rescan_soon: false, failures })
    }

    /// Scans on a blocking thread. Returns `None` if the scan panicked.
    async fn scan_blocking(mut self) -> Option<(Self, Vec<Event>)> {
        let scanned = spawn_blocking(move || {
            let events = self.rescan();
            (self, events)
        });
        scanned.await.inspect_err(|error| tracing::error!(%error, "cannot read the manifests")).ok()
    }

    /// Sends all objects, and then a batch after each scan that finds changes. A query is answered after a scan, so the
    /// answer includes all changes before the query. Ends when the receiver of the batches was dropped.
    async fn run(self, mut sender: BatchSender, mut queries: mpsc::Receiver<SourceQuery>) {
        let Some((mut tree, _)) = self.scan_blocking().await else { return };
        if !sender.send(vec![Event::Reset(tree.store.objects())], Instant::now()).await {
            return;
        }
        loop {
            let wait = if tree.rescan_soon { RESCAN_SOON } else { RESCAN };
            let mut query = None;
            tokio::select! {
                Some(received) = queries.recv() => query = Some(received),
                changed = timeout(wait, tree.watch.changed()) => match changed {
                    Ok(Ok(())) => tree.wait_for_quiet().await,
                    Ok(Err(error)) => {
                        tracing::error!(%error, "inotify failed; scanning every {RESCAN:?} instead");
                        sleep(RESCAN).await;
                    }
                    Err(_) => {}
                },
            }
            let received = Instant::now();
            let Some((scanned_tree, events)) = tree.scan_blocking().await else { return };
            tree = scanned_tree;
            if !events.is_empty() && !sender.send(events, received).await {
                return;
            }
            if let Some(SourceQuery { subject, answer }) = query {
                let exists = match &subject {
                    Subject::Object(key) => tree.store.contains(key),
                    Subject::Everything => true,
                };
                let result = match tree.failures.iter().next() {
                    None => Ok(SubjectState { exists, generation: sender.generation }),
                    Some((path, failure)) => Err(format!("{}: {failure}", path.display())),
                };
                // The requester may have stopped waiting.
                let _ = answer.send(result);
            }
        }
    }

    /// Waits until the burst of writes is over, but at most [`MAX_BURST`].
    async fn wait_for_quiet(&mut self) {
        let start = Instant::now();
        while start.elapsed() < MAX_BURST && matches!(timeout(QUIET, self.watch.changed()).await, Ok(Ok(()))) {}
    }

    /// Scans the tree, reads changed files and returns the resulting events.
    fn rescan(&mut self) -> Vec<Event> {
        match scan(&self.root) {
            Ok(found) => self.apply_scan(found),
            Err(error) => {
                let text = format!("cannot list the manifests: {error}; their last objects stay in effect");
                self.report_failures(BTreeMap::from([(self.root.clone(), text)]));
                self.rescan_soon = true;
                Vec::new()
            }
        }
    }

    fn apply_scan(&mut self, found: Scan) -> Vec<Event> {
        let mut failures = BTreeMap::new();
        for directory in found.directories {
            if let Err(error) = self.watch.add(&directory) {
                let text = format!(
                    "cannot watch the directory: {error}; scanning every {RESCAN:?} instead (check fs.inotify.max_user_watches)"
                );
                failures.insert(directory, text);
            }
        }
        let (mut events, mut warnings) = (Vec::new(), Vec::new());
        let removed: Vec<PathBuf> = self
            .store
            .paths()
            .filter(|path| !found.files.contains_key(*path))
            .filter(|path| !found.unreadable.iter().any(|(unreadable, _)| path.starts_with(unreadable)))
            .map(Path::to_owned)
            .collect();
        for path in removed {
            self.files.remove(&path);
            add_changes(self.store.remove(&path), &mut events, &mut warnings);
        }
        let mut unreadable = found.unreadable;
        let mut bytes_before = 0;
        self.rescan_soon = false;
        for (path, stamp) in found.files {
            if self.files.get(&path).is_some_and(|read| read.stamp == stamp && read.recent_text.is_none()) {
                bytes_before += stamp.size();
                continue;
            }
            if self.watch.is_being_written(&path) {
                self.rescan_soon = true;
                continue;
            }
            match read_regular(&path, bytes_before, self.limits) {
                Ok(bytes) => {
                    bytes_before += bytes.len() as u64;
                    let changes = self.apply_file(path, stamp, bytes);
                    add_changes(changes, &mut events, &mut warnings);
                }
                Err(ReadError::Io(error)) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => unreadable.push((path, error)),
            }
        }
        for (path, error) in unreadable {
            let kind = if path.is_dir() { "directory" } else { "file" };
            failures.insert(path, format!("this {kind} {error}; its last objects stay in effect"));
        }
        if !events.is_empty() {
            events.extend(self.store.derive());
        }
        self.report_failures(failures);
        log(&warnings);
        events
    }

    /// Parses a file and returns the changes of objects.
    fn apply_file(&mut self, path: PathBuf, stamp: Stamp, bytes: Vec<u8>) -> FileChanges {
        let (text, is_text) = match String::from_utf8(bytes) {
            Ok(text) => (text, true),
            Err(error) => (String::from_utf8_lossy(error.as_bytes()).into_owned(), false),
        };
        let before = self.files.get(&path).and_then(|read| read.recent_text.as_ref());
        let changes = if before == Some(&text) {
            FileChanges::default()
        } else if is_text {
            self.store.set_file(&path, parse_file(&text, &path))
        } else {
            let errors = vec![format!("{}: the file is not UTF-8; save it as UTF-8", path.display())];
            self.store.set_file(&path, FileContent { objects: Vec::new(), errors, incomplete: true })
        };
        let recent_text = stamp.is_recent().then_some(text);
        self.rescan_soon |= recent_text.is_some();
        self.files.insert(path, FileRead { stamp, recent_text });
        changes
    }

    /// Logs new and resolved failures.
    fn report_failures(&mut self, failures: BTreeMap<PathBuf, String>) {
        for (path, failure) in failures.iter().filter(|(path, failure)| self.failures.get(*path) != Some(*failure)) {
            tracing::error!(path = %path.display(), "{failure}");
        }
        for path in self.failures.keys().filter(|path| !failures.contains_key(*path)) {
            tracing::info!(path = %path.display(), "the error is resolved");
        }
        self.failures = failures;
    }
}

/// Parses a file. A policy with diagnostics is used as parsed, and isolates its pods. If a document yields no object at
/// all, the file is incomplete: previous objects of the file stay in effect.
fn parse_file(text: &str, path: &Path) -> FileContent {
    let parsed = manifest::parse(text, &path.to_string_lossy());
    let objects: Vec<Object> = parsed.objects.into_iter().map(|located| located.object).collect();
    let mut errors: Vec<String> = parsed.errors.iter().map(ToString::to_string).collect();
    if parsed.skipped == Some(SkipReason::NotKubernetes) {
        errors.push(format!("{}: the file has no Kubernetes object; skipped", path.display()));
    }
    // If a file that had objects now has none, this is probably a mistake. So its previous objects stay.
    let incomplete = parsed.invalid_documents > 0 || parsed.skipped.is_some();
    FileContent { objects, errors, incomplete }
}

fn add_changes(changes: FileChanges, events: &mut Vec<Event>, warnings: &mut Vec<String>) {
    events.extend(changes.events);
    warnings.extend(changes.warnings);
}

fn log(warnings: &[String]) {
    for warning in warnings.iter().take(MAX_LOGGED) {
        tracing::warn!("{warning}");
    }
    if warnings.len() > MAX_LOGGED {
        let more = warnings.len() - MAX_LOGGED;
        tracing::warn!(more, "further diagnostics of manifests were not logged; list them with `netpol lint -f DIR`");
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn node(name: &str) -> String {
        format!("{{apiVersion: v1, kind: Node, metadata: {{name: {name}}}}}")
    }

    /// Returns `+OBJECT` for each added or changed object, and `-OBJECT` for each deleted object.
    fn names(events: &[Event]) -> Vec<String> {
        let name = |event: &Event| match event {
            Event::Apply(object) => format!("+{}", object.key()),
            Event::Delete(key) => format!("-{key}"),
            other => format!("{other:?}"),
        };
        events.iter().map(name).collect()
    }

    /// Returns a tree that was scanned once. Each file, given as its name and the name of a node, has one Node object.
    fn tree(files: &[(&str, &str)]) -> (tempfile::TempDir, Tree) {
        let directory = tempfile::tempdir().expect("cannot create a temporary directory");
        let root = directory.path().join("manifests");
        fs::create_dir(&root).expect("cannot create the directory");
        for (file, name) in files {
            fs::write(root.join(file), node(name)).expect("cannot write the file");
        }
        let mut tree = Tree::open(&root, Limits::default()).expect("cannot list the directory");
        tree.rescan();
        (directory, tree)
    }

    #[tokio::test]
    async fn a_removed_directory_keeps_its_last_objects() {
        let (directory, mut tree) = tree(&[("a.yaml", "a")]);
        let moved_root = directory.path().join("aside");
        fs::rename(&tree.root, &moved_root).expect("cannot move the directory");
        assert_eq!(names(&tree.rescan()), [""; 0]);
        assert!(
            tree.rescan_soon && tree.failures.contains_key(&tree.root),
            "the error must be recorded, and the next scan must be early"
        );
        fs::write(moved_root.join("b.yaml"), node("b")).expect("cannot write the file");
        fs::rename(&moved_root, &tree.root).expect("cannot move the directory");
        assert_eq!(names(&tree.rescan()), ["+Node b"]);
        assert!(tree.failures.is_empty());
    }

    #[tokio::test]
    async fn an_unreadable_file_keeps_its_last_objects_and_is_read_again() {
        let (_directory, mut tree) = tree(&[("a.yaml", "a")]);
        let file = tree.root.join("a.yaml");
        fs::remove_file(&file).expect("cannot remove the file");
        // Reading this file from its start fails with an I/O error, also for root.
        std::os::unix::fs::symlink("/proc/self/mem", &file).expect("cannot create the link");
        for _ in 0..2 {
            assert_eq!(names(&tree.rescan()), [""; 0]);
            assert!(tree.failures[&file].contains("cannot be read"), "{:?}", tree.failures);
        }
        assert_eq!(tree.store.objects().len(), 1);
    }

    #[tokio::test]
    async fn a_write_directly_after_a_scan_is_detected() {
        let (_directory, mut tree) = tree(&[("a.yaml", "n0")]);
        for round in 1..10 {
            // The new text has the same length, and the clock for file timestamps may not have advanced.
            fs::write(tree.root.join("a.yaml"), node(&format!("n{round}"))).expect("cannot write the file");
            assert_eq!(names(&tree.rescan()), [format!("-Node n{}", round - 1), format!("+Node n{round}")]);
        }
    }

    #[tokio::test]
    async fn special_and_oversized_files_are_reported_and_other_files_are_read() {
        let (_directory, mut tree) = tree(&[("a.yaml", "a")]);
        let root = tree.root.clone();
        let path = |name: &str| root.join(name);
        nix::unistd::mkfifo(&path("fifo.yaml"), nix::sys::stat::Mode::S_IRWXU).expect("cannot create the file");
        std::os::unix::fs::symlink("/dev/zero", path("zero.yaml")).expect("cannot create the link");
        let sparse = fs::File::create(path("sparse.yaml")).and_then(|file| file.set_len(1 << 30));
        sparse.expect("cannot create the file");
        fs::write(path("b.yaml"), node("b")).expect("cannot write the file");
        for (name, expected) in [
            ("fifo.yaml", "this file is a FIFO; only regular files are read; its last objects stay in effect"),
            ("zero.yaml", "is a character device; only regular files are read"),
            ("sparse.yaml", "is larger than 128 MiB, the limit for one file (--max-manifest-file)"),
        ] {
            let file = path(name);
            tree.rescan();
            assert!(tree.failures[&file].contains(expected), "{:?}", tree.failures);
        }
        assert_eq!(tree.store.objects().len(), 2);
        assert_eq!(tree.failures.len(), 3);
    }

    #[tokio::test]
    async fn files_beyond_the_total_limit_are_reported_and_read_when_there_is_room() {
        let (_directory, mut tree) = tree(&[]);
        tree.limits = Limits { file: 200, all: 200 };
        let text = |name: &str| format!("{}{}", node(name), " ".repeat(40));
        for name in ["a", "b", "c"] {
            fs::write(tree.root.join(format!("{name}.yaml")), text(name)).expect("cannot write the file");
        }
        assert_eq!(names(&tree.rescan()), ["+Node a", "+Node b"]);
        assert!(tree.failures[&tree.root.join("c.yaml")].contains("--max-manifests"), "{:?}", tree.failures);
        fs::remove_file(tree.root.join("a.yaml")).expect("cannot remove the file");
        assert_eq!(names(&tree.rescan()), ["-Node a", "+Node c"]);
        assert!(tree.failures.is_empty());
    }

    #[test]
    fn a_file_of_invalid_documents_logs_only_a_few_lines() {
        let text = "---\nkind: [\n".repeat(100_000) + "---\n" + &[node("n1"), node("n1")].join("\n---\n");
        let mut store = Store::default();
        let changes = store.set_file(Path::new("a.yaml"), parse_file(&text, Path::new("a.yaml")));
        assert_eq!(names(&changes.events), ["+Node n1"]);
        // 10 errors, the number of further errors, and the second definition of the node.
        assert_eq!(changes.warnings.len(), 12, "{:?}", changes.warnings);
        assert!(changes.warnings[10].contains("99990 more errors like this one in the file"), "{:?}", changes.warnings);
    }
}
