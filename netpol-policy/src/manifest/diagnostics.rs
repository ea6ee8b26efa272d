//! What is wrong in a file, bounded: the first few of a kind, then how many more there are. A file with a hundred thousand
//! faults so costs neither a hundred thousand lines of log nor the time to find the place of each.

use std::collections::HashMap;
use std::sync::Arc;

use super::ManifestError;
use crate::model::Severity;

/// Of one kind in one file; the rest is counted.
pub(super) const SAME: usize = 10;
/// Kinds of which single diagnostics are listed; those of all further kinds are counted together.
const KINDS: usize = 50;

/// A file's diagnostics.
#[derive(Debug)]
pub(super) struct Diagnostics {
    file: Arc<str>,
    listed: Vec<ManifestError>,
    kinds: HashMap<String, usize>,
    /// By kind, in the order in which they first came.
    more: Vec<More>,
    places: HashMap<String, usize>,
}

/// Those of a kind that are not listed.
#[derive(Debug)]
struct More {
    severity: Severity,
    count: usize,
    /// Where the first of them stands.
    line: usize,
    document: usize,
    message: String,
}

impl Diagnostics {
    pub(super) fn new(file: &str) -> Self {
        let (listed, kinds, more, places) = (Vec::new(), HashMap::new(), Vec::new(), HashMap::new());
        Self { file: file.into(), listed, kinds, more, places }
    }

    pub(super) fn file(&self) -> &Arc<str> {
        &self.file
    }

    /// Adds one. `place` finds its line and field, which is not asked for what is only counted.
    pub(super) fn add(
        &mut self,
        severity: Severity,
        document: usize,
        object: Option<&str>,
        message: &str,
        place: impl FnOnce() -> (usize, Option<String>),
    ) {
        let kind = kind(severity, message);
        let room = self.kinds.len() < KINDS;
        let listed = match self.kinds.get_mut(&kind) {
            Some(count) => {
                *count += 1;
                *count <= SAME
            }
            None if room => self.kinds.insert(kind.clone(), 1).is_none(),
            None => false,
        };
        if listed {
            let (line, field) = place();
            let object = object.map(str::to_owned);
            let (file, message) = (Arc::clone(&self.file), message.to_owned());
            self.listed.push(ManifestError { severity, file, line, document, object, field, message, count: 1 });
            return;
        }
        // Kinds beyond the limit share a summary for each severity.
        let known = self.kinds.contains_key(&kind);
        let key = if known { kind } else { severity.name().to_owned() };
        if let Some(&index) = self.places.get(&key) {
            self.more[index].count += 1;
            return;
        }
        let (line, _) = place();
        let message = if known { format!("like this one: {message}") } else { "of other kinds".to_owned() };
        self.places.insert(key, self.more.len());
        self.more.push(More { severity, count: 1, line, document, message });
    }

    /// All, with a line for what is only counted.
    pub(super) fn finish(self) -> Vec<ManifestError> {
        let Self { file, mut listed, more, .. } = self;
        listed.extend(more.into_iter().map(|More { severity, count, line, document, message }| {
            let plural = if count == 1 { "" } else { "s" };
            let message = format!("{count} more {}{plural} in this file {message}", severity.name());
            let file = Arc::clone(&file);
            ManifestError { severity, file, line, document, object: None, field: None, message, count }
        }));
        listed
    }
}

/// The message without what differs between faults of one kind: numbers, and what is quoted from the file.
fn kind(severity: Severity, message: &str) -> String {
    let mut kind = severity.name().to_owned();
    let mut quote = None;
    for character in message.chars() {
        match (quote, character) {
            (Some(open), character) if open == character => quote = None,
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
        diagnostics.add(severity, line, None, message, || (line, None));
    }

    #[test]
    fn the_first_of_a_kind_are_listed_and_the_rest_counted() {
        let mut diagnostics = Diagnostics::new("f");
        for line in 1..=100 {
            add(&mut diagnostics, Severity::Error, line, &format!("`x{line}` is not a port; ports are 1 to 65535"));
        }
        add(&mut diagnostics, Severity::Warning, 101, "is absent");
        let all = diagnostics.finish();
        assert_eq!(all.len(), SAME + 2);
        assert_eq!(all[SAME].message, "is absent");
        let last = &all[SAME + 1];
        assert_eq!((last.line, last.severity), (11, Severity::Error));
        let expected = "90 more errors in this file like this one: `x11` is not a port; ports are 1 to 65535";
        assert_eq!(last.message, expected);
    }

    #[test]
    fn kinds_are_limited_too() {
        let mut diagnostics = Diagnostics::new("f");
        for line in 0..1000_u32 {
            let letters = line.to_string().replace(|c: char| c.is_ascii_digit(), "x") + &"y".repeat(line as usize);
            add(&mut diagnostics, Severity::Warning, 1, &letters);
        }
        let all = diagnostics.finish();
        assert_eq!(all.len(), KINDS + 1);
        assert_eq!(all[KINDS].message, "950 more warnings in this file of other kinds");
    }
}
