//! Kubernetes YAML and JSON, as text, to the model, with file lines for what is wrong.
//!
//! ```text
//! text ─► split: documents ─► tree: values with lines ─► object: one kind each ─► model
//!                                                          └► salvage: what can be kept of a faulty policy
//! ```
//!
//! A document that cannot be read never takes another one with it: files are cut at their `---` lines before anything is parsed.

mod diagnostics;
mod nulls;
mod object;
mod path;
mod salvage;
mod scalar;
mod size;
mod split;
mod stray;
mod tree;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::Serialize;

use diagnostics::Diagnostics;

use crate::model::{Object, ObjectKey, Severity};
use crate::text::Safe;

/// What a file holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parsed {
    /// The objects netpol uses, in the order of the file.
    pub objects: Vec<Located<Object>>,
    /// What is wrong, warnings included, in the order of the file; of each kind the first few, and at the end how many more. What
    /// is wrong within a policy also stands in [`crate::model::Policy::problems`]; what is here has its line.
    pub errors: Vec<ManifestError>,
    /// Documents and objects of which nothing counts.
    pub left_out: usize,
    /// Objects of kinds that netpol does not use.
    pub ignored: Vec<Ignored>,
    /// The file, where it holds no Kubernetes object at all or is a template that has to be rendered first.
    pub skipped: Option<SkipReason>,
}

/// Why a file, or a part of it, is not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum SkipReason {
    /// No document of it looks like a Kubernetes object: Helm values, the configuration of another program.
    NotKubernetes,
    /// At least one document is a template: the objects that it renders to are not known.
    Template,
}

/// Something and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Located<T> {
    /// What stands there.
    pub object: T,
    /// The file, as the caller named it.
    pub file: Arc<str>,
    /// The line it begins on, from 1.
    pub line: usize,
    /// Which document of the file, from 1; empty ones do not count.
    pub document: usize,
}

/// An object of a kind that netpol does not use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Ignored {
    /// The file.
    pub file: Arc<str>,
    /// The line it begins on, from 1.
    pub line: usize,
    /// Its `apiVersion`.
    pub api_version: String,
    /// Its `kind`.
    pub kind: String,
}

/// Something wrong in a file, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, thiserror::Error)]
pub struct ManifestError {
    /// How bad it is. With an error, something means less than what was written.
    pub severity: Severity,
    /// The file, as the caller named it.
    pub file: Arc<str>,
    /// The line of the field, or of the nearest one around it, from 1.
    pub line: usize,
    /// Which document of the file, from 1; empty ones do not count.
    pub document: usize,
    /// The object, `Kind namespace/name`, where it has got that far.
    pub object: Option<String>,
    /// Path of the field.
    pub field: Option<String>,
    /// What is wrong and what to write instead.
    pub message: String,
    /// How many it stands for: 1, or more where a file has too many of a kind to list each.
    #[serde(skip_serializing_if = "is_one")]
    pub count: usize,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_one(count: &usize) -> bool {
    *count == 1
}

/// `file:line: error: Kind namespace/name: field: message`.
impl fmt::Display for ManifestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}: ", Safe(&self.file), self.line, self.severity.name())?;
        for part in [&self.object, &self.field].into_iter().flatten() {
            write!(f, "{}: ", Safe(part))?;
        }
        write!(f, "{}", Safe(&self.message))
    }
}

/// Reads every document of a YAML or JSON text. This never fails: what cannot be read is among the errors.
pub fn parse(text: &str, file: &str) -> Parsed {
    let mut reader = object::Reader::new(file);
    let mut aliased = 0;
    for piece in split::documents(text) {
        reader.faults(&piece.faults);
        match tree::read(&piece, &mut aliased) {
            Ok(trees) => {
                for (index, mut tree) in trees.into_iter().enumerate() {
                    if index > 0 {
                        reader.after_end(&tree);
                    }
                    reader.document(&mut tree);
                }
            }
            Err(error) => reader.unreadable(piece.text, &error),
        }
    }
    reader.finish()
}

/// Understands one object that did not come as text: the same rules, and what is wrong has `name` for its file.
pub fn read(value: serde_json::Value, name: &str) -> Parsed {
    let mut reader = object::Reader::new(name);
    reader.document(&mut tree::Tree::without_lines(value));
    reader.finish()
}

/// Objects that stand more than once among `objects`, which may come from many files: the last one counts. Of each file the first
/// few are listed and the rest counted.
pub fn duplicates(objects: &[Located<Object>]) -> Vec<ManifestError> {
    let mut first: BTreeMap<ObjectKey, &Located<Object>> = BTreeMap::new();
    let mut files: BTreeMap<&str, Diagnostics> = BTreeMap::new();
    for located in objects {
        let key = located.object.key();
        let Some(earlier) = first.insert(key.clone(), located) else { continue };
        let message = format!("stands in {}:{} too; this one counts", earlier.file, earlier.line);
        let diagnostics = files.entry(&located.file).or_insert_with(|| Diagnostics::new(&located.file));
        let place = || (located.line, None);
        diagnostics.add(Severity::Warning, located.document, Some(&key.to_string()), &message, place);
    }
    files.into_values().flat_map(Diagnostics::finish).collect()
}

#[cfg(test)]
mod tests;
