//! Cuts a file into documents, as kubectl does: at lines that begin with `---`.

/// A document's text and where it begins.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Piece<'t> {
    /// Its text, the `---` line included.
    pub(super) text: &'t str,
    /// Lines of the file before it.
    pub(super) lines_before: usize,
}

pub(super) fn documents(text: &str) -> Vec<Piece<'_>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut pieces = Vec::new();
    let (mut start, mut start_line, mut position) = (0, 0, 0);
    for (line_number, line) in text.split_inclusive('\n').enumerate() {
        if position > start && is_separator(line) {
            pieces.push(Piece { text: &text[start..position], lines_before: start_line });
            (start, start_line) = (position, line_number);
        }
        position += line.len();
    }
    pieces.push(Piece { text: &text[start..], lines_before: start_line });
    pieces.retain(|piece| piece.text.lines().any(has_content));
    pieces
}

fn is_separator(line: &str) -> bool {
    line.strip_prefix("---").is_some_and(|rest| rest.is_empty() || rest.starts_with(char::is_whitespace))
}

/// Blank lines, comments, directives and bare separators are no document.
fn has_content(line: &str) -> bool {
    let line = line.strip_prefix("---").unwrap_or(line).trim();
    !(line.is_empty() || line.starts_with(['#', '%']))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_begin_at_separators_and_keep_their_lines() {
        let text = "# head\n---\na: 1\n---  # two\nb: |\n  --- inside\n---\n---\nc: 3\n";
        let found: Vec<_> = documents(text).iter().map(|piece| (piece.lines_before, piece.text.to_owned())).collect();
        let expected = [(1, "---\na: 1\n"), (3, "---  # two\nb: |\n  --- inside\n"), (7, "---\nc: 3\n")];
        assert_eq!(found, expected.map(|(line, text)| (line, text.to_owned())));
    }

    #[test]
    fn directives_and_byte_order_marks_are_no_documents() {
        assert_eq!(documents("\u{feff}%YAML 1.2\n---\na: 1\n").len(), 1);
        assert_eq!(documents("").len(), 0);
    }
}
