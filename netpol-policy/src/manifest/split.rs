//! Splits a file into documents, as `kubectl apply -f` does.
//!
//! A document ends at a line that starts with `---`. A document that starts with `{` may contain several JSON objects
//! in sequence, as `jq -c '.items[]'` prints them. Source: `YAMLReader` and `YAMLOrJSONDecoder` in
//! <https://github.com/kubernetes/apimachinery/blob/v0.32.0/pkg/util/yaml/decoder.go>.

use serde::de::IgnoredAny;

use crate::model::Severity;

/// The text of one document.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct DocumentText<'t> {
    pub(super) text: &'t str,
    /// Number of lines in the file before the text.
    pub(super) lines_before: usize,
    /// Faults between the previous document and this one.
    pub(super) faults: Vec<Fault>,
}

/// Invalid text outside of documents: an invalid separator line, or invalid JSON after a JSON object. `kubectl` rejects
/// the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    /// Line, from 1.
    pub(super) line: usize,
    pub(super) severity: Severity,
    pub(super) message: &'static str,
}

/// Returns the documents that have content or a fault.
pub(super) fn documents(text: &str) -> Vec<DocumentText<'_>> {
    let mut texts = Vec::new();
    let mut document = DocumentText::default();
    let (mut start, mut position) = (0, 0);
    for (index, line) in text.split_inclusive('\n').enumerate() {
        let end = position + line.len();
        // Any document may start with a byte order mark, because files may be concatenated.
        let unmarked = if position == start { without_byte_order_mark(line) } else { line };
        if let Some(rest) = unmarked.strip_prefix("---") {
            document.text = &text[start..position];
            texts.push(std::mem::take(&mut document));
            document.faults.extend(separator_fault(rest, index + 1));
            // A warning means that the separator line has content, so the next document starts with this line.
            let starts_on_separator = matches!(document.faults.as_slice(), [Fault { severity: Severity::Warning, .. }]);
            (start, document.lines_before) =
                if starts_on_separator { (end - unmarked.len(), index) } else { (end, index + 1) };
        }
        position = end;
    }
    document.text = &text[start..];
    texts.push(document);
    let texts = texts.into_iter().flat_map(|document| {
        let text = without_byte_order_mark(document.text);
        json_objects(DocumentText { text, ..document })
    });
    texts.filter(|document| !document.faults.is_empty() || document.text.lines().any(has_content)).collect()
}

fn without_byte_order_mark(text: &str) -> &str {
    text.strip_prefix('\u{feff}').unwrap_or(text)
}

/// Returns the fault of a line that starts with `---`, if any. `rest` is the text after `---`.
fn separator_fault(rest: &str, line: usize) -> Option<Fault> {
    let content = rest.trim();
    let (severity, message) = if content.is_empty() || content.starts_with('#') {
        return None;
    } else if rest.starts_with(char::is_whitespace) {
        (Severity::Warning, "kubectl rejects content on a `---` line; move it to the next line")
    } else {
        (Severity::Error, "invalid document separator, which kubectl rejects; write only `---` on the line")
    };
    Some(Fault { line, severity, message })
}

/// Splits a document that may consist of several JSON objects. Here they are only separated. They are parsed as YAML
/// later, to get line numbers.
fn json_objects(document: DocumentText<'_>) -> Vec<DocumentText<'_>> {
    let DocumentText { text, lines_before, mut faults } = document;
    let mut texts = Vec::new();
    let mut start = 0;
    if text.trim_start().starts_with('{') {
        let mut values = serde_json::Deserializer::from_str(text).into_iter::<IgnoredAny>();
        while let Some(Ok(IgnoredAny)) = values.next() {
            let end = values.byte_offset();
            let lines_before = lines_before + count_line_breaks(&text[..start]);
            texts.push(DocumentText { text: &text[start..end], lines_before, faults: std::mem::take(&mut faults) });
            start = end;
        }
    }
    let rest = &text[start..];
    let lines_before = lines_before + count_line_breaks(&text[..start]);
    if start > 0 && rest.lines().any(has_content) {
        let line = lines_before + 1;
        let message = "invalid JSON after a JSON object; the rest of this document is ignored";
        faults.push(Fault { line, severity: Severity::Error, message });
        texts.push(DocumentText { text: "", lines_before, faults });
    } else if start == 0 {
        texts.push(DocumentText { text, lines_before, faults });
    }
    texts
}

fn count_line_breaks(text: &str) -> usize {
    text.bytes().filter(|byte| *byte == b'\n').count()
}

/// Returns whether a line has content. Blank lines, comments, directives and separators alone are not content.
fn has_content(line: &str) -> bool {
    let line = line.strip_prefix("---").unwrap_or(line).trim();
    !(line.is_empty() || line.starts_with(['#', '%']))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines_and_texts(text: &str) -> Vec<(usize, &str)> {
        documents(text).iter().map(|document| (document.lines_before, document.text)).collect()
    }

    fn faults(text: &str) -> Vec<(usize, Severity)> {
        documents(text).iter().flat_map(|document| &document.faults).map(|fault| (fault.line, fault.severity)).collect()
    }

    #[test]
    fn documents_start_after_separators_and_keep_their_line_numbers() {
        let text = "# head\n---\na: 1\n---  # two\nb: |\n  --- inside\n---#three\n---\nc: 3\n";
        assert_eq!(lines_and_texts(text), [(2, "a: 1\n"), (4, "b: |\n  --- inside\n"), (8, "c: 3\n")]);
        assert_eq!(faults(text), []);
    }

    #[test]
    fn directives_and_byte_order_marks_are_not_documents() {
        assert_eq!(lines_and_texts("\u{feff}%YAML 1.2\n---\na: 1\n"), [(2, "a: 1\n")]);
        assert_eq!(lines_and_texts("\u{feff}---\na: 1\n---\n\u{feff}b: 2\n"), [(1, "a: 1\n"), (3, "b: 2\n")]);
        assert_eq!(lines_and_texts("\u{feff}---\n\u{feff}---\nb: 2\n"), [(2, "b: 2\n")]);
        assert_eq!(lines_and_texts(""), []);
    }

    #[test]
    fn a_document_may_contain_several_json_objects() {
        assert_eq!(
            lines_and_texts("{\"a\":1}{\"b\":2}\n\n{\"c\":3}\n"),
            [(0, "{\"a\":1}"), (0, "{\"b\":2}"), (0, "\n\n{\"c\":3}")]
        );
        assert_eq!(lines_and_texts("{a: 1}\n"), [(0, "{a: 1}\n")]);
        assert_eq!(faults("{\"a\":1}\n# comment\n"), []);
        assert_eq!(faults("{\"a\":1}\nb: 2\n"), [(1, Severity::Error)]);
        assert_eq!(faults("{\"a\":1}\n---\nb: 2\n"), []);
    }

    #[test]
    fn invalid_separators_are_reported() {
        assert_eq!(faults("a: 1\n----\nb: 2\n"), [(2, Severity::Error)]);
        assert_eq!(lines_and_texts("a: 1\n---x\nb: 2\n"), [(0, "a: 1\n"), (2, "b: 2\n")]);
        assert_eq!(faults("--- {a: 1}\n---\nb: 2\n"), [(1, Severity::Warning)]);
        assert_eq!(lines_and_texts("--- {a: 1}\n---\nb: 2\n"), [(0, "--- {a: 1}\n"), (2, "b: 2\n")]);
    }
}
