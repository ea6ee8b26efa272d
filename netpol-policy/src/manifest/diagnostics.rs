//! Diagnostics of a manifest file: the first few of each kind, then a summary of the others. This limits the log lines
//! and the time for a file with a hundred thousand errors. Diagnostics are of the same kind if they have the same
//! severity, and messages that differ only in numbers and quoted text.

use std::collections::HashMap;
use std::sync::Arc;

use super::ManifestError;
use crate::lint::RuleId;
use crate::model::Severity;

/// Maximum number of diagnostics of one kind that are listed for a file. The others are counted.
pub(super) const MAX_LISTED: usize = 10;
/// Maximum number of kinds for which diagnostics are listed. Diagnostics of all further kinds are counted together.
const MAX_KINDS: usize = 50;

/// The diagnostics of a file.
#[derive(Debug)]
pub(super) struct Diagnostics {
    file: Arc<str>,
    listed: Vec<ManifestError>,
    /// The number of diagnostics of each kind.
    kinds: HashMap<String, usize>,
    /// The summaries, in the order of their first diagnostic.
    summaries: Vec<Summary>,
    /// The index in `summaries`, by kind. Kinds beyond [`MAX_KINDS`] share one summary for each severity. Its key is
    /// the name of the severity.
    summary_index: HashMap<String, usize>,
}

/// Summary of diagnostics that are not listed: those of one kind, or those of all kinds beyond [`MAX_KINDS`] with the
/// same severity.
#[derive(Debug)]
struct Summary {
    rule: RuleId,
    severity: Severity,
    count: usize,
    /// Location of the first diagnostic that is not listed.
    line: usize,
    document: usize,
    message: String,
}

impl Diagnostics {
    pub(super) fn new(file: &str) -> Self {
        let (listed, kinds, summaries, summary_index) = (Vec::new(), HashMap::new(), Vec::new(), HashMap::new());
        Self { file: file.into(), listed, kinds, summaries, summary_index }
    }

    pub(super) fn file(&self) -> &Arc<str> {
        &self.file
    }

    /// Adds a diagnostic. `locate` returns the line and field of the diagnostic. This is slow, so `locate` is called
    /// only for listed diagnostics and for the first one of a summary.
    pub(super) fn add(
        &mut self,
        (rule, severity): (RuleId, Severity),
        document: usize,
        object: Option<&str>,
        message: &str,
        locate: impl FnOnce() -> (usize, Option<String>),
    ) {
        let kind = kind(severity, message);
        let has_room = self.kinds.len() < MAX_KINDS;
        let is_listed = match self.kinds.get_mut(&kind) {
            Some(count) => {
                *count += 1;
                *count <= MAX_LISTED
            }
            None if has_room => self.kinds.insert(kind.clone(), 1).is_none(),
            None => false,
        };
        if is_listed {
            let (line, field) = locate();
            let object = object.map(str::to_owned);
            let (file, message) = (Arc::clone(&self.file), message.to_owned());
            self.listed.push(ManifestError { rule, severity, file, line, document, object, field, message, count: 1 });
            return;
        }
        // Kinds beyond the limit share one summary for each severity.
        let is_known_kind = self.kinds.contains_key(&kind);
        let key = if is_known_kind { kind } else { severity.name().to_owned() };
        if let Some(&index) = self.summary_index.get(&key) {
            self.summaries[index].count += 1;
            return;
        }
        let (line, _) = locate();
        let message = if is_known_kind {
            format!("like this one in the file: {message}")
        } else {
            "of other kinds in the file".to_owned()
        };
        self.summary_index.insert(key, self.summaries.len());
        self.summaries.push(Summary { rule, severity, count: 1, line, document, message });
    }

    /// Returns all listed diagnostics and the summaries.
    pub(super) fn finish(self) -> Vec<ManifestError> {
        let Self { file, mut listed, summaries, .. } = self;
        listed.extend(summaries.into_iter().map(|Summary { rule, severity, count, line, document, message }| {
            let plural = if count == 1 { "" } else { "s" };
            let message = format!("{count} more {}{plural} {message}", severity.name());
            let file = Arc::clone(&file);
            ManifestError { rule, severity, file, line, document, object: None, field: None, message, count }
        }));
        listed
    }
}

/// Returns the kind of a diagnostic: the severity, and the message without numbers and quoted text.
fn kind(severity: Severity, message: &str) -> String {
    let mut kind = severity.name().to_owned();
    let mut quote = None;
    for character in message.chars() {
        match (quote, character) {
            (Some(delimiter), character) if delimiter == character => quote = None,
            (Some(_), _) | (None, '0'..='9') => {}
            (None, '`' | '"') => quote = Some(character),
            (None, character) => kind.push(character),
        }
    }
    kind
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(diagnostics: &mut Diagnostics, severity: Severity, line: usize, message: &str) {
        diagnostics.add((RuleId::UNUSUAL_VALUE, severity), line, None, message, || (line, None));
    }

    #[test]
    fn the_first_of_a_kind_are_listed_and_the_others_are_counted() {
        let mut diagnostics = Diagnostics::new("f");
        for line in 1..=100 {
            add(&mut diagnostics, Severity::Error, line, &format!("`x{line}` is not a port; ports are 1 to 65535"));
        }
        add(&mut diagnostics, Severity::Warning, 101, "is missing");
        let all = diagnostics.finish();
        assert_eq!(all.len(), MAX_LISTED + 2);
        assert_eq!(all[MAX_LISTED].message, "is missing");
        let last = &all[MAX_LISTED + 1];
        assert_eq!((last.line, last.severity), (11, Severity::Error));
        let expected = "90 more errors like this one in the file: `x11` is not a port; ports are 1 to 65535";
        assert_eq!(last.message, expected);
    }

    #[test]
    fn the_number_of_kinds_is_limited() {
        let mut diagnostics = Diagnostics::new("f");
        // Each message is of another kind, because each has another number of letters.
        for letters in 0..1000 {
            add(&mut diagnostics, Severity::Warning, 1, &"y".repeat(letters));
        }
        let all = diagnostics.finish();
        assert_eq!(all.len(), MAX_KINDS + 1);
        assert_eq!(all[MAX_KINDS].message, "950 more warnings of other kinds in the file");
    }
}
