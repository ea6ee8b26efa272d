//! The findings of `netpol lint`, and how to fix them.

use std::sync::Arc;

use serde::Serialize;

use super::patch::{Editor, Operation, Patch};
use super::rule::RuleId;
use crate::explain::PolicyChange;
use crate::explain::yaml;
use crate::manifest::{FieldPath, Step, no_file, no_line};
use crate::model::Severity;

/// A mistake, or a fact that is worth a look.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// The lint rule.
    pub rule: RuleId,
    /// The severity.
    pub severity: Severity,
    /// The object as `Kind namespace/name`, if known.
    pub object: Option<String>,
    /// The file name that was passed to the parser; empty for an object of a cluster.
    #[serde(skip_serializing_if = "no_file")]
    pub file: Arc<str>,
    /// The line of the field or of the nearest field around it, from 1; 0 without a file.
    #[serde(skip_serializing_if = "no_line")]
    pub line: usize,
    /// The path of the field, such as `spec.egress[0].to[0]`.
    pub path: Option<String>,
    /// What is wrong, in a sentence.
    pub message: String,
    /// Why it matters, in a sentence; empty if the message says it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub why: String,
    /// How to fix it.
    pub fix: Option<Fix>,
    /// The number of findings that this one stands for: 1, or more for a summary.
    pub count: usize,
}

impl Finding {
    /// Returns the message, the reason and the fix on one line.
    pub fn text(&self) -> String {
        let fix = self.fix.as_ref().map(|fix| match &fix.inline {
            Some(inline) => format!("Fix: {}: {inline}", fix.description),
            None => format!("Fix: {}.", fix.description),
        });
        let parts = [Some(self.message.clone()), Some(self.why.clone()).filter(|why| !why.is_empty()), fix];
        parts.into_iter().flatten().collect::<Vec<_>>().join(" ")
    }
}

/// How to fix a finding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Fix {
    /// What to do, as an instruction without a full stop.
    pub description: String,
    /// The lines of YAML to write.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub yaml: Vec<String>,
    /// The edit that fixes the file, if it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub patch: Option<Patch>,
    /// The YAML on one line.
    #[serde(skip)]
    inline: Option<String>,
}

/// A finding about a policy, before it has a location.
#[derive(Clone, Debug)]
pub(super) struct Draft {
    /// The lint rule.
    pub(super) rule: RuleId,
    /// The path of the field.
    pub(super) field: String,
    severity: Severity,
    message: String,
    why: String,
    fix: DraftFix,
}

/// A fix without a patch. The patch is created when the finding gets a location.
#[derive(Clone, Debug, Default)]
pub(super) struct DraftFix {
    description: String,
    yaml: Vec<String>,
    inline: Option<String>,
    /// The changes of the object, from which the patch is created.
    operations: Vec<Operation>,
}

impl Draft {
    pub(super) fn new(
        rule: RuleId,
        field: impl Into<String>,
        message: impl Into<String>,
        why: impl Into<String>,
        fix: impl Into<DraftFix>,
    ) -> Self {
        let severity = rule.rule().severity;
        Self { rule, field: field.into(), severity, message: message.into(), why: why.into(), fix: fix.into() }
    }

    /// Lowers the severity to `Info`: the finding is a fact to review, not a probable mistake.
    pub(super) fn into_info(self) -> Self {
        Self { severity: Severity::Info, ..self }
    }

    /// Adds the location, and the patch of the fix. `object`: the finding's object, such as `NetworkPolicy shop/web`.
    /// `editor`: has the text of this policy; with `None`, the finding gets no file and no patch.
    pub(super) fn finish(self, object: &str, editor: Option<&Editor<'_>>) -> Finding {
        let Self { rule, field, severity, message, why, fix } = self;
        let source = editor.map(Editor::source).filter(|source| !source.file.is_empty());
        let (file, line) = source.map_or_else(Default::default, |source| (source.file.clone(), source.line(&field)));
        Finding {
            rule,
            severity,
            object: Some(object.to_owned()),
            file,
            line,
            path: Some(field),
            message,
            why,
            fix: fix.finish(editor),
            count: 1,
        }
    }
}

impl DraftFix {
    /// Creates a fix that changes fields.
    pub(super) fn of(description: impl Into<String>, operations: Vec<Operation>) -> Self {
        Self { description: description.into(), operations, ..Self::default() }
    }

    /// Adds lines of YAML.
    pub(super) fn with_yaml(self, yaml: &[&str]) -> Self {
        Self { yaml: yaml.iter().map(|line| (*line).to_owned()).collect(), ..self }
    }

    /// Creates a fix that removes the policy rule `index` of `count` rules from the list at the path `list`. If this is
    /// the only rule, an empty list remains, so that the policy still isolates.
    pub(super) fn without_rule(description: &str, list: FieldPath, index: usize, count: usize) -> Self {
        let operation = if count == 1 {
            Operation::Replace(list, yaml::Node::List(Vec::new()))
        } else {
            Operation::Remove(list.index(index))
        };
        Self::of(description, vec![operation])
    }

    fn finish(self, editor: Option<&Editor<'_>>) -> Option<Fix> {
        let Self { description, yaml, inline, operations } = self;
        let patch = editor.filter(|_| !operations.is_empty()).and_then(|editor| editor.patch(&operations));
        (!description.is_empty()).then_some(Fix { description, yaml, patch, inline })
    }
}

/// Creates a fix that has only a description.
impl From<&str> for DraftFix {
    fn from(description: &str) -> Self {
        Self::of(description, Vec::new())
    }
}

impl From<String> for DraftFix {
    fn from(description: String) -> Self {
        Self::of(description, Vec::new())
    }
}

impl From<Option<PolicyChange>> for DraftFix {
    fn from(change: Option<PolicyChange>) -> Self {
        // Without a change, the finding has no fix.
        let Some(change) = change else { return Self::default() };
        let list = FieldPath::default().key("spec").key(change.direction.name());
        let operation = yaml::of_rule(&change.rule, change.direction).map(|rule| match change.index {
            Some(index) => Operation::Replace(FieldPath([list.0, vec![Step::Index(index)]].concat()), rule),
            None => Operation::Append(list, rule),
        });
        Self {
            description: change.instruction(),
            yaml: change.yaml(),
            inline: Some(change.inline()),
            operations: operation.into_iter().collect(),
        }
    }
}
