//! Which file says what. Pure: contents in, events out.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use netpol_policy::derived;
use netpol_policy::model::{Object, ObjectKey};
use netpol_policy::world::Event;

/// Warnings of one kind about one file; the rest is counted.
const SAME: usize = 10;

/// What a file holds.
#[derive(Clone, Debug, Default)]
pub(super) struct Content {
    /// The objects in it that were understood.
    pub(super) objects: Vec<Object>,
    /// What was not, one line each, file and line included.
    pub(super) errors: Vec<String>,
    /// Some of it gave no object at all: the file is broken or half-written.
    pub(super) broken: bool,
}

/// What is to be told and done after a file changed.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    /// Changes of objects.
    pub(super) events: Vec<Event>,
    /// What people should know.
    pub(super) warnings: Vec<String>,
}

/// The objects of every file. Where two files hold the same object, the one whose path sorts last is
/// believed, as everywhere in netpol where the same object is given twice.
#[derive(Debug, Default)]
pub(super) struct Store {
    files: BTreeMap<PathBuf, BTreeMap<ObjectKey, Object>>,
    holders: BTreeMap<ObjectKey, BTreeSet<PathBuf>>,
    /// The slices of Services that have none in any file.
    derived: BTreeMap<ObjectKey, Object>,
}

impl Store {
    /// A file is there, new or changed. What a broken one said before stays; one that said nothing before contributes
    /// what was understood.
    pub(super) fn put(&mut self, path: &Path, content: Content) -> Outcome {
        let mut outcome = Outcome { warnings: content.errors, ..Outcome::default() };
        if content.broken && self.files.get(path).is_some_and(|objects| !objects.is_empty()) {
            outcome.warnings.push(format!("{}: its last good content stays in force", path.display()));
            return outcome;
        }
        let (mut objects, mut twice) = (BTreeMap::new(), 0);
        for object in content.objects {
            let key = object.key();
            if objects.insert(key.clone(), object).is_some() {
                twice += 1;
                if twice <= SAME {
                    outcome.warnings.push(format!("{}: {key} stands in it twice; the last one counts", path.display()));
                }
            }
        }
        if twice > SAME {
            outcome.warnings.push(format!("{}: {} more objects stand in it twice", path.display(), twice - SAME));
        }
        self.replace(path, objects, &mut outcome);
        outcome
    }

    /// A file is gone.
    pub(super) fn remove(&mut self, path: &Path) -> Outcome {
        let mut outcome = Outcome::default();
        self.replace(path, BTreeMap::new(), &mut outcome);
        self.files.remove(path);
        outcome
    }

    /// The files known.
    pub(super) fn paths(&self) -> impl Iterator<Item = &Path> {
        self.files.keys().map(PathBuf::as_path)
    }

    /// Every object that is believed, and those that are derived from them.
    pub(super) fn objects(&self) -> Vec<Object> {
        self.of_files().chain(self.derived.values()).cloned().collect()
    }

    fn of_files(&self) -> impl Iterator<Item = &Object> {
        self.holders.keys().filter_map(|key| self.believed(key))
    }

    /// Derives the slices of Services that have none, after files changed. Returns how the derived slices changed.
    pub(super) fn derive(&mut self) -> Vec<Event> {
        let slices = derived::endpoint_slices(self.of_files()).into_iter().map(Object::Slice);
        let now: BTreeMap<ObjectKey, Object> = slices.map(|slice| (slice.key(), slice)).collect();
        let before = std::mem::replace(&mut self.derived, now);
        let gone = before.keys().filter(|key| !self.derived.contains_key(*key));
        let mut events: Vec<Event> = gone.cloned().map(Event::Delete).collect();
        let changed = self.derived.iter().filter(|(key, slice)| before.get(*key) != Some(*slice));
        events.extend(changed.map(|(_, slice)| Event::Apply(slice.clone())));
        events
    }

    /// Whether any file has this object.
    pub(super) fn contains(&self, key: &ObjectKey) -> bool {
        self.holders.contains_key(key)
    }

    fn believed(&self, key: &ObjectKey) -> Option<&Object> {
        self.files.get(self.holders.get(key)?.last()?)?.get(key)
    }

    fn replace(&mut self, path: &Path, objects: BTreeMap<ObjectKey, Object>, outcome: &mut Outcome) {
        let old_keys = self.files.get(path).into_iter().flat_map(BTreeMap::keys);
        let keys: BTreeSet<ObjectKey> = old_keys.chain(objects.keys()).cloned().collect();
        let mut elsewhere = 0;
        let before: Vec<Option<Object>> = keys.iter().map(|key| self.believed(key).cloned()).collect();
        for key in &keys {
            let holders = self.holders.entry(key.clone()).or_default();
            if !objects.contains_key(key) {
                holders.remove(path);
            } else if holders.insert(path.to_owned()) && holders.len() > 1 {
                elsewhere += 1;
                if elsewhere <= SAME {
                    outcome.warnings.push(format!("{key} stands in {}; the last one counts", places(holders)));
                }
            }
            if holders.is_empty() {
                self.holders.remove(key);
            }
        }
        if elsewhere > SAME {
            let more = elsewhere - SAME;
            outcome.warnings.push(format!("{}: {more} more of its objects stand in other files too", path.display()));
        }
        self.files.insert(path.to_owned(), objects);
        for (key, before) in keys.into_iter().zip(before) {
            match (before, self.believed(&key)) {
                (before, Some(now)) if before.as_ref() != Some(now) => outcome.events.push(Event::Apply(now.clone())),
                (Some(_), None) => outcome.events.push(Event::Delete(key)),
                _ => {}
            }
        }
    }
}

/// Two files by name, more by number.
fn places(holders: &BTreeSet<PathBuf>) -> String {
    match (holders.len(), holders.first(), holders.last()) {
        (2, Some(first), Some(last)) => format!("{} and {}", first.display(), last.display()),
        (count, _, Some(last)) => format!("{count} files, of which {} is the last", last.display()),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use netpol_policy::model::Node;

    use super::*;

    fn node(name: &str) -> Object {
        Object::Node(Node { name: name.into(), addresses: Vec::new() })
    }

    fn node_at(name: &str, address: &str) -> Object {
        Object::Node(Node { name: name.into(), addresses: vec![address.parse().expect("an address")] })
    }

    fn good(objects: &[Object]) -> Content {
        Content { objects: objects.to_vec(), ..Content::default() }
    }

    fn deleted(name: &str) -> Event {
        Event::Delete(ObjectKey::Node(name.into()))
    }

    #[test]
    fn a_changed_file_tells_only_what_changed() {
        let mut store = Store::default();
        let path = Path::new("a.yaml");
        assert_eq!(store.put(path, good(&[node("n1"), node("n2")])).events.len(), 2);
        let outcome = store.put(path, good(&[node("n1"), node("n3")]));
        assert_eq!(outcome.events, [deleted("n2"), Event::Apply(node("n3"))]);
        assert_eq!(store.remove(path).events, [deleted("n1"), deleted("n3")]);
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
        store.put(services, good(&objects(service)));
        assert_eq!(store.derive(), []);
        store.put(pods, good(&objects(&pod("a", "10.0.0.1"))));
        let endpoints = |events: &[Event]| match events {
            [Event::Apply(Object::Slice(slice))] => slice.endpoints.len(),
            other => panic!("{other:?}"),
        };
        assert_eq!(endpoints(&store.derive()), 1);
        assert_eq!(store.derive(), []);
        store.put(pods, good(&objects(&[pod("a", "10.0.0.1"), pod("b", "10.0.0.2")].concat())));
        assert_eq!(endpoints(&store.derive()), 2);
        assert_eq!(store.objects().len(), 4);
        store.put(slices, good(&objects(slice)));
        assert!(matches!(store.derive()[..], [Event::Delete(ObjectKey::Slice(_))]));
        store.remove(slices);
        assert_eq!(endpoints(&store.derive()), 2);
    }

    #[test]
    fn a_broken_file_keeps_what_it_said() {
        let mut store = Store::default();
        let path = Path::new("a.yaml");
        store.put(path, good(&[node("n1")]));
        let outcome = store.put(path, Content { objects: vec![], errors: vec!["a.yaml:3: no".into()], broken: true });
        assert_eq!(outcome.events, []);
        assert_eq!(outcome.warnings[0], "a.yaml:3: no");
        assert_eq!(store.objects(), [node("n1")]);
        assert_eq!(store.remove(path).events, [deleted("n1")]);
    }

    #[test]
    fn a_broken_new_file_gives_what_was_understood() {
        let mut store = Store::default();
        let content = Content { objects: vec![node("n1")], errors: vec!["no".into()], broken: true };
        assert_eq!(store.put(Path::new("a.yaml"), content).events, [Event::Apply(node("n1"))]);
    }

    #[test]
    fn the_last_path_is_believed_whatever_came_first() {
        let mut store = Store::default();
        let (a, b) = (Path::new("a.yaml"), Path::new("b.yaml"));
        assert_eq!(store.put(b, good(&[node_at("n", "10.0.0.2")])).events.len(), 1);
        let outcome = store.put(a, good(&[node_at("n", "10.0.0.1")]));
        assert_eq!(outcome.events, []);
        assert_eq!(outcome.warnings, ["Node n stands in a.yaml and b.yaml; the last one counts"]);
        assert_eq!(store.remove(b).events, [Event::Apply(node_at("n", "10.0.0.1"))]);
    }
}
