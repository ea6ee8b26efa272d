//! YAML (and so JSON) to values that know their lines.

use std::collections::{BTreeMap, HashMap};

use saphyr_parser::{Event, Parser, ScalarStyle, ScanError, Span, StrInput, Tag};
use serde_json::{Map, Value};

use super::path::FieldPath;
use super::scalar;
use super::split::Piece;

/// Deeper nesting than any Kubernetes object has; a guard for the stack.
const MAX_DEPTH: usize = 100;
/// More values than any file written by people has; a guard against aliases that multiply.
const MAX_VALUES: usize = 2_000_000;

/// A document.
#[derive(Debug)]
pub(super) struct Tree {
    pub(super) value: Value,
    /// The line it begins on, from 1.
    pub(super) line: usize,
    /// The line of each key and list item.
    pub(super) lines: BTreeMap<FieldPath, usize>,
    /// Keys that stand twice in a map; the last one counts.
    pub(super) repeated: Vec<FieldPath>,
}

impl Tree {
    /// The line of a field, or of the nearest one around it.
    pub(super) fn line_of(&self, path: &FieldPath) -> usize {
        let mut path = path.clone();
        loop {
            if let Some(line) = self.lines.get(&path) {
                return *line;
            }
            if path.0.pop().is_none() {
                return self.line;
            }
        }
    }
}

/// Why a document is not YAML.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct SyntaxError {
    pub(super) line: usize,
    pub(super) message: String,
}

pub(super) fn read(piece: &Piece<'_>) -> Result<Vec<Tree>, SyntaxError> {
    let read = Reader::new(piece).documents();
    match (read, piece.text.trim_start_matches(['-', ' ', '\n', '\r']).starts_with(['{', '['])) {
        // JSON that YAML does not take: surrogate pairs in escapes, for one. It has no lines.
        (Err(error), true) => match serde_json::from_str(piece.text) {
            Ok(value) => {
                Ok(vec![Tree { value, line: piece.lines_before + 1, lines: BTreeMap::new(), repeated: Vec::new() }])
            }
            Err(_) => Err(error),
        },
        (read, _) => read,
    }
}

struct Reader<'t> {
    events: Parser<'t, StrInput<'t>>,
    lines_before: usize,
    anchors: HashMap<usize, Value>,
    lines: BTreeMap<FieldPath, usize>,
    repeated: Vec<FieldPath>,
    values: usize,
}

impl<'t> Reader<'t> {
    fn new(piece: &Piece<'t>) -> Self {
        Self {
            events: Parser::new_from_str(piece.text),
            lines_before: piece.lines_before,
            anchors: HashMap::new(),
            lines: BTreeMap::new(),
            repeated: Vec::new(),
            values: 0,
        }
    }

    fn documents(mut self) -> Result<Vec<Tree>, SyntaxError> {
        let mut trees = Vec::new();
        loop {
            let (event, span) = self.next()?;
            match event {
                Event::StreamEnd => return Ok(trees),
                Event::Nothing | Event::StreamStart | Event::DocumentStart(_) | Event::DocumentEnd => {}
                event => {
                    let line = self.line(span);
                    let value = self.value(event, span, &FieldPath::default(), 0)?;
                    let lines = std::mem::take(&mut self.lines);
                    let repeated = std::mem::take(&mut self.repeated);
                    self.anchors.clear();
                    trees.push(Tree { value, line, lines, repeated });
                }
            }
        }
    }

    fn next(&mut self) -> Result<(Event<'t>, Span), SyntaxError> {
        match self.events.next_event() {
            Some(Ok(event)) => Ok(event),
            Some(Err(error)) => Err(self.syntax(&error)),
            None => Ok((Event::StreamEnd, Span::default())),
        }
    }

    fn syntax(&self, error: &ScanError) -> SyntaxError {
        SyntaxError {
            line: self.lines_before + error.marker().line().max(1),
            message: format!("is not valid YAML: {}", error.info()),
        }
    }

    fn line(&self, span: Span) -> usize {
        self.lines_before + span.start.line().max(1)
    }

    fn value(&mut self, event: Event<'t>, span: Span, path: &FieldPath, depth: usize) -> Result<Value, SyntaxError> {
        let fail = |line, message: &str| Err(SyntaxError { line, message: message.to_owned() });
        let line = self.line(span);
        if depth > MAX_DEPTH {
            return fail(line, "is nested too deeply to be a Kubernetes object");
        }
        self.values += 1;
        if self.values > MAX_VALUES {
            return fail(line, "has too many values; look for aliases (`*name`) that multiply");
        }
        let (value, anchor) = match event {
            Event::Scalar(text, style, anchor, tag) => (resolve(&text, style, tag.as_deref()), anchor),
            Event::Alias(anchor) => {
                let Some(value) = self.anchors.get(&anchor).cloned() else {
                    return fail(line, "refers to an anchor inside itself");
                };
                self.values += count(&value);
                (value, 0)
            }
            Event::SequenceStart(anchor, _) => (self.list(path, depth)?, anchor),
            Event::MappingStart(anchor, _) => (self.map(path, depth)?, anchor),
            _ => return fail(line, "ends where a value should be"),
        };
        if anchor != 0 {
            self.anchors.insert(anchor, value.clone());
        }
        Ok(value)
    }

    fn list(&mut self, path: &FieldPath, depth: usize) -> Result<Value, SyntaxError> {
        let mut items = Vec::new();
        loop {
            let (event, span) = self.next()?;
            if event == Event::SequenceEnd {
                return Ok(Value::Array(items));
            }
            let path = path.index(items.len());
            self.lines.insert(path.clone(), self.line(span));
            items.push(self.value(event, span, &path, depth + 1)?);
        }
    }

    fn map(&mut self, path: &FieldPath, depth: usize) -> Result<Value, SyntaxError> {
        let mut map = Map::new();
        let mut merged = Vec::new();
        loop {
            let (event, span) = self.next()?;
            let key = match event {
                Event::MappingEnd => break,
                Event::Scalar(text, ..) => text.into_owned(),
                _ => {
                    let message = "has a map or list for a key; is a template's `{{ }}` left in it?".to_owned();
                    return Err(SyntaxError { line: self.line(span), message });
                }
            };
            let path = path.key(&key);
            self.lines.insert(path.clone(), self.line(span));
            let (event, span) = self.next()?;
            let value = self.value(event, span, &path, depth + 1)?;
            if key == "<<" {
                merged.push(value);
            } else if map.insert(key, value).is_some() {
                self.repeated.push(path);
            }
        }
        for value in merged {
            merge(&mut map, value);
        }
        Ok(Value::Object(map))
    }
}

/// `<<: *anchor`: what the map does not say itself.
fn merge(map: &mut Map<String, Value>, value: Value) {
    match value {
        Value::Object(defaults) => {
            for (key, value) in defaults {
                map.entry(key).or_insert(value);
            }
        }
        Value::Array(items) => items.into_iter().for_each(|item| merge(map, item)),
        _ => {}
    }
}

fn resolve(text: &str, style: ScalarStyle, tag: Option<&Tag>) -> Value {
    let string = matches!(tag, Some(tag) if tag.is_yaml_core_schema() && tag.suffix == "str");
    if style == ScalarStyle::Plain && !string { scalar::resolve(text) } else { Value::String(text.to_owned()) }
}

fn count(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(count).sum::<usize>(),
        Value::Object(map) => 1 + map.values().map(count).sum::<usize>(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => 1,
    }
}
