//! Splits a file into documents, as `kubectl apply -f` does.
//!
//! A document ends at a line that begins with `---`. A document that begins with `{` may hold several JSON objects, one after the
//! other, as `jq -c '.items[]'` prints them. Source: `YAMLReader` and `YAMLOrJSONDecoder` in
//! <https://github.com/kubernetes/apimachinery/blob/v0.32.0/pkg/util/yaml/decoder.go>.

use serde::de::IgnoredAny;

use crate::model::Severity;

/// One document.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Piece<'t> {
    /// Its text.
    pub(super) text: &'t str,
    /// Number of lines in the file before it.
    pub(super) lines_before: usize,
    /// Errors at the document's borders.
    pub(super) faults: Vec<Fault>,
}

/// Something that `kubectl` would refuse between two documents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    /// The line, from 1.
    pub(super) line: usize,
    pub(super) severity: Severity,
    pub(super) message: &'static str,
}

/// The documents that have content, or a fault.
pub(super) fn documents(text: &str) -> Vec<Piece<'_>> {
    let mut pieces = Vec::new();
    let mut piece = Piece::default();
    let (mut start, mut position) = (0, 0);
    for (index, line) in text.split_inclusive('\n').enumerate() {
        let end = position + line.len();
        // A byte order mark may stand at the beginning of any document: files are concatenated.
        let marker = if position == start { without_byte_order_mark(line) } else { line };
        if let Some(rest) = marker.strip_prefix("---") {
            piece.text = &text[start..position];
            pieces.push(std::mem::take(&mut piece));
            piece.faults.extend(separator_fault(rest, index + 1));
            let has_content = matches!(piece.faults.as_slice(), [Fault { severity: Severity::Warning, .. }]);
            (start, piece.lines_before) = if has_content { (end - marker.len(), index) } else { (end, index + 1) };
        }
        position = end;
    }
    piece.text = &text[start..];
    pieces.push(piece);
    let pieces = pieces.into_iter().flat_map(|piece| {
        let text = without_byte_order_mark(piece.text);
        json_objects(Piece { text, ..piece })
    });
    pieces.filter(|piece| !piece.faults.is_empty() || piece.text.lines().any(has_content)).collect()
}

fn without_byte_order_mark(text: &str) -> &str {
    text.strip_prefix('\u{feff}').unwrap_or(text)
}

/// What is wrong with a line that begins with `---`; `rest` is what follows.
fn separator_fault(rest: &str, line: usize) -> Option<Fault> {
    let content = rest.trim();
    let (severity, message) = if content.is_empty() || content.starts_with('#') {
        return None;
    } else if rest.starts_with(char::is_whitespace) {
        (Severity::Warning, "kubectl refuses content on a `---` line; write it on the next line")
    } else {
        (Severity::Error, "invalid document separator, which kubectl refuses; write `---` alone on the line")
    };
    Some(Fault { line, severity, message })
}

/// Splits a document of several JSON objects. JSON is read as YAML later, which keeps line numbers.
fn json_objects(piece: Piece<'_>) -> Vec<Piece<'_>> {
    let Piece { text, lines_before, mut faults } = piece;
    let mut pieces = Vec::new();
    let mut start = 0;
    if text.trim_start().starts_with('{') {
        let mut values = serde_json::Deserializer::from_str(text).into_iter::<IgnoredAny>();
        while let Some(Ok(IgnoredAny)) = values.next() {
            let end = values.byte_offset();
            let lines_before = lines_before + lines(&text[..start]);
            pieces.push(Piece { text: &text[start..end], lines_before, faults: std::mem::take(&mut faults) });
            start = end;
        }
    }
    let rest = &text[start..];
    let lines_before = lines_before + lines(&text[..start]);
    if start > 0 && rest.lines().any(has_content) {
        let line = lines_before + 1;
        let message = "invalid JSON after a JSON object; nothing of the rest of this document is used";
        faults.push(Fault { line, severity: Severity::Error, message });
        pieces.push(Piece { text: "", lines_before, faults });
    } else if start == 0 {
        pieces.push(Piece { text, lines_before, faults });
    }
    pieces
}

fn lines(text: &str) -> usize {
    text.bytes().filter(|byte| *byte == b'\n').count()
}

/// Blank lines, comments, directives and bare separators are no document.
fn has_content(line: &str) -> bool {
    let line = line.strip_prefix("---").unwrap_or(line).trim();
    !(line.is_empty() || line.starts_with(['#', '%']))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str) -> Vec<(usize, &str)> {
        documents(text).iter().map(|piece| (piece.lines_before, piece.text)).collect()
    }

    fn faults(text: &str) -> Vec<(usize, Severity)> {
        documents(text).iter().flat_map(|piece| &piece.faults).map(|fault| (fault.line, fault.severity)).collect()
    }

    #[test]
    fn documents_begin_after_separators_and_keep_their_lines() {
        let text = "# head\n---\na: 1\n---  # two\nb: |\n  --- inside\n---#three\n---\nc: 3\n";
        assert_eq!(found(text), [(2, "a: 1\n"), (4, "b: |\n  --- inside\n"), (8, "c: 3\n")]);
        assert_eq!(faults(text), []);
    }

    #[test]
    fn directives_and_byte_order_marks_are_no_documents() {
        assert_eq!(found("\u{feff}%YAML 1.2\n---\na: 1\n"), [(2, "a: 1\n")]);
        assert_eq!(found("\u{feff}---\na: 1\n---\n\u{feff}b: 2\n"), [(1, "a: 1\n"), (3, "b: 2\n")]);
        assert_eq!(found("\u{feff}---\n\u{feff}---\nb: 2\n"), [(2, "b: 2\n")]);
        assert_eq!(found(""), []);
    }

    #[test]
    fn a_document_may_hold_several_json_objects() {
        assert_eq!(
            found("{\"a\":1}{\"b\":2}\n\n{\"c\":3}\n"),
            [(0, "{\"a\":1}"), (0, "{\"b\":2}"), (0, "\n\n{\"c\":3}")]
        );
        assert_eq!(found("{a: 1}\n"), [(0, "{a: 1}\n")]);
        assert_eq!(faults("{\"a\":1}\n# comment\n"), []);
        assert_eq!(faults("{\"a\":1}\nb: 2\n"), [(1, Severity::Error)]);
        assert_eq!(faults("{\"a\":1}\n---\nb: 2\n"), []);
    }

    #[test]
    fn what_kubectl_refuses_between_documents_is_reported() {
        assert_eq!(faults("a: 1\n----\nb: 2\n"), [(2, Severity::Error)]);
        assert_eq!(found("a: 1\n---x\nb: 2\n"), [(0, "a: 1\n"), (2, "b: 2\n")]);
        assert_eq!(faults("--- {a: 1}\n---\nb: 2\n"), [(1, Severity::Warning)]);
        assert_eq!(found("--- {a: 1}\n---\nb: 2\n"), [(0, "--- {a: 1}\n"), (2, "b: 2\n")]);
    }
}
