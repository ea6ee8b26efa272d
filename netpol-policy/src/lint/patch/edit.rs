//! Edits lines of YAML. `Editor` then checks that the edited text has the expected value.
//!
//! In this file, "flow" is YAML's flow style (a list or map in brackets on one line, such as `[a, b]` or `{a: 1}`). In
//! block style, each item or key has its own line.

use std::ops::Range;

use super::Operation;
use crate::explain::yaml::{Node, entry};
use crate::manifest::{FieldPath, Lines, Step};

/// Returns the edited lines of an object; `None` if the text is not in a style that can be edited. `text`: the lines of
/// the object. `lines`: the line numbers of its fields, from 1.
pub(super) fn apply(text: &[String], lines: &Lines, operation: &Operation) -> Option<Vec<String>> {
    match operation {
        Operation::Append(list, item) => append(text, lines, list, item),
        Operation::Add(path, new) => add_key(text, lines, path, new),
        Operation::Replace(path, new) => replace(text, lines, path, new),
        Operation::Remove(path) => {
            let range = field_lines(text, lines, path)?;
            // If the first line does not begin with the field, the lines also contain other text, so nothing is edited.
            starts_item_or_key(text.get(range.start)?, path.0.last()?, false)?;
            Some(splice(text, range, &[]))
        }
    }
}

/// Appends an item to a list. If the list does not exist, adds a list with this item.
fn append(text: &[String], lines: &Lines, list: &FieldPath, item: &Node) -> Option<Vec<String>> {
    let Step::Key(key) = list.0.last()? else { return None };
    if let Some(found) = find_field(lines, list) {
        let count = found.children().count();
        let in_flow = || append_in_flow(text, found.line(), key, item);
        let Some(last) = count.checked_sub(1) else { return in_flow() };
        let range = field_lines(text, lines, &list.index(last)).filter(|range| is_item(&text[range.start]));
        let Some(range) = range else { return in_flow() };
        let indent = indent_of(&text[range.start]);
        let added = indented(Node::List(vec![item.clone()]).block(), indent);
        return Some(splice(text, range.end..range.end, &added));
    }
    add_key(text, lines, list, &Node::List(vec![item.clone()]))
}

/// Adds a key after the others of its map.
fn add_key(text: &[String], lines: &Lines, path: &FieldPath, node: &Node) -> Option<Vec<String>> {
    let (Step::Key(key), parents) = path.0.split_last()? else { return None };
    let parent = FieldPath(parents.to_vec());
    let first = find_field(lines, &parent)?.children().next()?.line();
    let range = field_lines(text, lines, &parent)?;
    // If the map and its first key are on the same line, the map is in flow style. `range` has indices from 0, `first`
    // is a line number from 1.
    if first == range.start + 1 {
        return insert_in_flow(text, range.start, ['{', '}'], parent.0.last()?, &format!("{key}: {}", node.flow()));
    }
    let added = indented(Node::Map(vec![entry(key, node.clone())]).block(), indent_of(text.get(first - 1)?));
    Some(splice(text, range.end..range.end, &added))
}

fn append_in_flow(text: &[String], line: usize, key: &str, item: &Node) -> Option<Vec<String>> {
    insert_in_flow(text, line - 1, ['[', ']'], &Step::Key(key.to_owned()), &item.flow())
}

/// Inserts text at the end of a one-line list or map in flow style.
fn insert_in_flow(
    text: &[String],
    index: usize,
    [open, close]: [char; 2],
    key: &Step,
    added: &str,
) -> Option<Vec<String>> {
    let Step::Key(key) = key else { return None };
    let line = text.get(index)?;
    let start = find_once(line, &format!("{key}: {open}"))? + key.len() + 2;
    let mut depth = 0_usize;
    let end = line[start..].char_indices().find_map(|(offset, character)| {
        depth = match character {
            '[' | '{' => depth + 1,
            ']' | '}' => depth - 1,
            _ => depth,
        };
        (depth == 0).then_some((start + offset, character))
    });
    let (end, _) = end.filter(|(_, character)| *character == close)?;
    let content = line[start + 1..end].trim_end();
    let separator = if content.trim().is_empty() { "" } else { ", " };
    let new = format!("{}{content}{separator}{added}{}", &line[..=start], &line[end..]);
    Some(splice(text, index..index + 1, &[new]))
}

fn replace(text: &[String], lines: &Lines, path: &FieldPath, new: &Node) -> Option<Vec<String>> {
    let last = path.0.last()?;
    let in_flow = || {
        // A scalar in flow style: `{port: 80}`.
        let (Step::Key(key), Node::Scalar(_)) = (last, new) else { return None };
        let index = find_field(lines, path)?.line() - 1;
        let line = text.get(index)?;
        let start = find_once(line, &format!("{key}: "))? + key.len() + 2;
        let length = line[start..].find([',', '}', ']']).unwrap_or(line.len() - start);
        let edited = format!("{}{}{}", &line[..start], new.flow(), &line[start + length..]);
        Some(splice(text, index..index + 1, &[edited]))
    };
    let Some(range) = field_lines(text, lines, path) else { return in_flow() };
    let line = text.get(range.start)?;
    let Some(column) = starts_item_or_key(line, last, true) else { return in_flow() };
    let node = match last {
        Step::Key(key) => Node::Map(vec![entry(key, new.clone())]),
        Step::Index(_) => Node::List(vec![new.clone()]),
    };
    let mut added = indented(node.block(), column);
    // Keeps the text before the field: spaces, or the `- ` of a list item.
    added.first_mut()?.replace_range(..column, &line[..column]);
    Some(splice(text, range, &added))
}

/// Returns the column of a key or list item, if the line starts with it. `or_in_item`: the key may also be the first
/// one of a list item (`- key: value`).
fn starts_item_or_key(line: &str, step: &Step, or_in_item: bool) -> Option<usize> {
    let column = indent_of(line);
    match step {
        Step::Index(_) => is_item(line).then_some(column),
        Step::Key(key) => {
            let is_key = |column: &usize| line.get(*column..).is_some_and(|rest| rest.starts_with(&format!("{key}:")));
            let of_item = (or_in_item && is_item(line)).then_some(column + 2);
            Some(column).filter(is_key).or(of_item.filter(is_key))
        }
    }
}

/// Returns the indices (from 0) of the lines of a field, without empty lines and comments at the end. Returns `None` if
/// another field of the same map or list begins on the first of these lines.
fn field_lines(text: &[String], lines: &Lines, path: &FieldPath) -> Option<Range<usize>> {
    let (mut parent, mut end) = (lines, text.len() + 1);
    for (depth, step) in path.0.iter().enumerate() {
        let child = parent.child(step)?;
        let siblings = || parent.children().filter(|sibling| !std::ptr::eq(*sibling, child));
        if depth + 1 == path.0.len() && siblings().any(|sibling| sibling.line() == child.line()) {
            return None;
        }
        let next = siblings().map(Lines::line).filter(|line| *line > child.line()).min();
        end = next.unwrap_or(end).min(end);
        parent = child;
    }
    let start = parent.line() - 1;
    let mut end = end - 1;
    let is_content = |line: &str| !line.trim().is_empty() && !line.trim_start().starts_with('#');
    while end > start + 1 && !is_content(&text[end - 1]) {
        end -= 1;
    }
    Some(start..end)
}

fn find_field<'l>(lines: &'l Lines, path: &FieldPath) -> Option<&'l Lines> {
    path.0.iter().try_fold(lines, Lines::child)
}

fn splice(text: &[String], range: Range<usize>, added: &[String]) -> Vec<String> {
    [&text[..range.start], added, &text[range.end..]].concat()
}

fn indented(lines: Vec<String>, columns: usize) -> Vec<String> {
    lines.into_iter().map(|line| format!("{}{line}", " ".repeat(columns))).collect()
}

fn indent_of(line: &str) -> usize {
    line.len() - line.trim_start_matches(' ').len()
}

fn is_item(line: &str) -> bool {
    line.trim_start_matches(' ').starts_with("- ")
}

/// Returns the position of `text` in the line; `None` if `text` does not occur, or occurs several times. Occurrences
/// inside a longer word do not count: `key: ` does not occur in `my-key: a`.
fn find_once(line: &str, text: &str) -> Option<usize> {
    let mut found = line.match_indices(text).filter(|(start, _)| {
        !line[..*start].chars().next_back().is_some_and(|before| before.is_alphanumeric() || "_./-\"".contains(before))
    });
    let (start, _) = found.next()?;
    found.next().is_none().then_some(start)
}
