//! Writes the fix of a finding as a patch: a unified diff if the text of the manifest can be edited, otherwise a JSON
//! patch of the object.
//!
//! The text is edited by lines, which is not correct for every YAML text. So the edited text is parsed, and the diff is
//! only used if the result is exactly the expected object.

mod edit;
mod unified;

use std::cell::OnceCell;

use serde::Serialize;
use serde_json::{Value, json};

use crate::explain::yaml::Node;
use crate::manifest::{FieldPath, Lines, PolicySource, Step, value_of};

/// A change of a file or of an object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Patch {
    /// The format of the text.
    pub format: PatchFormat,
    /// The patch.
    pub text: String,
}

/// The format of a patch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum PatchFormat {
    /// For `patch -p0` and `git apply -p0`.
    UnifiedDiff,
    /// For `kubectl patch --type=json`: RFC 6902.
    JsonPatch,
}

/// A change of one field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    /// Adds an item to a list. Creates the list if it is missing.
    Append(FieldPath, Node),
    /// Adds a key to a map that does not have it.
    Add(FieldPath, Node),
    /// Replaces a value that exists.
    Replace(FieldPath, Node),
    /// Removes a value that exists.
    Remove(FieldPath),
}

/// Creates patches of one policy.
#[derive(Debug)]
pub(super) struct Editor<'s> {
    source: &'s PolicySource,
    /// Parsed at the first use. `None` if the text cannot be edited.
    parsed: OnceCell<Option<ParsedObject>>,
}

/// The text of the policy, and the parsed value.
#[derive(Debug)]
struct ParsedObject {
    /// The lines of the text.
    text: Vec<String>,
    value: Value,
    /// The line numbers of the fields.
    line_numbers: Lines,
}

impl<'s> Editor<'s> {
    pub(super) const fn new(source: &'s PolicySource) -> Self {
        Self { source, parsed: OnceCell::new() }
    }

    /// Returns the source of the policy.
    pub(super) const fn source(&self) -> &'s PolicySource {
        self.source
    }

    /// Returns the operations as a patch; `None` if an operation is not possible in the object.
    pub(super) fn patch(&self, operations: &[Operation]) -> Option<Patch> {
        if let Some(text) = self.diff(operations) {
            return Some(Patch { format: PatchFormat::UnifiedDiff, text });
        }
        let mut value = self.source.value.clone();
        let json_operations: Option<Vec<Value>> = operations
            .iter()
            .map(|operation| {
                let json_operation = operation.json(&value);
                apply(&mut value, operation)?;
                json_operation
            })
            .collect();
        Some(Patch { format: PatchFormat::JsonPatch, text: Value::Array(json_operations?).to_string() })
    }

    /// Returns the operations as a unified diff; `None` if the text cannot be edited.
    fn diff(&self, operations: &[Operation]) -> Option<String> {
        let parsed = self.parsed.get_or_init(|| parse(self.source)).as_ref()?;
        let mut expected = parsed.value.clone();
        let (mut new, mut line_numbers) = (parsed.text.clone(), None);
        for operation in operations {
            apply(&mut expected, operation)?;
            new = edit::apply(&new, line_numbers.as_ref().unwrap_or(&parsed.line_numbers), operation)?;
            let (value, next) = value_of(&text_of(&new))?;
            if value != expected {
                return None;
            }
            line_numbers = Some(next);
        }
        // Undoes the replacement in `object_lines`.
        if let Some(dash) = self.source.dash {
            new.first_mut()?.replace_range(dash..=dash, "-");
        }
        unified::diff(&self.source.file, &self.source.text, self.source.range.clone(), &new)
    }
}

fn parse(source: &PolicySource) -> Option<ParsedObject> {
    let text = object_lines(source)?;
    let (value, line_numbers) = value_of(&text_of(&text))?;
    Some(ParsedObject { text, value, line_numbers })
}

/// Returns the lines of the policy. If the policy is an item of a List, a space replaces the `-` before it. Returns
/// `None` if the text has CRLF line breaks, because added lines would have only LF.
fn object_lines(source: &PolicySource) -> Option<Vec<String>> {
    let mut lines: Vec<String> = source.text.lines(source.range.clone()).map(str::to_owned).collect();
    if lines.iter().any(|line| line.contains('\r')) {
        return None;
    }
    if let Some(dash) = source.dash {
        lines.first_mut()?.replace_range(dash..=dash, " ");
    }
    Some(lines)
}

fn text_of(lines: &[String]) -> String {
    lines.iter().flat_map(|line| [line, "\n"]).collect()
}

impl Operation {
    /// Returns the operation in the format of a JSON patch (RFC 6902). `value`: the object before the operation.
    fn json(&self, value: &Value) -> Option<Value> {
        Some(match self {
            Self::Append(path, item) => {
                let item = value_of_node(item)?;
                let exists = get(value, path).is_some_and(Value::is_array);
                if exists {
                    json!({"op": "add", "path": format!("{}/-", pointer(path)), "value": item})
                } else {
                    json!({"op": "add", "path": pointer(path), "value": [item]})
                }
            }
            Self::Add(path, new) => json!({"op": "add", "path": pointer(path), "value": value_of_node(new)?}),
            Self::Replace(path, new) => {
                json!({"op": "replace", "path": pointer(path), "value": value_of_node(new)?})
            }
            Self::Remove(path) => json!({"op": "remove", "path": pointer(path)}),
        })
    }
}

/// Returns the path of a field as a JSON pointer (RFC 6901).
fn pointer(path: &FieldPath) -> String {
    let step = |step: &Step| match step {
        Step::Key(key) => format!("/{}", key.replace('~', "~0").replace('/', "~1")),
        Step::Index(index) => format!("/{index}"),
    };
    path.0.iter().map(step).collect()
}

/// Parses the YAML that an operation writes.
fn value_of_node(node: &Node) -> Option<Value> {
    value_of(&node.flow()).map(|(value, _)| value)
}

fn get<'v>(value: &'v Value, path: &FieldPath) -> Option<&'v Value> {
    path.0.iter().try_fold(value, |value, step| match step {
        Step::Key(key) => value.get(key),
        Step::Index(index) => value.get(index),
    })
}

fn get_mut<'v>(value: &'v mut Value, steps: &[Step]) -> Option<&'v mut Value> {
    steps.iter().try_fold(value, |value, step| match step {
        Step::Key(key) => value.get_mut(key),
        Step::Index(index) => value.get_mut(index),
    })
}

/// Applies an operation to the object. Returns `None` if the operation is not possible, for example because the field
/// does not exist.
fn apply(value: &mut Value, operation: &Operation) -> Option<()> {
    match operation {
        Operation::Append(path, item) => {
            let item = value_of_node(item)?;
            let (last, parents) = path.0.split_last()?;
            let (Step::Key(key), Value::Object(map)) = (last, get_mut(value, parents)?) else { return None };
            let list = map.entry(key.as_str()).or_insert(Value::Null);
            match list {
                Value::Array(items) => items.push(item),
                Value::Null => *list = json!([item]),
                _ => return None,
            }
        }
        Operation::Add(path, new) => {
            let (Step::Key(key), parents) = path.0.split_last()? else { return None };
            let map = get_mut(value, parents)?.as_object_mut().filter(|map| !map.contains_key(key))?;
            map.insert(key.clone(), value_of_node(new)?);
        }
        Operation::Replace(path, new) => *get_mut(value, &path.0)? = value_of_node(new)?,
        Operation::Remove(path) => {
            let (last, parents) = path.0.split_last()?;
            match (last, get_mut(value, parents)?) {
                (Step::Key(key), Value::Object(map)) => map.remove(key).map(|_| ())?,
                (Step::Index(index), Value::Array(items)) if *index < items.len() => {
                    items.remove(*index);
                }
                _ => return None,
            }
        }
    }
    Some(())
}

#[cfg(test)]
mod tests;
