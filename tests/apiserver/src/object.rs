//! An object as the fake API server stores it: JSON text. Only the fields that a label selector or a field selector can
//! match are parsed.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::resource::Resource;

/// The form in which an object is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// Without kind and API version, as the items of a list.
    Item,
    /// Complete, with kind and API version.
    Whole,
    /// Only the metadata, as `PartialObjectMetadata`.
    Metadata,
}

/// One version of an object. The text of the metadata is separate and does not contain the resource version, so that it
/// can be written with another version: a watch event of type DELETED contains the object as it was before the
/// deletion, but with the resource version of the deletion.
#[derive(Clone, Debug)]
pub(crate) struct Object {
    pub(crate) resource: Resource,
    /// `namespace/name`, or only the name; sorts in the order of etcd's keys.
    pub(crate) key: Box<str>,
    /// The resource version.
    pub(crate) version: u64,
    pub(crate) labels: BTreeMap<Box<str>, Box<str>>,
    /// `spec.nodeName`.
    pub(crate) node: Option<Box<str>>,
    /// The members of `metadata`, as JSON text without braces.
    metadata: Box<str>,
    /// The other members, as JSON text. A comma precedes each member.
    rest: Box<str>,
}

impl Object {
    /// Creates an object from a value to which the defaults were already applied.
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

    /// Returns a copy with another version.
    pub(crate) fn with_version(&self, version: u64) -> Self {
        Self { version, ..self.clone() }
    }

    pub(crate) fn namespace(&self) -> &str {
        self.key.split_once('/').map_or("", |(namespace, _)| namespace)
    }

    pub(crate) fn name(&self) -> &str {
        self.key.rsplit('/').next().unwrap_or_default()
    }

    /// Returns whether the objects are equal, except for the resource version.
    pub(crate) fn has_same_content(&self, other: &Self) -> bool {
        self.metadata == other.metadata && self.rest == other.rest
    }

    /// Appends the JSON, with this resource version.
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

    /// Returns the JSON with the object's own resource version.
    pub(crate) fn bytes(&self, form: Form) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.metadata.len() + self.rest.len() + 100);
        self.write(&mut out, self.version, form);
        out
    }

    /// Returns the complete object as a value.
    pub(crate) fn value(&self) -> Value {
        serde_json::from_slice(&self.bytes(Form::Whole)).expect("the stored text is valid JSON")
    }
}
