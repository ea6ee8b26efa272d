//! Escapes and wraps text for output. Names, labels and paths come from objects and files of any author. Unescaped,
//! they can move the cursor, forge a line, or reorder text (<https://trojansource.codes>).
//!
//! All text output of netpol goes through this module: [`Safe`] for terminals, log lines and metric labels, [`json`]
//! for JSON. Visible text is not changed.

use std::borrow::Cow;
use std::fmt::{self, Write};

/// Formats an error with its causes on one line. Leaves out a cause if the text before it already contains its message.
pub fn error_chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}

/// Displays a value on one line, with invisible characters escaped, such as `\n` or `\u{202e}`.
#[derive(Clone, Copy, Debug)]
pub struct Safe<T>(pub T);

impl<T: fmt::Display> fmt::Display for Safe<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(Escaping(f), "{}", self.0)
    }
}

/// A writer that escapes invisible characters.
#[derive(Debug)]
struct Escaping<W>(W);

impl<W: Write> Write for Escaping<W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut rest = text;
        while let Some((position, character)) = rest.char_indices().find(|(_, character)| is_unsafe(*character)) {
            self.0.write_str(&rest[..position])?;
            match character {
                '\n' | '\r' | '\t' => write!(self.0, "{}", character.escape_default())?,
                other => write!(self.0, "{}", other.escape_unicode())?,
            }
            rest = &rest[position + character.len_utf8()..];
        }
        self.0.write_str(rest)
    }
}

/// Wraps a paragraph, escaped as by [`Safe`], at `width` columns. Each line begins with `indent` spaces, and lines
/// after the first with two more, so that no part of a name can begin at the left margin. A word that is too long has a
/// line of its own.
pub fn wrap(text: impl fmt::Display, width: usize, indent: usize) -> Vec<String> {
    let text = Safe(text).to_string();
    let mut lines = Vec::new();
    let (mut line, mut columns) = (" ".repeat(indent), indent);
    let mut is_empty = true;
    for word in text.split(' ').filter(|word| !word.is_empty()) {
        let length = word.chars().count();
        if !is_empty && columns + 1 + length > width {
            lines.push(std::mem::replace(&mut line, " ".repeat(indent + 2)));
            (columns, is_empty) = (indent + 2, true);
        }
        if !is_empty {
            line.push(' ');
            columns += 1;
        }
        line.push_str(word);
        columns += length;
        is_empty = false;
    }
    lines.push(line);
    lines
}

/// Escapes invisible characters of a JSON text, such as `\u202e`. The value of the JSON text stays the same. JSON
/// libraries escape only characters below 0x20. All other unsafe characters are within strings, where `\u` escapes are
/// allowed (RFC 8259, section 7).
pub fn json(text: &str) -> Cow<'_, str> {
    if text.bytes().all(|byte| byte < 0x7f) {
        return Cow::Borrowed(text);
    }
    // Outside of strings, characters below 0x20 are line breaks and indentation of the JSON text.
    let is_layout = |character: char| character < ' ';
    if !text.chars().any(|character| is_unsafe(character) && !is_layout(character)) {
        return Cow::Borrowed(text);
    }
    let mut safe = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        if is_unsafe(character) && !is_layout(character) {
            for unit in character.encode_utf16(&mut [0; 2]) {
                // Writing to a string does not fail.
                let _ = write!(safe, "\\u{unit:04x}");
            }
        } else {
            safe.push(character);
        }
    }
    Cow::Owned(safe)
}

/// Returns whether a character controls a terminal, starts a line, changes the direction of text, or is invisible:
/// controls (C0, DEL, C1), line and paragraph separators, bidirectional controls, and default ignorable code points.
/// Source: `DerivedCoreProperties.txt` of Unicode 16, `Default_Ignorable_Code_Point`; UAX #9, table 3.
pub fn is_unsafe(character: char) -> bool {
    character.is_control()
        || matches!(character,
            '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}'..='\u{1160}' | '\u{17b4}'..='\u{17b5}'
            | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}'
            | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_invisible_characters_are_escaped() {
        for (text, shown) in [
            ("shop/web-0 — Läden, 店 🛒", "shop/web-0 — Läden, 店 🛒"),
            ("a\nb\r\tc", r"a\nb\r\tc"),
            ("\u{1b}[2J\u{1b}]0;x\u{7}", r"\u{1b}[2J\u{1b}]0;x\u{7}"),
            ("\u{7f}\u{85}\u{9b}31m", r"\u{7f}\u{85}\u{9b}31m"),
            ("a\u{202e}b\u{2066}c\u{2069}\u{200f}\u{61c}", r"a\u{202e}b\u{2066}c\u{2069}\u{200f}\u{61c}"),
            ("we\u{200b}b\u{feff}\u{2060}\u{ad}", r"we\u{200b}b\u{feff}\u{2060}\u{ad}"),
            ("\u{2028}\u{2029}\u{e0041}", r"\u{2028}\u{2029}\u{e0041}"),
        ] {
            assert_eq!(Safe(text).to_string(), shown);
        }
    }

    #[test]
    fn paragraphs_are_wrapped_between_words() {
        assert_eq!(wrap("one two three", 80, 2), ["  one two three"]);
        assert_eq!(wrap("one two three", 9, 2), ["  one two", "    three"]);
        assert_eq!(wrap("a-long-word b", 4, 0), ["a-long-word", "  b"]);
        assert_eq!(wrap("a\nb", 80, 0), [r"a\nb"]);
        assert_eq!(wrap("", 80, 1), [" "]);
    }

    #[test]
    fn escaped_json_has_the_same_value_and_no_invisible_character() {
        let text = "a\u{1b}\n\u{7f}\u{9b}\u{202e}\u{200b}\u{e0041}é";
        let written = serde_json::to_string_pretty(&[text]).expect("text");
        let safe = json(&written);
        assert!(!safe.chars().any(|character| is_unsafe(character) && character != '\n'), "{safe:?}");
        assert_eq!(serde_json::from_str::<Vec<String>>(&safe).expect("it is JSON"), [text]);
        assert!(matches!(json("[\n  \"é\"\n]"), Cow::Borrowed(_)));
    }
}
