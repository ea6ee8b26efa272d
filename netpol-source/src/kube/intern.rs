//! Stores equal strings of objects only once in memory (interning): thousands of pods have the same namespace, node,
//! labels and port names, and each `EndpointSlice` contains the name of its Service.

use std::collections::HashSet;
use std::sync::Arc;

use netpol_policy::model::{Labels, Object, ObjectKey, PodWorkload};

/// Unused strings are removed when the set has more strings than a limit. The limit is this number, plus twice the
/// number of strings that the last removal left in the set.
const SLACK: usize = 1024;

/// The set of shared strings.
#[derive(Debug, Default)]
pub(super) struct Interner {
    texts: HashSet<Arc<str>>,
    /// When the set has more strings than this number, unused strings are removed.
    limit: usize,
}

impl Interner {
    /// Replaces a string by the equal string in the set, or adds the string to the set.
    fn share(&mut self, text: &mut Arc<str>) {
        if let Some(known) = self.texts.get(text) {
            *text = known.clone();
            return;
        }
        self.texts.insert(text.clone());
        if self.texts.len() > self.limit {
            // The set itself has one reference to each string.
            self.texts.retain(|text| Arc::strong_count(text) > 1);
            self.limit = self.texts.len() * 2 + SLACK;
        }
    }

    fn share_labels(&mut self, labels: &mut Labels) {
        let shared = |(key, value): (&Arc<str>, &Arc<str>)| {
            let (mut key, mut value) = (key.clone(), value.clone());
            self.share(&mut key);
            self.share(&mut value);
            (key, value)
        };
        *labels = labels.iter().map(shared).collect();
    }

    /// Replaces an object's strings by shared ones. Replaces the object's key by a clone of `key`, so that the two keys
    /// share their strings.
    pub(super) fn share_object(&mut self, object: &mut Object, key: &ObjectKey) {
        match (object, key) {
            (Object::Pod(pod), ObjectKey::Pod(key)) => {
                pod.key = key.clone();
                if let Some(node) = &mut pod.node {
                    self.share(node);
                }
                self.share_labels(&mut pod.labels);
                if let Some(PodWorkload { kind, name }) = &mut pod.workload {
                    self.share(kind);
                    self.share(name);
                }
                for port in &mut pod.ports {
                    self.share(&mut port.name);
                }
                pod.ports.shrink_to_fit();
                pod.addresses.shrink_to_fit();
            }
            (Object::Namespace(namespace), ObjectKey::Namespace(name)) => {
                namespace.name = name.clone();
                self.share_labels(&mut namespace.labels);
            }
            (Object::Policy(policy), ObjectKey::Policy(key)) => policy.key = key.clone(),
            (Object::Node(node), ObjectKey::Node(name)) => node.name = name.clone(),
            (Object::Service(service), ObjectKey::Service(key)) => {
                service.key = key.clone();
                for port in &mut service.ports {
                    self.share(&mut port.name);
                }
                service.ports.shrink_to_fit();
                service.addresses.shrink_to_fit();
            }
            (Object::Slice(slice), ObjectKey::Slice(key)) => {
                slice.key = key.clone();
                if let Some(service) = &mut slice.service {
                    self.share(service);
                }
                for port in &mut slice.ports {
                    self.share(&mut port.name);
                }
                slice.ports.shrink_to_fit();
                slice.endpoints.shrink_to_fit();
            }
            _ => {}
        }
    }

    /// Replaces strings of a key by shared ones. Names of pods, policies and slices are not shared, because other
    /// objects do not contain them.
    pub(super) fn share_key(&mut self, key: &mut ObjectKey) {
        match key {
            ObjectKey::Namespace(name) | ObjectKey::Node(name) => self.share(name),
            ObjectKey::Pod(key) => self.share(&mut key.namespace),
            ObjectKey::Policy(key) => self.share(&mut key.namespace),
            // The name is shared, too, because the Service's slices contain it.
            ObjectKey::Service(key) => {
                self.share(&mut key.namespace);
                self.share(&mut key.name);
            }
            ObjectKey::Slice(key) => self.share(&mut key.namespace),
        }
    }
}
