//! Parses the objects of a document and reports their errors.

mod details;
mod policy;
mod report;
mod workload;

use std::sync::Arc;

use k8s_openapi::api::{core::v1 as core, discovery::v1 as discovery};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::details::FileText;
use super::diagnostics::Diagnostics;
use super::path::{FieldPath, Step};
use super::split::Fault;
use super::tree::{SyntaxError, Tree};
use super::{Ignored, Located, Parsed, SkipReason, Unevaluated};
use super::{non_object, nulls, size};
use crate::lint::RuleId;
use crate::model::names;
use crate::model::{
    EndpointSlice, Namespace, Node, Object, Pod, PolicyScope, Service, Severity, UnevaluatedKind, WorkloadKind,
};

/// Message for a field that does not exist.
const UNKNOWN_FIELD: &str = "unknown field (typo?)";
/// Message for a key that a map has twice.
const DUPLICATE_KEY: &str = "duplicate key";

/// Parses the documents of one file.
pub(super) struct ObjectReader {
    /// Number of the current document, from 1, without empty documents.
    document: usize,
    parsed: Parsed,
    diagnostics: Diagnostics,
    /// Documents that are not like Kubernetes objects. They are errors if another document of the file is a Kubernetes
    /// object.
    non_objects: Vec<NonObject>,
    /// Whether one of the documents read so far is like a Kubernetes object.
    is_kubernetes: bool,
    /// Whether an offline command reads the file: it also needs workloads, and details for `netpol lint`.
    is_offline: bool,
    /// The text of the file, if details are read.
    text: Arc<FileText>,
    /// The namespace of objects without one; `None` for `default`.
    namespace: Option<String>,
}

/// A document that is not like a Kubernetes object.
struct NonObject {
    document: usize,
    line: usize,
    message: String,
}

/// The location of an object in a document, for line numbers, and the object's name, for messages.
struct ObjectLocation<'t> {
    tree: &'t Tree,
    /// The path of the object in its document: empty, or such as `items[0]` for an item of a list.
    root: FieldPath,
    /// `Kind namespace/name`, if known.
    name: Option<String>,
}

/// An error in a field. The path starts at the object.
struct FieldError {
    severity: Severity,
    path: FieldPath,
    message: String,
}

impl ObjectReader {
    pub(super) fn new(file: &str) -> Self {
        let (parsed, diagnostics) = (Parsed::default(), Diagnostics::new(file));
        let (non_objects, text) = (Vec::new(), Arc::default());
        let (is_kubernetes, is_offline, namespace) = (false, false, None);
        Self { document: 0, parsed, diagnostics, non_objects, is_kubernetes, is_offline, text, namespace }
    }

    /// Reads workloads, too, and details for `netpol lint`.
    pub(super) fn offline(self, text: &str) -> Self {
        Self { is_offline: true, text: Arc::new(FileText::new(text)), ..self }
    }

    /// Sets the namespace of objects without one.
    pub(super) fn in_namespace(self, namespace: Option<&str>) -> Self {
        Self { namespace: namespace.map(str::to_owned), ..self }
    }

    pub(super) fn finish(mut self) -> Parsed {
        if !self.non_objects.is_empty() && self.parsed.skipped.is_none() {
            self.parsed.skipped = Some(SkipReason::NotKubernetes);
        }
        Parsed { errors: self.diagnostics.finish(), ..self.parsed }
    }

    /// Reports a document that is neither valid YAML nor valid JSON. It may be a template, or the file of another
    /// program.
    pub(super) fn report_unreadable(&mut self, text: &str, error: &SyntaxError) {
        self.document += 1;
        if non_object::is_template(text) {
            return self.report_template(error.line);
        }
        if !non_object::mentions_kubernetes(text) {
            return self.add_non_object(error.line, format!("document {} {}", self.document, error.message));
        }
        self.mark_kubernetes();
        self.parsed.invalid_documents += 1;
        let message = format!("document {} {}; the document is ignored", self.document, error.message);
        self.report_outside_objects((RuleId::INVALID_DOCUMENT, Severity::Error), error.line, &message);
    }

    /// Reports the first template of a file, such as a template of Helm. Further templates of the file need the same
    /// fix, and are not reported.
    fn report_template(&mut self, line: usize) {
        if self.parsed.skipped != Some(SkipReason::Template) {
            self.parsed.skipped = Some(SkipReason::Template);
            self.report_outside_objects((RuleId::TEMPLATE, Severity::Warning), line, non_object::TEMPLATE);
        }
    }

    fn add_non_object(&mut self, line: usize, message: String) {
        let non_object = NonObject { document: self.document, line, message };
        if self.is_kubernetes { self.report_non_object(&non_object) } else { self.non_objects.push(non_object) }
    }

    /// Records that the file has a Kubernetes object. Other documents should be objects, too.
    fn mark_kubernetes(&mut self) {
        self.is_kubernetes = true;
        for non_object in std::mem::take(&mut self.non_objects) {
            self.report_non_object(&non_object);
        }
    }

    fn report_non_object(&mut self, NonObject { document, line, message }: &NonObject) {
        self.parsed.invalid_documents += 1;
        self.diagnostics.add((RuleId::INVALID_DOCUMENT, Severity::Error), *document, None, message, || (*line, None));
    }

    /// Reports errors outside of documents, such as invalid separator lines.
    pub(super) fn report_faults(&mut self, faults: &[Fault]) {
        for fault in faults {
            if fault.severity == Severity::Error {
                self.parsed.invalid_documents += 1;
            }
            self.report_outside_objects((RuleId::INVALID_DOCUMENT, fault.severity), fault.line, fault.message);
        }
    }

    /// Reports a document after the end marker `...`. Between two `---` lines, `kubectl` reads only the first YAML
    /// document and silently ignores others.
    pub(super) fn report_document_after_end(&mut self, tree: &Tree) {
        let message = "kubectl ignores a document after `...`; write `---` before it";
        let rule_and_severity = (RuleId::INVALID_DOCUMENT, Severity::Warning);
        self.report_outside_objects(rule_and_severity, tree.lines.of(&FieldPath::default()), message);
    }

    fn report_outside_objects(&mut self, rule_and_severity: (RuleId, Severity), line: usize, message: &str) {
        self.diagnostics.add(rule_and_severity, self.document, None, message, || (line, None));
    }

    pub(super) fn read_document(&mut self, tree: &mut Tree) {
        if tree.value.is_null() {
            return;
        }
        self.document += 1;
        let value = tree.value.take();
        let line = tree.lines.of(&FieldPath::default());
        if !non_object::looks_like_kubernetes(&value) {
            let what = if value.is_object() { "this document has no `kind`" } else { "this document is not an object" };
            return self
                .add_non_object(line, format!("{what}; a Kubernetes object needs apiVersion, kind and metadata"));
        }
        self.mark_kubernetes();
        if non_object::has_template_name(&value) {
            return self.report_template(line);
        }
        self.read_object(tree, value, FieldPath::default(), None);
    }

    /// Parses an object, or the items of a list. `root`: the path of the object in the document. `inherited`: the
    /// apiVersion and kind that a typed list, such as `PodList`, gives to its items.
    fn read_object(&mut self, tree: &Tree, mut value: Value, root: FieldPath, inherited: Option<(&str, &str)>) {
        let mut location = ObjectLocation { tree, root, name: None };
        let Some(map) = value.as_object_mut() else {
            return self.report_ignored(
                &location,
                &FieldPath::default(),
                "this is not an object; a Kubernetes object needs apiVersion, kind and metadata",
            );
        };
        if let Some((api_version, kind)) = inherited {
            map.entry("apiVersion").or_insert_with(|| api_version.into());
            map.entry("kind").or_insert_with(|| kind.into());
        }
        let text = |key: &str| map.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let (api_version, kind) = (text("apiVersion"), text("kind"));
        if kind.is_empty() {
            return self.report_ignored(&location, &FieldPath::default(), "this object has no `kind`; it is ignored");
        }
        if let Some(item_kind) = kind.strip_suffix("List")
            && let Some(Value::Array(items)) = map.get_mut("items").map(Value::take)
        {
            let inherited = (!item_kind.is_empty()).then_some((api_version.as_str(), item_kind));
            for (index, item) in items.into_iter().enumerate() {
                let root = location.root.key("items").index(index);
                self.read_object(tree, item, root, inherited);
            }
            return;
        }
        self.set_namespace(&kind, map);
        let workload_version = || workload::expected_version(&kind, &api_version).filter(|_| self.is_offline);
        let Some(expected) = expected_version(&kind, &api_version).or_else(workload_version) else {
            return self.record_ignored(&location, api_version, kind, &value);
        };
        location.name = Some(title(&kind, map));
        if api_version != expected {
            let message = format!("is `{api_version}`, which is read as {expected}; write {expected}");
            self.error(&location, &FieldPath::default().key("apiVersion"), &message);
            map.insert("apiVersion".into(), expected.into());
        }
        if let Err(message) = self.ensure_name(&location, map) {
            return self.report_ignored(&location, &FieldPath::default().key("metadata").key("name"), &message);
        }
        // `ensure_name` may have set another name.
        location.name = Some(title(&kind, map));
        self.check_names(&location, &kind, map);
        for path in nulls::replace(&mut value) {
            self.warning(&location, &path, "is null, which the API server reads as an empty value; set a value");
        }
        // A policy must isolate, whatever its size: `parse_policy` replaces the spec of a policy that is too large.
        if kind != "NetworkPolicy" && size::is_too_large(&value) {
            return self.report_ignored(
                &location,
                &FieldPath::default(),
                &format!("{}; the object is ignored", size::TOO_LARGE),
            );
        }
        self.read_typed_object(&location, &kind, value);
    }

    /// Records an object that netpol does not evaluate: a policy that may change verdicts, such as a Cilium policy, or
    /// an object without effect on verdicts. `netpol lint` uses details of some of these objects.
    fn record_ignored(&mut self, location: &ObjectLocation<'_>, api_version: String, kind: String, value: &Value) {
        let (file, line) = (self.diagnostics.file().clone(), location.tree.lines.of(&location.root));
        let Some(unevaluated) = UnevaluatedKind::of(&api_version, &kind) else {
            self.record_account_details(&kind, value);
            self.record_custom_resource_labels(&api_version, &kind, value);
            return self.parsed.ignored.push(Ignored { file, line, api_version, kind });
        };
        let scope = PolicyScope::of(unevaluated, value);
        let name = qualified_name(value.get("metadata"), scope.is_cluster_scoped());
        let content = crate::model::content_hash(value);
        self.parsed.unevaluated.push(Unevaluated { file, line, api_version, kind, name, scope, content });
    }

    /// Reports a name and labels that the API server rejects. The object is used anyway.
    fn check_names(&mut self, location: &ObjectLocation<'_>, kind: &str, map: &Map<String, Value>) {
        let Some(Value::Object(metadata)) = map.get("metadata") else { return };
        let root = FieldPath::default().key("metadata");
        let mut report_rejected = |path: &FieldPath, message: String| {
            self.error(location, path, &format!("{message}; the API server rejects this object"));
        };
        let generated = metadata.get("generateName").is_some_and(|prefix| !prefix.is_null());
        let name = metadata.get("name").and_then(Value::as_str).filter(|_| !generated);
        if let Some(message) = name.and_then(|name| names::name_error(kind, name)) {
            report_rejected(&root.key("name"), message);
        }
        let namespace = metadata.get("namespace").and_then(Value::as_str).filter(|namespace| !namespace.is_empty());
        if let Some(message) = namespace.and_then(|namespace| names::name_error("Namespace", namespace)) {
            report_rejected(&root.key("namespace"), message);
        }
        let Some(Value::Object(labels)) = metadata.get("labels") else { return };
        for (key, value) in labels {
            let value = value.as_str().unwrap_or_default();
            if let Some(message) = names::label_key_error(key).or_else(|| names::label_value_error(value)) {
                report_rejected(&root.key("labels").key(key), message);
            }
        }
    }

    /// Sets the namespace of an object without one. A Namespace or Node has no namespace. For other cluster-scoped
    /// kinds, netpol ignores the namespace.
    fn set_namespace(&self, kind: &str, map: &mut Map<String, Value>) {
        let metadata = map.get_mut("metadata").and_then(Value::as_object_mut);
        if let Some((namespace, metadata)) = self.namespace.as_deref().zip(metadata)
            && !matches!(kind, "Namespace" | "Node")
            && metadata.get("namespace").is_none_or(|value| value.is_null() || value == "")
        {
            metadata.insert("namespace".to_owned(), namespace.into());
        }
    }

    /// Gives an object with `generateName` a unique name, as the API server does.
    ///
    /// # Errors
    /// A message, if the object has neither a valid name nor a valid `generateName`.
    fn ensure_name(&self, location: &ObjectLocation<'_>, map: &mut Map<String, Value>) -> Result<(), String> {
        let metadata = map.get_mut("metadata").and_then(Value::as_object_mut);
        let Some(metadata) = metadata else { return Err("is missing; the object is ignored".to_owned()) };
        match metadata.get("name") {
            Some(Value::String(name)) if !name.is_empty() => return Ok(()),
            Some(Value::String(_) | Value::Null) | None => {}
            Some(other) => return Err(format!("`{other}` is not a string: put it in quotes; the object is ignored")),
        }
        match metadata.get("generateName") {
            Some(Value::String(prefix)) if !prefix.is_empty() => {
                let name = format!("{prefix}*({}:{})", self.diagnostics.file(), location.tree.lines.of(&location.root));
                metadata.insert("name".to_owned(), name.into());
                Ok(())
            }
            _ => Err("is missing; the object is ignored".to_owned()),
        }
    }

    fn read_typed_object(&mut self, location: &ObjectLocation<'_>, kind: &str, value: Value) {
        match kind {
            "Namespace" => {
                let Some(api) = self.deserialize_or_report::<core::Namespace>(location, value) else { return };
                self.record_namespace_details(&api);
                let (namespace, diagnostics) = Namespace::from_api(&api);
                self.report_diagnostics(location, &diagnostics);
                self.add_object(location, Object::Namespace(namespace));
            }
            "Pod" => {
                let Some(api) = self.deserialize_or_report::<core::Pod>(location, value) else { return };
                let (pod, diagnostics) = Pod::from_api(&api);
                self.report_diagnostics(location, &diagnostics);
                if let Some(controller) = workload::controller(&api.metadata).filter(|_| self.is_offline) {
                    self.parsed.controllers.push((pod.key.clone(), controller));
                }
                self.record_pod_details(&pod.key, api.spec.as_ref());
                self.add_object(location, Object::Pod(pod));
            }
            "Node" => {
                let Some(api) = self.deserialize_or_report::<core::Node>(location, value) else { return };
                let (node, diagnostics) = Node::from_api(&api);
                self.report_diagnostics(location, &diagnostics);
                self.add_object(location, Object::Node(node));
            }
            "Service" => {
                let Some(api) = self.deserialize_or_report::<core::Service>(location, value) else { return };
                let (service, diagnostics) = Service::from_api(&api);
                self.report_diagnostics(location, &diagnostics);
                self.add_object(location, Object::Service(service));
            }
            "EndpointSlice" => {
                let Some(api) = self.deserialize_or_report::<discovery::EndpointSlice>(location, value) else { return };
                let (slice, diagnostics) = EndpointSlice::from_api(&api);
                self.report_diagnostics(location, &diagnostics);
                self.add_object(location, Object::Slice(slice));
            }
            _ => match WorkloadKind::from_name(kind) {
                Some(kind) => self.read_workload(location, kind, value),
                None => self.parse_policy(location, value),
            },
        }
    }

    /// Deserializes an object. If a field has a wrong type, reports the field and returns `None`: the whole object is
    /// ignored.
    fn deserialize_or_report<T: DeserializeOwned>(&mut self, location: &ObjectLocation<'_>, value: Value) -> Option<T> {
        self.report_duplicate_keys(location);
        let (result, unknown) = deserialize::<T>(value);
        for path in unknown {
            // Reports only unknown fields of metadata: others are most likely from a newer Kubernetes version.
            let text = path.to_string();
            if text.starts_with("metadata.") || text.contains(".template.metadata.") {
                self.warning(location, &path, UNKNOWN_FIELD);
            }
        }
        match result {
            Ok(object) => Some(object),
            Err((path, message)) => {
                self.report_ignored(location, &path, &format!("{message}; the object is ignored"));
                None
            }
        }
    }

    fn add_object(&mut self, location: &ObjectLocation<'_>, object: Object) {
        let line = location.tree.lines.of(&location.root);
        self.parsed.objects.push(Located {
            object,
            file: self.diagnostics.file().clone(),
            line,
            document: self.document,
        });
    }
}

/// Returns the apiVersion that netpol expects for objects of a kind. Returns `None` for kinds that netpol does not use,
/// including kinds with the same name in other API groups.
fn expected_version(kind: &str, api_version: &str) -> Option<&'static str> {
    let group = api_version.rsplit_once('/').map_or("", |(group, _)| group);
    match (kind, group) {
        ("Namespace" | "Pod" | "Node" | "Service", "") => Some("v1"),
        ("EndpointSlice", "discovery.k8s.io") => Some("discovery.k8s.io/v1"),
        ("NetworkPolicy", "" | "extensions" | "networking.k8s.io") => Some("networking.k8s.io/v1"),
        _ => None,
    }
}

/// Returns `Kind namespace/name`, or `Kind name` for a Namespace or Node.
fn title(kind: &str, map: &Map<String, Value>) -> String {
    format!("{kind} {}", qualified_name(map.get("metadata"), matches!(kind, "Namespace" | "Node")))
}

/// Returns `namespace/name`, or the name of a cluster-scoped object.
fn qualified_name(metadata: Option<&Value>, is_cluster_scoped: bool) -> String {
    let text = |key: &str| metadata?.get(key)?.as_str().filter(|text| !text.is_empty());
    let name = text("name").unwrap_or("(without a name)");
    if is_cluster_scoped { name.to_owned() } else { format!("{}/{name}", text("namespace").unwrap_or("default")) }
}

/// Deserializes an object. Returns the object, or the path of the first field with a wrong type and the error. Also
/// returns the paths of unknown fields.
fn deserialize<T: DeserializeOwned>(value: Value) -> (Result<T, (FieldPath, String)>, Vec<FieldPath>) {
    let mut unknown = Vec::new();
    let mut track = serde_path_to_error::Track::new();
    let tracked = serde_path_to_error::Deserializer::new(value, &mut track);
    let result: Result<T, _> = serde_ignored::deserialize(tracked, |path| unknown.push(FieldPath::from(&path)));
    let result = result.map_err(|error| (FieldPath::from(&track.path()), error_message(&error)));
    (result, unknown)
}

/// Returns Serde's message, with the fix for the most common mistake.
fn error_message(error: &serde_json::Error) -> String {
    let message = error.to_string();
    let unquoted = ["integer", "boolean", "floating point"]
        .iter()
        .any(|kind| message.starts_with(&format!("invalid type: {kind}")));
    if unquoted && message.ends_with("expected a string") { format!("{message}: put it in quotes") } else { message }
}
