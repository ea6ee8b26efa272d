//! Parses the path and query of a request.

use std::collections::BTreeMap;

use hyper::Method;

use crate::object::Form;
use crate::resource::{Resource, Verb};
use crate::selector::Selector;
use crate::status::Status;
use crate::store::key_of;

/// What a request does, and with which objects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) verb: Verb,
    pub(crate) resource: Resource,
    /// Empty for a cluster-scoped resource, and for a collection in all namespaces.
    pub(crate) namespace: String,
    /// Empty for a collection.
    pub(crate) name: String,
    pub(crate) query: BTreeMap<String, String>,
}

/// Parses the query of a URI.
pub(crate) fn query(text: Option<&str>) -> BTreeMap<String, String> {
    form_urlencoded::parse(text.unwrap_or_default().as_bytes()).into_owned().collect()
}

impl Target {
    /// Parses a request. Returns `None` if the path is not the path of a resource, and an error if the method is not
    /// allowed.
    pub(crate) fn parse(method: &Method, path: &str, query: &BTreeMap<String, String>) -> Option<Result<Self, Status>> {
        let parts: Vec<_> = path.trim_matches('/').split('/').collect();
        let (api_version, rest) = match parts.as_slice() {
            ["api", "v1", rest @ ..] => ("v1".to_owned(), rest),
            ["apis", group, version, rest @ ..] => (format!("{group}/{version}"), rest),
            _ => return None,
        };
        let (namespace, plural, name) = match rest {
            ["namespaces", namespace, plural] => (*namespace, *plural, ""),
            ["namespaces", namespace, plural, name] => (*namespace, *plural, *name),
            [plural] => ("", *plural, ""),
            [plural, name] => ("", *plural, *name),
            _ => return None,
        };
        let resource = Resource::of_path(&api_version, plural)?;
        let is_collection = name.is_empty();
        // The path of a namespaced resource needs a namespace, except for a collection in all namespaces. The path of a
        // cluster-scoped resource must not have a namespace.
        if resource.is_namespaced() == namespace.is_empty() && !(namespace.is_empty() && is_collection) {
            return None;
        }
        let watch = query.get("watch").is_some_and(|value| matches!(value.as_str(), "1" | "true" | ""));
        let verb = match (method, is_collection) {
            (&Method::GET, true) if watch => Verb::Watch,
            (&Method::GET, true) => Verb::List,
            (&Method::GET, false) => Verb::Get,
            (&Method::POST, true) => Verb::Create,
            (&Method::PUT, false) => Verb::Update,
            (&Method::PATCH, false) => Verb::Patch,
            (&Method::DELETE, false) => Verb::Delete,
            _ => return Some(Err(Status::not_allowed())),
        };
        let (namespace, name, query) = (namespace.to_owned(), name.to_owned(), query.clone());
        Some(Ok(Self { verb, resource, namespace, name, query }))
    }

    /// Returns the key of the object in the store.
    pub(crate) fn key(&self) -> String {
        key_of(&self.namespace, &self.name)
    }

    /// Returns the prefix that the keys of all objects in the collection have.
    pub(crate) fn prefix(&self) -> String {
        if self.namespace.is_empty() { String::new() } else { format!("{}/", self.namespace) }
    }

    /// Returns the value of a query parameter; `None` if it is missing or empty.
    pub(crate) fn option(&self, name: &str) -> Option<&str> {
        self.query.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// Returns whether a query parameter is true.
    pub(crate) fn flag(&self, name: &str) -> bool {
        self.query.get(name).is_some_and(|value| matches!(value.as_str(), "1" | "true"))
    }

    /// Returns a query parameter that is a number.
    pub(crate) fn number(&self, name: &str) -> Result<Option<u64>, Status> {
        let parse =
            |value: &str| value.parse().map_err(|_| Status::bad_request(&format!("{name}: {value:?} is not a number")));
        self.option(name).map(parse).transpose()
    }

    /// Returns the query parameter `resourceVersion`, if it is set.
    pub(crate) fn version(&self) -> Result<Option<u64>, Status> {
        let parse = |value: &str| value.parse().map_err(|_| Status::bad_version(value));
        self.option("resourceVersion").map(parse).transpose()
    }

    /// Parses the query parameters `labelSelector` and `fieldSelector`.
    pub(crate) fn selector(&self) -> Result<Selector, Status> {
        Selector::parse(self.option("labelSelector"), self.option("fieldSelector"))
            .map_err(|message| Status::bad_request(&message))
    }
}

/// Returns the requested form of objects, from the `Accept` header. `Table` is not supported.
pub(crate) fn form(accept: &str) -> Result<Form, Status> {
    for media_type in accept.split(',').map(str::trim) {
        let is_json = media_type.starts_with("application/json");
        if is_json && media_type.contains("as=PartialObjectMetadata") {
            return Ok(Form::Metadata);
        }
        // `as=` requests another form, such as `Table`.
        if !media_type.contains("as=") && (media_type.is_empty() || is_json || media_type.contains("/*")) {
            return Ok(Form::Whole);
        }
    }
    Err(Status::not_acceptable())
}
