//! The objects of the fake API server, and the counter of resource versions. As in etcd, all resources share the
//! counter.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;
use std::time::Instant;

use serde_json::{Map, Value, json};
use thiserror::Error;

use crate::defaults;
use crate::history::{Change, History, TooOld};
use crate::object::Object;
use crate::resource::Resource;

/// The result of applying an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Applied {
    /// The object's resource version.
    pub version: u64,
    /// Whether the object changed. If not, no event was sent.
    pub changed: bool,
    /// When the object was applied.
    pub at: Instant,
}

/// Why an object was rejected.
#[derive(Debug, Error)]
pub enum ApplyError {
    /// The object lacks `apiVersion`, `kind` or `metadata.name`.
    #[error("the object has no apiVersion, kind or metadata.name: {0}")]
    Incomplete(String),
    /// The kind is not in [`Resource`].
    #[error("the fake API server does not support {kind} of {api_version}; see Resource")]
    Unsupported {
        /// `apiVersion` of the object.
        api_version: String,
        /// `kind` of the object.
        kind: String,
    },
}

/// All objects of a server at one time.
#[derive(Clone, Debug)]
pub struct Backup {
    version: u64,
    objects: BTreeMap<Resource, BTreeMap<Box<str>, Arc<Object>>>,
}

/// The objects of one resource, by key.
#[derive(Debug)]
struct Collection {
    objects: BTreeMap<Box<str>, Arc<Object>>,
    history: History,
}

#[derive(Debug)]
pub(crate) struct Store {
    collections: BTreeMap<Resource, Collection>,
    /// The last version that was assigned.
    version: u64,
    /// The maximum number of changes in each history.
    capacity: usize,
    /// A counter for unique UIDs. [`Self::restore`] does not reset the counter.
    uid_counter: u64,
}

/// Returns the key of an object.
pub(crate) fn key_of(namespace: &str, name: &str) -> String {
    if namespace.is_empty() { name.to_owned() } else { format!("{namespace}/{name}") }
}

impl Store {
    pub(crate) fn new(capacity: usize, version: u64) -> Self {
        let collection = || Collection { objects: BTreeMap::new(), history: History::new(capacity, version) };
        let collections = Resource::ALL.into_iter().map(|resource| (resource, collection())).collect();
        Self { collections, version, capacity, uid_counter: 0 }
    }

    fn collection(&self, resource: Resource) -> &Collection {
        self.collections.get(&resource).expect("every resource has a collection")
    }

    pub(crate) const fn version(&self) -> u64 {
        self.version
    }

    pub(crate) fn get(&self, resource: Resource, key: &str) -> Option<&Arc<Object>> {
        self.collection(resource).objects.get(key)
    }

    /// Creates or replaces an object. If the content of the object stays the same, its version does not change.
    pub(crate) fn apply(&mut self, mut value: Value) -> Result<Applied, ApplyError> {
        let (resource, key) = identify(&value)?;
        let Some(object) = value.as_object_mut() else { return Err(ApplyError::Incomplete(value.to_string())) };
        let before = self.get(resource, &key).cloned();
        defaults::normalize(resource, object);
        self.set_metadata(resource, &key, object, before.as_deref().map(Object::value).as_ref());
        let after = Object::new(resource, &key, self.version + 1, std::mem::take(object));
        let at = Instant::now();
        if let Some(before) = before.as_ref().filter(|before| before.has_same_content(&after)) {
            return Ok(Applied { version: before.version, changed: false, at });
        }
        self.record(resource, Change { version: after.version, at, before, after: Some(Arc::new(after)) });
        Ok(Applied { version: self.version, changed: true, at })
    }

    /// Sets name, namespace and the fields that the server assigns.
    fn set_metadata(&mut self, resource: Resource, key: &str, object: &mut Map<String, Value>, before: Option<&Value>) {
        let spec_changed = before.is_some_and(|before| before.get("spec") != object.get("spec"));
        let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) else { return };
        if let Some((namespace, _)) = key.split_once('/') {
            metadata.insert("namespace".to_owned(), namespace.into());
        }
        let previous = |field: &str| before.and_then(|before| before.get("metadata")?.get(field)).cloned();
        self.uid_counter += 1;
        let uid =
            previous("uid").unwrap_or_else(|| json!(format!("00000000-0000-4000-8000-{:012x}", self.uid_counter)));
        metadata.insert("uid".to_owned(), uid);
        // A real server always sets the creation time itself. Here a test can set it, so that objects differ in age.
        if !metadata.contains_key("creationTimestamp") {
            let created = previous("creationTimestamp").unwrap_or_else(|| json!(now()));
            metadata.insert("creationTimestamp".to_owned(), created);
        }
        if defaults::has_generation(resource) {
            let generation = previous("generation").and_then(|value| value.as_u64()).unwrap_or(1);
            metadata.insert("generation".to_owned(), json!(generation + u64::from(spec_changed)));
        }
    }

    /// Deletes an object and returns the version of the deletion, if the object existed.
    pub(crate) fn delete(&mut self, resource: Resource, key: &str) -> Option<u64> {
        let before = Some(self.get(resource, key)?.clone());
        self.record(resource, Change { version: self.version + 1, at: Instant::now(), before, after: None });
        Some(self.version)
    }

    fn record(&mut self, resource: Resource, change: Change) {
        self.version = change.version;
        let collection = self.collections.get_mut(&resource).expect("every resource has a collection");
        match (&change.before, &change.after) {
            (_, Some(after)) => drop(collection.objects.insert(after.key.clone(), after.clone())),
            (Some(before), None) => drop(collection.objects.remove(&before.key)),
            (None, None) => {}
        }
        collection.history.push(change);
    }

    /// Returns the objects as they were at a resource version, ordered by key. Returns only objects with a key that
    /// starts with `prefix` and is not before `start`.
    pub(crate) fn at(
        &self,
        resource: Resource,
        version: u64,
        prefix: &str,
        start: &str,
    ) -> Result<Vec<&Arc<Object>>, TooOld> {
        let collection = self.collection(resource);
        // The earlier states of the objects that have changed since the version.
        let undo = collection.history.undo(version)?;
        let from = Bound::Included(start.max(prefix));
        let current = collection.objects.range::<str, _>((from, Bound::Unbounded));
        let current = current.take_while(|(key, _)| key.starts_with(prefix)).map(|(_, object)| object);
        if undo.is_empty() {
            return Ok(current.collect());
        }
        let unchanged = current.filter(|object| !undo.contains_key(&*object.key));
        let earlier = undo.range::<str, _>((from, Bound::Unbounded));
        let earlier = earlier.take_while(|(key, _)| key.starts_with(prefix)).filter_map(|(_, object)| *object);
        let mut all: Vec<_> = unchanged.chain(earlier).collect();
        all.sort_by(|one, other| one.key.cmp(&other.key));
        Ok(all)
    }

    /// Returns the changes of a resource after a version.
    pub(crate) fn since(&self, resource: Resource, version: u64) -> Result<Vec<Change>, TooOld> {
        Ok(self.collection(resource).history.since(version)?.cloned().collect())
    }

    /// Removes the history.
    pub(crate) fn compact(&mut self) {
        for collection in self.collections.values_mut() {
            collection.history.compact(self.version);
        }
    }

    /// Assigns new versions to all objects. Counts from `start`, so the first new version is `start + 1`.
    pub(crate) fn renumber(&mut self, start: u64) {
        self.version = start;
        for collection in self.collections.values_mut() {
            for object in collection.objects.values_mut() {
                self.version += 1;
                *object = Arc::new(object.with_version(self.version));
            }
        }
        for collection in self.collections.values_mut() {
            collection.history = History::new(self.capacity, self.version);
        }
    }

    pub(crate) fn backup(&self) -> Backup {
        let objects = self.collections.iter().map(|(resource, collection)| (*resource, collection.objects.clone()));
        Backup { version: self.version, objects: objects.collect() }
    }

    pub(crate) fn restore(&mut self, backup: Backup) {
        self.version = backup.version;
        let (capacity, version) = (self.capacity, backup.version);
        self.collections = backup
            .objects
            .into_iter()
            .map(|(resource, objects)| (resource, Collection { objects, history: History::new(capacity, version) }))
            .collect();
    }
}

/// Returns the resource and key of an object.
pub(crate) fn identify(value: &Value) -> Result<(Resource, String), ApplyError> {
    let text = |pointer: &str| value.pointer(pointer).and_then(Value::as_str);
    let head = (text("/apiVersion"), text("/kind"), text("/metadata/name"));
    let (Some(api_version), Some(kind), Some(name)) = head else {
        return Err(ApplyError::Incomplete(value.to_string()));
    };
    let Some(resource) = Resource::of_kind(api_version, kind) else {
        return Err(ApplyError::Unsupported { api_version: api_version.to_owned(), kind: kind.to_owned() });
    };
    let namespace = if resource.is_namespaced() { text("/metadata/namespace").unwrap_or("default") } else { "" };
    Ok((resource, key_of(namespace, name)))
}

/// Returns the current time in whole seconds, as it is written in metadata.
fn now() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}
