//! Tracks the objects in each file of a directory, and turns changed files into events. Does no I/O.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use netpol_policy::cluster_state::Event;
use netpol_policy::derived;
use netpol_policy::model::{Object, ObjectKey};

/// Maximum number of warnings of one kind about one file; the others are counted.
const MAX_WARNINGS: usize = 10;

/// The parsed content of a file.
#[derive(Clone, Debug, Default)]
pub(super) struct FileContent {
    /// The objects that were parsed.
    pub(super) objects: Vec<Object>,
    /// Errors, one line each, with file and line number.
    pub(super) errors: Vec<String>,
    /// Whether a document yielded no object: the file is invalid or only half written.
    pub(super) incomplete: bool,
}

/// The effects of a changed file.
#[derive(Debug, Default)]
pub(super) struct FileChanges {
    /// Changes of objects.
    pub(super) events: Vec<Event>,
    /// Warnings to log.
    pub(super) warnings: Vec<String>,
}

/// The objects of all files. If several files define the same object, the definition in the file with the path that
/// sorts last is used. Everywhere in netpol, the last definition of an object is used.
#[derive(Debug, Default)]
pub(super) struct Store {
    files: BTreeMap<PathBuf, BTreeMap<ObjectKey, Object>>,
    /// For each object, the files that contain it.
    files_with: BTreeMap<ObjectKey, BTreeSet<PathBuf>>,
    /// `EndpointSlice` objects derived for Services that have none in any file.
    derived: BTreeMap<ObjectKey, Object>,
}

impl Store {
    /// Adds or replaces a file. If the new content is incomplete, the previous objects of the file stay; if there are
    /// none, the objects that could be parsed are used.
    pub(super) fn set_file(&mut self, path: &Path, content: FileContent) -> FileChanges {
        let mut changes = FileChanges { warnings: content.errors, ..FileChanges::default() };
        if content.incomplete && self.files.get(path).is_some_and(|objects| !objects.is_empty()) {
            changes.warnings.push(format!(
                "{}: the file is invalid or incomplete; its last valid content stays in effect",
                path.display()
            ));
            return changes;
        }
        let (mut objects, mut duplicates) = (BTreeMap::new(), 0);
        for object in content.objects {
            let key = object.key();
            if objects.insert(key.clone(), object).is_some() {
                duplicates += 1;
                if duplicates <= MAX_WARNINGS {
                    changes.warnings.push(format!(
                        "{}: {key} is defined more than once; the last definition is used",
                        path.display()
                    ));
                }
            }
        }
        if duplicates > MAX_WARNINGS {
            changes.warnings.push(format!(
                "{}: number of further definitions of objects that were already defined: {}",
                path.display(),
                duplicates - MAX_WARNINGS
            ));
        }
        self.replace(path, objects, &mut changes);
        changes
    }

    /// Removes a file.
    pub(super) fn remove(&mut self, path: &Path) -> FileChanges {
        let mut changes = FileChanges::default();
        self.replace(path, BTreeMap::new(), &mut changes);
        self.files.remove(path);
        changes
    }

    /// Returns the paths of the known files.
    pub(super) fn paths(&self) -> impl Iterator<Item = &Path> {
        self.files.keys().map(PathBuf::as_path)
    }

    /// Returns the objects of all files, and the derived objects. If an object has several definitions, returns only
    /// the definition that is used.
    pub(super) fn objects(&self) -> Vec<Object> {
        self.defined_objects().chain(self.derived.values()).cloned().collect()
    }

    fn defined_objects(&self) -> impl Iterator<Item = &Object> {
        self.files_with.keys().filter_map(|key| self.effective(key))
    }

    /// Derives `EndpointSlice` objects for Services that have none in any file (docs/semantics.md, item 37). Must be
    /// called after each change of the objects of files. Returns the changes of derived objects.
    pub(super) fn derive(&mut self) -> Vec<Event> {
        let slices = derived::endpoint_slices(self.defined_objects()).into_iter().map(Object::Slice);
        let now: BTreeMap<ObjectKey, Object> = slices.map(|slice| (slice.key(), slice)).collect();
        let before = std::mem::replace(&mut self.derived, now);
        let gone = before.keys().filter(|key| !self.derived.contains_key(*key));
        let mut events: Vec<Event> = gone.cloned().map(Event::Delete).collect();
        let changed = self.derived.iter().filter(|(key, slice)| before.get(*key) != Some(*slice));
        events.extend(changed.map(|(_, slice)| Event::Apply(slice.clone())));
        events
    }

    /// Returns whether any file contains this object.
    pub(super) fn contains(&self, key: &ObjectKey) -> bool {
        self.files_with.contains_key(key)
    }

    /// Returns the definition that is used for an object.
    fn effective(&self, key: &ObjectKey) -> Option<&Object> {
        self.files.get(self.files_with.get(key)?.last()?)?.get(key)
    }

    /// Replaces the objects of a file. Adds the resulting events and warnings to `changes`.
    fn replace(&mut self, path: &Path, objects: BTreeMap<ObjectKey, Object>, changes: &mut FileChanges) {
        let old_keys = self.files.get(path).into_iter().flat_map(BTreeMap::keys);
        let keys: BTreeSet<ObjectKey> = old_keys.chain(objects.keys()).cloned().collect();
        let mut duplicates = 0;
        let before: Vec<Option<Object>> = keys.iter().map(|key| self.effective(key).cloned()).collect();
        for key in &keys {
            let files_with = self.files_with.entry(key.clone()).or_default();
            if !objects.contains_key(key) {
                files_with.remove(path);
            } else if files_with.insert(path.to_owned()) && files_with.len() > 1 {
                duplicates += 1;
                if duplicates <= MAX_WARNINGS {
                    changes
                        .warnings
                        .push(format!("{key} is defined in {}; the last definition is used", file_names(files_with)));
                }
            }
            if files_with.is_empty() {
                self.files_with.remove(key);
            }
        }
        if duplicates > MAX_WARNINGS {
            changes.warnings.push(format!(
                "{}: number of further objects of this file that are also defined in other files: {}",
                path.display(),
                duplicates - MAX_WARNINGS
            ));
        }
        self.files.insert(path.to_owned(), objects);
        for (key, before) in keys.into_iter().zip(before) {
            match (before, self.effective(&key)) {
                (before, Some(now)) if before.as_ref() != Some(now) => changes.events.push(Event::Apply(now.clone())),
                (Some(_), None) => changes.events.push(Event::Delete(key)),
                _ => {}
            }
        }
    }
}

/// Formats the names of two files. If there are more files, formats their number and the name of the last one.
fn file_names(files_with: &BTreeSet<PathBuf>) -> String {
    match (files_with.len(), files_with.first(), files_with.last()) {
        (2, Some(first), Some(last)) => format!("{} and {}", first.display(), last.display()),
        (count, _, Some(last)) => format!("{count} files, the last of which is {}", last.display()),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    //! sNN in the name of a test is an item of docs/semantics.md.

    use netpol_policy::model::Node;

    use super::*;

    fn node(name: &str) -> Object {
        Object::Node(Node { name: name.into(), addresses: Vec::new() })
    }

    fn node_at(name: &str, address: &str) -> Object {
        Object::Node(Node { name: name.into(), addresses: vec![address.parse().expect("the address is valid")] })
    }

    fn valid_content(objects: &[Object]) -> FileContent {
        FileContent { objects: objects.to_vec(), ..FileContent::default() }
    }

    fn delete_event(name: &str) -> Event {
        Event::Delete(ObjectKey::Node(name.into()))
    }

    #[test]
    fn a_changed_file_yields_events_only_for_changed_objects() {
        let mut store = Store::default();
        let path = Path::new("a.yaml");
        assert_eq!(store.set_file(path, valid_content(&[node("n1"), node("n2")])).events.len(), 2);
        let changes = store.set_file(path, valid_content(&[node("n1"), node("n3")]));
        assert_eq!(changes.events, [delete_event("n2"), Event::Apply(node("n3"))]);
        assert_eq!(store.remove(path).events, [delete_event("n1"), delete_event("n3")]);
    }

    #[test]
    fn s37_slices_are_derived_until_a_file_has_some() {
        let objects = |text: &str| {
            let parsed = netpol_policy::manifest::parse(text, "f");
            assert_eq!(parsed.errors, []);
            parsed.objects.into_iter().map(|located| located.object).collect::<Vec<_>>()
        };
        let pod = |name: &str, address: &str| {
            format!(
                "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, labels: {{app: db}}}}, status: {{podIP: {address}}}}}\n---\n"
            )
        };
        let service = "{apiVersion: v1, kind: Service, metadata: {name: db}, spec: {clusterIP: 10.96.0.1, selector: {app: db}, ports: [{port: 80}]}}";
        let slice = "{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: db-x, labels: {kubernetes.io/service-name: db}}, addressType: IPv4, endpoints: [], ports: []}";
        let mut store = Store::default();
        let (pods, services, slices) = (Path::new("a.yaml"), Path::new("b.yaml"), Path::new("c.yaml"));
        store.set_file(services, valid_content(&objects(service)));
        assert_eq!(store.derive(), []);
        store.set_file(pods, valid_content(&objects(&pod("a", "10.0.0.1"))));
        let endpoints = |events: &[Event]| match events {
            [Event::Apply(Object::Slice(slice))] => slice.endpoints.len(),
            other => panic!("{other:?}"),
        };
        assert_eq!(endpoints(&store.derive()), 1);
        assert_eq!(store.derive(), []);
        store.set_file(pods, valid_content(&objects(&[pod("a", "10.0.0.1"), pod("b", "10.0.0.2")].concat())));
        assert_eq!(endpoints(&store.derive()), 2);
        assert_eq!(store.objects().len(), 4, "two pods, the Service, and the derived EndpointSlice");
        store.set_file(slices, valid_content(&objects(slice)));
        assert!(matches!(store.derive()[..], [Event::Delete(ObjectKey::Slice(_))]));
        store.remove(slices);
        assert_eq!(endpoints(&store.derive()), 2);
    }

    #[test]
    fn an_incomplete_file_keeps_its_last_objects() {
        let mut store = Store::default();
        let path = Path::new("a.yaml");
        store.set_file(path, valid_content(&[node("n1")]));
        let changes = store
            .set_file(path, FileContent { objects: vec![], errors: vec!["a.yaml:3: no".into()], incomplete: true });
        assert_eq!(changes.events, []);
        assert_eq!(changes.warnings[0], "a.yaml:3: no");
        assert_eq!(store.objects(), [node("n1")]);
        assert_eq!(store.remove(path).events, [delete_event("n1")]);
    }

    #[test]
    fn an_incomplete_new_file_yields_its_valid_objects() {
        let mut store = Store::default();
        let content = FileContent { objects: vec![node("n1")], errors: vec!["no".into()], incomplete: true };
        assert_eq!(store.set_file(Path::new("a.yaml"), content).events, [Event::Apply(node("n1"))]);
    }

    #[test]
    fn the_file_that_sorts_last_is_used_whichever_file_is_read_first() {
        let mut store = Store::default();
        let (a, b) = (Path::new("a.yaml"), Path::new("b.yaml"));
        assert_eq!(store.set_file(b, valid_content(&[node_at("n", "10.0.0.2")])).events.len(), 1);
        let changes = store.set_file(a, valid_content(&[node_at("n", "10.0.0.1")]));
        assert_eq!(changes.events, []);
        assert_eq!(changes.warnings, ["Node n is defined in a.yaml and b.yaml; the last definition is used"]);
        assert_eq!(store.remove(b).events, [Event::Apply(node_at("n", "10.0.0.1"))]);
    }
}
