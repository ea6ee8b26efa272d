//! Parses Kubernetes YAML and JSON into the model, with line numbers for diagnostics.
//!
//! ```text
//! text ─► split: documents ─► tree: values with lines ─► object: parses each object ─► model
//!                                                          └► salvage: valid parts of an invalid policy
//! ```
//!
//! Files are split at `---` lines before anything is parsed, so that an invalid document does not affect others.

mod all_files;
mod details;
mod diagnostics;
mod non_object;
mod nulls;
mod object;
mod path;
mod salvage;
mod scalar;
mod size;
mod split;
mod tree;

use std::fmt;
use std::sync::Arc;

use serde::Serialize;

pub(crate) use all_files::beyond_pod_limit;
pub use all_files::report;
pub(crate) use details::value_of;
pub use details::{CustomResourceLabels, Details, FileText, IGNORE_ANNOTATION, PodDetails, PolicySource};
pub(crate) use path::{FieldPath, Step};
pub(crate) use tree::Lines;

use crate::lint::RuleId;
use crate::model::{Object, PodKey, PolicyScope, Severity, Workload, WorkloadKey};
use crate::text::Safe;

/// The content of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parsed {
    /// Objects that netpol uses, in the order of the file.
    pub objects: Vec<Located<Object>>,
    /// Diagnostics, including warnings, in the order of the file: the first few of each kind, then a summary.
    /// Diagnostics of a policy are in [`crate::model::Policy::diagnostics`], too, but without line numbers.
    pub errors: Vec<ManifestError>,
    /// Number of documents and objects that have no effect because of errors.
    pub invalid_documents: usize,
    /// Objects of kinds that netpol does not use.
    pub ignored: Vec<Ignored>,
    /// Policies of kinds that netpol does not evaluate; not in `ignored`.
    pub unevaluated: Vec<Unevaluated>,
    /// Workloads. Only [`parse_offline`] reads them; otherwise they are in `ignored`.
    pub workloads: Vec<Located<Workload>>,
    /// The workloads that control pods of `objects`. Only [`parse_offline`] reads them.
    pub controllers: Vec<(PodKey, WorkloadKey)>,
    /// What only `netpol lint` uses. Only [`parse_offline`] reads it.
    pub details: Details,
    /// Set if the file has no Kubernetes objects at all or is a template that must be rendered first.
    pub skipped: Option<SkipReason>,
}

/// The reason why a file or a part of it is skipped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum SkipReason {
    /// No document is like a Kubernetes object, as in Helm values or the configuration of another program.
    NotKubernetes,
    /// At least one document is a template. Its objects are unknown until it is rendered.
    Template,
}

/// An object and its location.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Located<T> {
    /// The object.
    pub object: T,
    /// The file name that was passed to the parser.
    pub file: Arc<str>,
    /// The line at which the object starts, from 1.
    pub line: usize,
    /// Index of the document in the file, from 1, without empty documents.
    pub document: usize,
}

/// An object of a kind that netpol does not use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Ignored {
    /// The file; empty for an object of a cluster.
    #[serde(skip_serializing_if = "no_file")]
    pub file: Arc<str>,
    /// The line at which the object starts, from 1; 0 without a file.
    #[serde(skip_serializing_if = "no_line")]
    pub line: usize,
    /// `apiVersion`.
    pub api_version: String,
    /// `kind`.
    pub kind: String,
}

/// A policy of a kind that netpol does not evaluate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Unevaluated {
    /// The file; empty for an object of a cluster.
    #[serde(skip_serializing_if = "no_file")]
    pub file: Arc<str>,
    /// The line at which the policy starts, from 1; 0 without a file.
    #[serde(skip_serializing_if = "no_line")]
    pub line: usize,
    /// `apiVersion`.
    pub api_version: String,
    /// `kind`.
    pub kind: String,
    /// `namespace/name`, or the name if the kind is cluster-scoped.
    pub name: String,
    /// The pods that the policy may apply to.
    #[serde(skip)]
    pub scope: PolicyScope,
    /// A hash of the policy's content, by [`crate::model::content_hash`]. If the content changes, the hash changes.
    #[serde(skip)]
    pub content: u64,
}

/// A diagnostic of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, thiserror::Error)]
#[serde(rename_all = "camelCase")]
pub struct ManifestError {
    /// The rule of `netpol lint`.
    pub rule: RuleId,
    /// Severity. Error: a part of the object, or the whole object, has no effect.
    pub severity: Severity,
    /// The file name that was passed to the parser; empty for an object of a cluster.
    #[serde(skip_serializing_if = "no_file")]
    pub file: Arc<str>,
    /// Line of the field or of the nearest field around it, from 1; 0 without a file.
    #[serde(skip_serializing_if = "no_line")]
    pub line: usize,
    /// Index of the document in the file, from 1, without empty documents.
    pub document: usize,
    /// The object as `Kind namespace/name`, if known.
    pub object: Option<String>,
    /// Path of the field.
    pub field: Option<String>,
    /// What is wrong and how to fix it.
    pub message: String,
    /// Number of diagnostics that this one stands for: 1, or more for a summary.
    #[serde(skip_serializing_if = "is_one")]
    pub count: usize,
}

/// Returns whether an object has no file, because it was read from a cluster.
pub(crate) fn no_file(file: &Arc<str>) -> bool {
    file.is_empty()
}

/// Returns whether an object has no line, because it was read from a cluster.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
pub(crate) fn no_line(line: &usize) -> bool {
    *line == 0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_one(count: &usize) -> bool {
    *count == 1
}

/// Writes `file:line: error: Kind namespace/name: field: message`. Without a file, omits `file:line: `.
impl fmt::Display for ManifestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.file.is_empty() {
            write!(f, "{}:{}: ", Safe(&self.file), self.line)?;
        }
        write!(f, "{}: ", self.severity.name())?;
        for part in [&self.object, &self.field].into_iter().flatten() {
            write!(f, "{}: ", Safe(part))?;
        }
        write!(f, "{}", Safe(&self.message))
    }
}

/// Parses all documents of a YAML or JSON text. This never fails: what cannot be parsed is reported in `errors`.
pub fn parse(text: &str, file: &str) -> Parsed {
    parse_with(object::ObjectReader::new(file), text)
}

/// Parses like [`parse`], and also reads workloads (their pods may not exist yet), and details for `netpol lint`.
pub fn parse_offline(text: &str, file: &str) -> Parsed {
    parse_offline_in(text, file, None)
}

/// Parses like [`parse_offline`]. Objects without a namespace get `namespace`, as if kubectl applied them with `-n`.
pub fn parse_offline_in(text: &str, file: &str, namespace: Option<&str>) -> Parsed {
    parse_with(object::ObjectReader::new(file).offline(text).in_namespace(namespace), text)
}

fn parse_with(mut reader: object::ObjectReader, text: &str) -> Parsed {
    // The number of values that YAML aliases have repeated so far. It is limited.
    let mut aliased = 0;
    for document in split::documents(text) {
        reader.report_faults(&document.faults);
        let lines = document.lines_before..document.lines_before + document.text.lines().count();
        match tree::read(&document, &mut aliased) {
            Ok(trees) => {
                for (index, mut tree) in trees.into_iter().enumerate() {
                    // A YAML end marker (`...`) separates this document from the previous one.
                    if index > 0 {
                        reader.report_document_after_end(&tree);
                    }
                    tree.range = lines.clone();
                    reader.read_document(&mut tree);
                }
            }
            Err(error) => reader.report_unreadable(document.text, &error),
        }
    }
    reader.finish()
}

impl Parsed {
    /// Adds the content of another file.
    pub fn extend(&mut self, other: Self) {
        let Self {
            objects,
            errors,
            invalid_documents,
            ignored,
            unevaluated,
            workloads,
            controllers,
            details,
            skipped: _,
        } = other;
        self.objects.extend(objects);
        self.errors.extend(errors);
        self.invalid_documents += invalid_documents;
        self.ignored.extend(ignored);
        self.unevaluated.extend(unevaluated);
        self.workloads.extend(workloads);
        self.controllers.extend(controllers);
        self.details.extend(details);
    }

    /// Removes all files and lines. Used for the objects of a cluster, which have no files.
    pub fn remove_positions(&mut self) {
        let Self { objects, errors, ignored, unevaluated, workloads, details, .. } = self;
        let positions = objects.iter_mut().map(|located| (&mut located.file, &mut located.line));
        let positions = positions
            .chain(workloads.iter_mut().map(|located| (&mut located.file, &mut located.line)))
            .chain(errors.iter_mut().map(|error| (&mut error.file, &mut error.line)))
            .chain(ignored.iter_mut().map(|ignored| (&mut ignored.file, &mut ignored.line)))
            .chain(unevaluated.iter_mut().map(|policy| (&mut policy.file, &mut policy.line)));
        for (file, line) in positions {
            (*file, *line) = (Arc::default(), 0);
        }
        for source in details.policies.values_mut() {
            source.file = Arc::default();
        }
    }
}

/// Parses one object from a JSON value, in the same way as text. Diagnostics have `name` as their file.
pub fn read(value: serde_json::Value, name: &str) -> Parsed {
    let mut reader = object::ObjectReader::new(name);
    reader.read_document(&mut tree::Tree::without_lines(value));
    reader.finish()
}

#[cfg(test)]
mod tests;
