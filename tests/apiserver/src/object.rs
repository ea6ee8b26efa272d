//! An object as it is kept: as text, with what it is selected by beside it.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::resource::Resource;

/// How an object is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// Without kind and version, as within a list.
    Item,
    /// On its own.
    Whole,
    /// Only its metadata, as `PartialObjectMetadata`.
    Metadata,
}

/// A version of an object. The text of its metadata is apart, and has no version: an event may have to tell of it with a newer
/// one.
#[derive(Clone, Debug)]
pub(crate) struct Object {
    pub(crate) resource: Resource,
    /// `namespace/name`, or the name alone; sorts as etcd's keys do.
    pub(crate) key: Box<str>,
    pub(crate) version: u64,
    pub(crate) labels: BTreeMap<Box<str>, Box<str>>,
    pub(crate) node: Option<Box<str>>,
    /// Members of `metadata`.
    metadata: Box<str>,
    /// Members beside `metadata`, each after a comma.
    rest: Box<str>,
}

impl Object {
    /// Takes a value that has been filled in.
    pub(crate) fn new(resource: Resource, key: &str, version: u64, mut value: Map<String, Value>) -> Self {
        value.remove("kind");
        value.remove("apiVersion");
        let mut metadata = match value.remove("metadata") {
            Some(Value::Object(metadata)) => metadata,
            _ => Map::new(),
        };
        metadata.remove("resourceVersion");
        let labels = metadata.get("labels").and_then(Value::as_object).into_iter().flatten();
        let labels = labels.filter_map(|(key, value)| Some((key.as_str().into(), value.as_str()?.into()))).collect();
        let node = value.get("spec").and_then(|spec| spec.get("nodeName")).and_then(Value::as_str).map(Into::into);
        let mut rest = String::new();
        for (name, member) in &value {
            rest.extend([",", &Value::from(name.as_str()).to_string(), ":", &member.to_string()]);
        }
        let metadata = Value::Object(metadata).to_string();
        Self {
            resource,
            key: key.into(),
            version,
            labels,
            node,
            metadata: metadata[1..metadata.len() - 1].into(),
            rest: rest.into(),
        }
    }

    /// The same, as of another version.
    pub(crate) fn at(&self, version: u64) -> Self {
        Self { version, ..self.clone() }
    }

    pub(crate) fn namespace(&self) -> &str {
        self.key.split_once('/').map_or("", |(namespace, _)| namespace)
    }

    pub(crate) fn name(&self) -> &str {
        self.key.rsplit('/').next().unwrap_or_default()
    }

    /// Whether only the version differs.
    pub(crate) fn says_the_same(&self, other: &Self) -> bool {
        self.metadata == other.metadata && self.rest == other.rest
    }

    /// Appends its JSON, with this version.
    pub(crate) fn write(&self, out: &mut Vec<u8>, version: u64, form: Form) {
        match form {
            Form::Item => out.push(b'{'),
            Form::Whole => {
                let (kind, api_version) = (self.resource.kind(), self.resource.api_version());
                out.extend_from_slice(format!("{{\"kind\":\"{kind}\",\"apiVersion\":\"{api_version}\",").as_bytes());
            }
            Form::Metadata => {
                out.extend_from_slice(b"{\"kind\":\"PartialObjectMetadata\",\"apiVersion\":\"meta.k8s.io/v1\",");
            }
        }
        out.extend_from_slice(format!("\"metadata\":{{\"resourceVersion\":\"{version}\",").as_bytes());
        out.extend_from_slice(self.metadata.as_bytes());
        out.push(b'}');
        if form != Form::Metadata {
            out.extend_from_slice(self.rest.as_bytes());
        }
        out.push(b'}');
    }

    /// On its own, as bytes.
    pub(crate) fn bytes(&self, form: Form) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.metadata.len() + self.rest.len() + 100);
        self.write(&mut out, self.version, form);
        out
    }

    /// As a value, kind and version included.
    pub(crate) fn value(&self) -> Value {
        serde_json::from_slice(&self.bytes(Form::Whole)).expect("what was made from JSON is JSON")
    }
}
