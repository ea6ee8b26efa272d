//! One document to objects: which kind it is, and what is wrong with it.

use k8s_openapi::api::{core::v1 as core, discovery::v1 as discovery, networking::v1::NetworkPolicy};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::diagnostics::Diagnostics;
use super::path::{FieldPath, Step};
use super::split::Fault;
use super::tree::{SyntaxError, Tree};
use super::{Ignored, Located, Parsed, SkipReason};
use super::{nulls, salvage, size, stray};
use crate::model::names;
use crate::model::{EndpointSlice, Namespace, Node, Object, Pod, Policy, Problem, Service, Severity};

/// Faults of one policy that are given up one by one. Each costs a look at the whole policy, so that a policy with more of
/// them is given up as a whole.
const MAX_FAULTS: usize = 64;

/// Reads the documents of one file.
pub(super) struct Reader {
    document: usize,
    parsed: Parsed,
    diagnostics: Diagnostics,
    /// Documents that do not look like Kubernetes objects: errors in a file that holds other documents that do.
    stray: Vec<Stray>,
    /// A document looks like a Kubernetes object.
    is_kubernetes: bool,
}

/// A document that does not look like a Kubernetes object.
struct Stray {
    document: usize,
    line: usize,
    message: String,
}

/// An object within a document: its place, for lines, and its name, for messages.
struct Place<'t> {
    tree: &'t Tree,
    root: FieldPath,
    name: Option<String>,
}

/// Something wrong with a field.
struct FieldFault {
    severity: Severity,
    path: FieldPath,
    message: String,
}

impl Reader {
    pub(super) fn new(file: &str) -> Self {
        let (parsed, diagnostics) = (Parsed::default(), Diagnostics::new(file));
        Self { document: 0, parsed, diagnostics, stray: Vec::new(), is_kubernetes: false }
    }

    pub(super) fn finish(mut self) -> Parsed {
        if !self.stray.is_empty() && self.parsed.skipped.is_none() {
            self.parsed.skipped = Some(SkipReason::NotKubernetes);
        }
        Parsed { errors: self.diagnostics.finish(), ..self.parsed }
    }

    pub(super) fn unreadable(&mut self, text: &str, error: &SyntaxError) {
        self.document += 1;
        if stray::is_template(text) {
            return self.template(error.line);
        }
        if !stray::mentions_kubernetes(text) {
            return self.stray(error.line, format!("document {} {}", self.document, error.message));
        }
        self.kubernetes();
        self.parsed.left_out += 1;
        let message = format!("document {} {}; nothing of this document is used", self.document, error.message);
        self.outside_objects(Severity::Error, error.line, &message);
    }

    /// Reports the first template of a file: the others have the same remedy.
    fn template(&mut self, line: usize) {
        if self.parsed.skipped != Some(SkipReason::Template) {
            self.parsed.skipped = Some(SkipReason::Template);
            self.outside_objects(Severity::Warning, line, stray::TEMPLATE);
        }
    }

    fn stray(&mut self, line: usize, message: String) {
        let stray = Stray { document: self.document, line, message };
        if self.is_kubernetes { self.report_stray(&stray) } else { self.stray.push(stray) }
    }

    /// The file holds a Kubernetes object: other documents should be objects too.
    fn kubernetes(&mut self) {
        self.is_kubernetes = true;
        for stray in std::mem::take(&mut self.stray) {
            self.report_stray(&stray);
        }
    }

    fn report_stray(&mut self, Stray { document, line, message }: &Stray) {
        self.parsed.left_out += 1;
        self.diagnostics.add(Severity::Error, *document, None, message, || (*line, None));
    }

    /// Reports what stands before the next document.
    pub(super) fn faults(&mut self, faults: &[Fault]) {
        for fault in faults {
            if fault.severity == Severity::Error {
                self.parsed.left_out += 1;
            }
            self.outside_objects(fault.severity, fault.line, fault.message);
        }
    }

    /// Reports a document that follows an end marker. `kubectl` reads one YAML document up to each `---`, and silently ignores the rest.
    pub(super) fn after_end(&mut self, tree: &Tree) {
        let message = "kubectl ignores a document after `...`; write `---` before it";
        self.outside_objects(Severity::Warning, tree.lines.of(&FieldPath::default()), message);
    }

    fn outside_objects(&mut self, severity: Severity, line: usize, message: &str) {
        self.diagnostics.add(severity, self.document, None, message, || (line, None));
    }

    pub(super) fn document(&mut self, tree: &mut Tree) {
        if tree.value.is_null() {
            return;
        }
        self.document += 1;
        let value = tree.value.take();
        let line = tree.lines.of(&FieldPath::default());
        if !stray::looks_like_kubernetes(&value) {
            let what = if value.is_object() { "has no `kind`" } else { "is not an object" };
            return self.stray(line, format!("{what}; a Kubernetes object needs apiVersion, kind and metadata"));
        }
        self.kubernetes();
        if stray::has_template_name(&value) {
            return self.template(line);
        }
        self.object(tree, value, FieldPath::default(), None);
    }

    /// `inherited` is the apiVersion and kind that a typed list gives its items.
    fn object(&mut self, tree: &Tree, mut value: Value, root: FieldPath, inherited: Option<(&str, &str)>) {
        let mut place = Place { tree, root, name: None };
        let Some(map) = value.as_object_mut() else {
            return self.left_out(
                &place,
                &FieldPath::default(),
                "is not an object; it needs apiVersion, kind and metadata",
            );
        };
        if let Some((api_version, kind)) = inherited {
            map.entry("apiVersion").or_insert_with(|| api_version.into());
            map.entry("kind").or_insert_with(|| kind.into());
        }
        let text = |key: &str| map.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let (api_version, kind) = (text("apiVersion"), text("kind"));
        if kind.is_empty() {
            return self.left_out(&place, &FieldPath::default(), "has no `kind`; it is left out");
        }
        if let Some(item_kind) = kind.strip_suffix("List")
            && let Some(Value::Array(items)) = map.get_mut("items").map(Value::take)
        {
            let inherited = (!item_kind.is_empty()).then_some((api_version.as_str(), item_kind));
            for (index, item) in items.into_iter().enumerate() {
                let root = place.root.key("items").index(index);
                self.object(tree, item, root, inherited);
            }
            return;
        }
        let Some(expected) = expected_version(&kind, &api_version) else {
            let line = tree.lines.of(&place.root);
            self.parsed.ignored.push(Ignored { file: self.diagnostics.file().clone(), line, api_version, kind });
            return;
        };
        place.name = Some(title(&kind, map));
        if api_version != expected {
            let message = format!("is `{api_version}`; it is read as {expected}, which to write instead");
            self.error(&place, &FieldPath::default().key("apiVersion"), &message);
            map.insert("apiVersion".into(), expected.into());
        }
        if let Err(message) = self.complete_name(&place, map) {
            return self.left_out(&place, &FieldPath::default().key("metadata").key("name"), &message);
        }
        place.name = Some(title(&kind, map));
        self.refused(&place, &kind, map);
        for path in nulls::replace(&mut value) {
            self.warning(&place, &path, "is null, which the API server reads as empty; write what is meant");
        }
        // A policy must isolate whatever its size: it is given up below, not left out.
        if kind != "NetworkPolicy" && size::is_too_large(&value) {
            return self.left_out(
                &place,
                &FieldPath::default(),
                &format!("{}; the object is left out", size::TOO_LARGE),
            );
        }
        self.of_kind(&place, &kind, value);
    }

    /// Reports a name and labels that the API server refuses. The object counts all the same.
    fn refused(&mut self, place: &Place<'_>, kind: &str, map: &Map<String, Value>) {
        let Some(Value::Object(metadata)) = map.get("metadata") else { return };
        let root = FieldPath::default().key("metadata");
        let mut refuse = |path: &FieldPath, message: String| {
            self.error(place, path, &format!("{message}; the API server refuses this object"));
        };
        let generated = metadata.get("generateName").is_some_and(|prefix| !prefix.is_null());
        let name = metadata.get("name").and_then(Value::as_str).filter(|_| !generated);
        if let Some(message) = name.and_then(|name| names::name_error(kind, name)) {
            refuse(&root.key("name"), message);
        }
        let Some(Value::Object(labels)) = metadata.get("labels") else { return };
        for (key, value) in labels {
            let value = value.as_str().unwrap_or_default();
            if let Some(message) = names::label_key_error(key).or_else(|| names::label_value_error(value)) {
                refuse(&root.key("labels").key(key), message);
            }
        }
    }

    /// Gives an object with `generateName` a name that no other object has, as the API server will.
    fn complete_name(&self, place: &Place<'_>, map: &mut Map<String, Value>) -> Result<(), String> {
        let metadata = map.get_mut("metadata").and_then(Value::as_object_mut);
        let Some(metadata) = metadata else { return Err("is absent; the object is left out".to_owned()) };
        match metadata.get("name") {
            Some(Value::String(name)) if !name.is_empty() => return Ok(()),
            Some(Value::String(_) | Value::Null) | None => {}
            Some(other) => return Err(format!("`{other}` is not a string: put it in quotes; the object is left out")),
        }
        match metadata.get("generateName") {
            Some(Value::String(prefix)) if !prefix.is_empty() => {
                let name = format!("{prefix}*({}:{})", self.diagnostics.file(), place.tree.lines.of(&place.root));
                metadata.insert("name".to_owned(), name.into());
                Ok(())
            }
            _ => Err("is absent; the object is left out".to_owned()),
        }
    }

    fn of_kind(&mut self, place: &Place<'_>, kind: &str, value: Value) {
        match kind {
            "Namespace" => {
                let Some(api) = self.typed::<core::Namespace>(place, value) else { return };
                self.found(place, Object::Namespace(Namespace::from_api(&api)));
            }
            "Pod" => {
                let Some(api) = self.typed::<core::Pod>(place, value) else { return };
                let (pod, problems) = Pod::from_api(&api);
                self.problems(place, &problems);
                self.found(place, Object::Pod(pod));
            }
            "Node" => {
                let Some(api) = self.typed::<core::Node>(place, value) else { return };
                let (node, problems) = Node::from_api(&api);
                self.problems(place, &problems);
                self.found(place, Object::Node(node));
            }
            "Service" => {
                let Some(api) = self.typed::<core::Service>(place, value) else { return };
                let (service, problems) = Service::from_api(&api);
                self.problems(place, &problems);
                self.found(place, Object::Service(service));
            }
            "EndpointSlice" => {
                let Some(api) = self.typed::<discovery::EndpointSlice>(place, value) else { return };
                let (slice, problems) = EndpointSlice::from_api(&api);
                self.problems(place, &problems);
                self.found(place, Object::Slice(slice));
            }
            _ => self.policy(place, value),
        }
    }

    /// An object that counts whole or not at all.
    fn typed<T: DeserializeOwned>(&mut self, place: &Place<'_>, value: Value) -> Option<T> {
        self.repeated(place);
        let (result, unknown) = deserialize::<T>(value);
        for path in unknown {
            // Elsewhere an unknown field is most likely one of a newer Kubernetes, and no label.
            if path.to_string().starts_with("metadata.") {
                self.warning(place, &path, "is no field that Kubernetes knows; is it misspelt?");
            }
        }
        match result {
            Ok(object) => Some(object),
            Err((path, message)) => {
                self.left_out(place, &path, &format!("{message}; the object is left out"));
                None
            }
        }
    }

    fn policy(&mut self, place: &Place<'_>, mut value: Value) {
        let mut faults: Vec<FieldFault> = Vec::new();
        let mut given_up: Vec<FieldPath> = Vec::new();
        let repeated = place.tree.repeated_below(&place.root);
        let mut found: Vec<(FieldPath, String)> = repeated.map(|path| (path, "stands twice".to_owned())).collect();
        let spec = FieldPath(vec![Step::Key("spec".to_owned())]);
        if size::is_too_large(&value) {
            found = vec![(spec.clone(), size::TOO_LARGE.to_owned())];
        }
        let api = loop {
            let in_spec = found.iter().filter(|(path, _)| path.below(&spec).is_some()).count();
            if given_up.len() + in_spec > MAX_FAULTS && !given_up.contains(&spec) {
                found = vec![(spec.clone(), format!("has more than {MAX_FAULTS} faults"))];
            }
            for (path, message) in found.drain(..) {
                let Some((place_given_up, consequence)) = salvage::give_up(&mut value, &path) else {
                    return self.left_out(place, &path, &format!("{message}; nothing of this policy can be used"));
                };
                let matters = path.to_string().starts_with("spec");
                let severity = if matters { Severity::Error } else { Severity::Warning };
                faults.push(FieldFault { severity, path, message: format!("{message}; {consequence}") });
                if matters {
                    given_up.push(place_given_up);
                }
            }
            let (result, unknown) = deserialize::<NetworkPolicy>(value.clone());
            for path in unknown {
                // The API server once wrote a status, which nobody reads.
                if path.to_string() != "status" {
                    found.push((path, "is no field of a NetworkPolicy; is it misspelt?".to_owned()));
                }
            }
            match result {
                Ok(api) if found.is_empty() => break api,
                Ok(_) => {}
                Err(fault) => found.push(fault),
            }
        };
        let mut policy = Policy::from_api(&api);
        // What was put in for a part that was given up has been reported already, and better.
        let given_up: Vec<String> = given_up.iter().map(ToString::to_string).collect();
        policy.problems.retain(|problem| !given_up.iter().any(|place| is_within(&problem.field, place)));
        let own: Vec<Problem> = policy.problems.clone();
        for fault in faults {
            let FieldFault { severity, path, message } = fault;
            self.at(place, severity, &path, &message);
            policy.problems.push(Problem { severity, field: path.to_string(), message });
        }
        self.problems(place, &own);
        self.found(place, Object::Policy(policy));
    }

    fn repeated(&mut self, place: &Place<'_>) {
        for path in place.tree.repeated_below(&place.root) {
            self.warning(place, &path, "stands twice; the last one counts");
        }
    }

    fn found(&mut self, place: &Place<'_>, object: Object) {
        let line = place.tree.lines.of(&place.root);
        self.parsed.objects.push(Located {
            object,
            file: self.diagnostics.file().clone(),
            line,
            document: self.document,
        });
    }

    fn problems(&mut self, place: &Place<'_>, problems: &[Problem]) {
        for Problem { severity, field, message } in problems {
            let found = || (place.line_of_text(field), Some(field.clone()));
            self.diagnostics.add(*severity, self.document, place.name.as_deref(), message, found);
        }
    }

    /// An object that does not count at all.
    fn left_out(&mut self, place: &Place<'_>, path: &FieldPath, message: &str) {
        self.parsed.left_out += 1;
        self.error(place, path, message);
    }

    fn error(&mut self, place: &Place<'_>, path: &FieldPath, message: &str) {
        self.at(place, Severity::Error, path, message);
    }

    fn warning(&mut self, place: &Place<'_>, path: &FieldPath, message: &str) {
        self.at(place, Severity::Warning, path, message);
    }

    fn at(&mut self, place: &Place<'_>, severity: Severity, path: &FieldPath, message: &str) {
        let found = || {
            let field = (!path.0.is_empty()).then(|| path.to_string());
            (place.tree.lines.of(&place.absolute(path)), field)
        };
        self.diagnostics.add(severity, self.document, place.name.as_deref(), message, found);
    }
}

impl Place<'_> {
    fn absolute(&self, path: &FieldPath) -> FieldPath {
        FieldPath(self.root.0.iter().chain(&path.0).cloned().collect())
    }

    /// The line of a field that is named in text, or of the nearest one around it.
    fn line_of_text(&self, field: &str) -> usize {
        self.tree.lines.nearest(&self.root).of_text(field)
    }
}

/// Whether `field` is `place` or a part of it.
fn is_within(field: &str, place: &str) -> bool {
    field.strip_prefix(place).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
}

/// The apiVersion of a kind netpol uses; `None` for all others, those of the same name in other APIs included.
fn expected_version(kind: &str, api_version: &str) -> Option<&'static str> {
    let group = api_version.rsplit_once('/').map_or("", |(group, _)| group);
    match (kind, group) {
        ("Namespace" | "Pod" | "Node" | "Service", "") => Some("v1"),
        ("EndpointSlice", "discovery.k8s.io") => Some("discovery.k8s.io/v1"),
        ("NetworkPolicy", "" | "extensions" | "networking.k8s.io") => Some("networking.k8s.io/v1"),
        _ => None,
    }
}

fn title(kind: &str, map: &Map<String, Value>) -> String {
    let metadata = |key| map.get("metadata").and_then(|metadata| metadata.get(key)).and_then(Value::as_str);
    let name = metadata("name").unwrap_or("(without a name)");
    match kind {
        "Namespace" | "Node" => format!("{kind} {name}"),
        _ => format!("{kind} {}/{name}", metadata("namespace").unwrap_or("default")),
    }
}

/// The object or the first field that has the wrong type, and the fields that are not known.
fn deserialize<T: DeserializeOwned>(value: Value) -> (Result<T, (FieldPath, String)>, Vec<FieldPath>) {
    let mut unknown = Vec::new();
    let mut track = serde_path_to_error::Track::new();
    let tracked = serde_path_to_error::Deserializer::new(value, &mut track);
    let result: Result<T, _> = serde_ignored::deserialize(tracked, |path| unknown.push(FieldPath::from(&path)));
    let result = result.map_err(|error| (FieldPath::from(&track.path()), plain(&error)));
    (result, unknown)
}

/// Serde's message, with what to do about the most common mistake.
fn plain(error: &serde_json::Error) -> String {
    let message = error.to_string();
    let unquoted = ["integer", "boolean", "floating point"]
        .iter()
        .any(|kind| message.starts_with(&format!("invalid type: {kind}")));
    if unquoted && message.ends_with("expected a string") { format!("{message}: put it in quotes") } else { message }
}
