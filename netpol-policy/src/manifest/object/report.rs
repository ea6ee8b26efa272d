//! Reports errors in objects, with the file, the line and the rule of `netpol lint`.

use super::{DUPLICATE_KEY, ObjectLocation, ObjectReader, UNKNOWN_FIELD};
use crate::lint::RuleId;
use crate::manifest::path::FieldPath;
use crate::model::{Diagnostic, Severity};

impl ObjectReader {
    pub(super) fn report_duplicate_keys(&mut self, location: &ObjectLocation<'_>) {
        for path in location.tree.duplicates_below(&location.root) {
            self.warning(location, &path, &format!("{DUPLICATE_KEY}; the last value is used"));
        }
    }

    pub(super) fn report_diagnostics(&mut self, location: &ObjectLocation<'_>, diagnostics: &[Diagnostic]) {
        for Diagnostic { severity, field, message } in diagnostics {
            let locate = || (location.line_of_text(field), Some(field.clone()));
            self.diagnostics.add(
                (location.lint_rule(*severity, message), *severity),
                self.document,
                location.name.as_deref(),
                message,
                locate,
            );
        }
    }

    /// Reports an object that is ignored because of an error.
    pub(super) fn report_ignored(&mut self, location: &ObjectLocation<'_>, path: &FieldPath, message: &str) {
        self.parsed.invalid_documents += 1;
        self.error(location, path, message);
    }

    pub(super) fn error(&mut self, location: &ObjectLocation<'_>, path: &FieldPath, message: &str) {
        self.report(location, Severity::Error, path, message);
    }

    pub(super) fn warning(&mut self, location: &ObjectLocation<'_>, path: &FieldPath, message: &str) {
        self.report(location, Severity::Warning, path, message);
    }

    pub(super) fn report(
        &mut self,
        location: &ObjectLocation<'_>,
        severity: Severity,
        path: &FieldPath,
        message: &str,
    ) {
        let locate = || {
            let field = (!path.0.is_empty()).then(|| path.to_string());
            (location.tree.lines.of(&location.absolute(path)), field)
        };
        self.diagnostics.add(
            (location.lint_rule(severity, message), severity),
            self.document,
            location.name.as_deref(),
            message,
            locate,
        );
    }
}

impl ObjectLocation<'_> {
    /// Returns the rule of `netpol lint` for a message.
    fn lint_rule(&self, severity: Severity, message: &str) -> RuleId {
        let is_policy = self.name.as_deref().is_some_and(|name| name.starts_with("NetworkPolicy "));
        match severity {
            _ if message.starts_with(UNKNOWN_FIELD) => RuleId::UNKNOWN_FIELD,
            _ if message.starts_with(DUPLICATE_KEY) => RuleId::DUPLICATE_KEY,
            Severity::Error if is_policy => RuleId::INVALID_POLICY,
            Severity::Error => RuleId::INVALID_OBJECT,
            Severity::Warning | Severity::Info => RuleId::UNUSUAL_VALUE,
        }
    }

    /// Returns the path in the document for a path in the object.
    pub(super) fn absolute(&self, path: &FieldPath) -> FieldPath {
        FieldPath(self.root.0.iter().chain(&path.0).cloned().collect())
    }

    /// Returns the line of a field path given as text, or of the nearest field around it.
    fn line_of_text(&self, field: &str) -> usize {
        self.tree.lines.nearest(&self.root).of_text(field)
    }
}
