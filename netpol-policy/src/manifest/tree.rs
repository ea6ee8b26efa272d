//! YAML (and so JSON) to values that know their lines.

use std::collections::HashMap;

use saphyr_parser::{Event, Parser, ScalarStyle, ScanError, Span, StrInput, Tag};
use serde_json::{Map, Value};

use super::path::{FieldPath, Step};
use super::scalar;
use super::split::Piece;

/// Deeper nesting than any Kubernetes object has; a guard for the stack.
const MAX_DEPTH: usize = 100;
/// More values than people repeat by aliases in one file; a guard against aliases that multiply.
pub(super) const MAX_ALIASED: usize = 500_000;

/// A document.
#[derive(Debug)]
pub(super) struct Tree {
    pub(super) value: Value,
    /// The lines of what is in it.
    pub(super) lines: Lines,
    /// Keys that stand twice in a map, sorted; the last one counts.
    repeated: Vec<FieldPath>,
}

impl Tree {
    /// A document that never was text.
    pub(super) fn without_lines(value: Value) -> Self {
        Self { value, lines: Lines::at(1), repeated: Vec::new() }
    }

    /// Keys that stand twice in a map at `root` or below, as paths from there.
    pub(super) fn repeated_below(&self, root: &FieldPath) -> impl Iterator<Item = FieldPath> {
        // A path sorts before all that are below it.
        let first = self.repeated.partition_point(|path| path < root);
        self.repeated[first..].iter().map_while(|path| path.below(root))
    }
}

/// The line of a key or list item, and of what is below it. Aliases have nothing below.
#[derive(Debug, Default)]
pub(super) struct Lines {
    line: usize,
    below: Vec<(Step, Lines)>,
}

impl Lines {
    fn at(line: usize) -> Self {
        Self { line, below: Vec::new() }
    }

    /// What stands at `path`, or the nearest around it.
    pub(super) fn nearest(&self, path: &FieldPath) -> &Self {
        let mut lines = self;
        for step in &path.0 {
            // Items of a list stand at their index; searching would make long lists slow.
            let at_index = if let Step::Index(index) = step { lines.below.get(*index) } else { None };
            let found = at_index.filter(|(found, _)| found == step);
            // Of keys that stand twice the last one counts.
            let by_name = || lines.below.iter().rev().find(|(found, _)| found == step);
            let Some((_, below)) = found.or_else(by_name) else { break };
            lines = below;
        }
        lines
    }

    /// The line of a field below, or of the nearest around it.
    pub(super) fn of(&self, path: &FieldPath) -> usize {
        self.nearest(path).line
    }

    /// The same, for a field that is named in text.
    pub(super) fn of_text(&self, mut field: &str) -> usize {
        let mut lines = self;
        while let Some((rest, below)) =
            lines.below.iter().rev().find_map(|(step, below)| Some((step.strip(field)?, below)))
        {
            (field, lines) = (rest, below);
        }
        lines.line
    }
}

/// Why a document is not YAML.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct SyntaxError {
    pub(super) line: usize,
    pub(super) message: String,
}

/// `aliased` is how many values aliases of the same file have repeated so far.
pub(super) fn read(piece: &Piece<'_>, aliased: &mut usize) -> Result<Vec<Tree>, SyntaxError> {
    let read = Reader::new(piece, aliased).documents();
    match (read, piece.text.trim_start_matches(['-', ' ', '\n', '\r']).starts_with(['{', '['])) {
        // JSON that YAML does not take: surrogate pairs in escapes, for one. It has no lines.
        (Err(error), true) => match serde_json::from_str(piece.text) {
            Ok(value) => Ok(vec![Tree { value, lines: Lines::at(piece.lines_before + 1), repeated: Vec::new() }]),
            Err(_) => Err(error),
        },
        (read, _) => read,
    }
}

struct Reader<'t, 'f> {
    events: Parser<'t, StrInput<'t>>,
    lines_before: usize,
    anchors: HashMap<usize, Value>,
    /// Where it is reading.
    path: FieldPath,
    repeated: Vec<FieldPath>,
    aliased: &'f mut usize,
}

impl<'t, 'f> Reader<'t, 'f> {
    fn new(piece: &Piece<'t>, aliased: &'f mut usize) -> Self {
        Self {
            events: Parser::new_from_str(piece.text),
            lines_before: piece.lines_before,
            anchors: HashMap::new(),
            path: FieldPath::default(),
            repeated: Vec::new(),
            aliased,
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
                    let mut lines = Lines::at(self.line(span));
                    let value = self.value(event, span, &mut lines)?;
                    let mut repeated = std::mem::take(&mut self.repeated);
                    repeated.sort_unstable();
                    self.anchors.clear();
                    trees.push(Tree { value, lines, repeated });
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

    fn value(&mut self, event: Event<'t>, span: Span, lines: &mut Lines) -> Result<Value, SyntaxError> {
        let fail = |line, message: &str| Err(SyntaxError { line, message: message.to_owned() });
        let line = self.line(span);
        if self.path.0.len() > MAX_DEPTH {
            return fail(line, "is nested too deeply to be a Kubernetes object");
        }
        let (value, anchor) = match event {
            Event::Scalar(text, style, anchor, tag) => (resolve(&text, style, tag.as_deref()), anchor),
            Event::Alias(anchor) => {
                let Some(value) = self.anchors.get(&anchor) else {
                    return fail(line, "refers to an anchor inside itself");
                };
                *self.aliased += count(value);
                if *self.aliased > MAX_ALIASED {
                    return fail(
                        line,
                        "has aliases (`*name`) that multiply beyond measure; write out what they stand for",
                    );
                }
                (value.clone(), 0)
            }
            Event::SequenceStart(anchor, _) => (self.list(lines)?, anchor),
            Event::MappingStart(anchor, _) => (self.map(lines)?, anchor),
            _ => return fail(line, "ends where a value should be"),
        };
        if anchor != 0 {
            self.anchors.insert(anchor, value.clone());
        }
        Ok(value)
    }

    fn list(&mut self, lines: &mut Lines) -> Result<Value, SyntaxError> {
        let mut items = Vec::new();
        loop {
            let (event, span) = self.next()?;
            if event == Event::SequenceEnd {
                return Ok(Value::Array(items));
            }
            let place = Lines::at(self.line(span));
            items.push(self.below(Step::Index(items.len()), event, span, place, lines)?);
        }
    }

    fn map(&mut self, lines: &mut Lines) -> Result<Value, SyntaxError> {
        let mut map = Map::new();
        let mut merged = Vec::new();
        loop {
            let (event, span) = self.next()?;
            let key = match event {
                Event::MappingEnd => break,
                Event::Scalar(text, ..) => text.into_owned(),
                _ => {
                    let message = "has a map or list for a key, which no Kubernetes object has".to_owned();
                    return Err(SyntaxError { line: self.line(span), message });
                }
            };
            let place = Lines::at(self.line(span));
            let (event, span) = self.next()?;
            let step = Step::Key(key.clone());
            if map.contains_key(&key) {
                self.path.0.push(step.clone());
                self.repeated.push(self.path.clone());
                self.path.0.pop();
            }
            let value = self.below(step, event, span, place, lines)?;
            if key == "<<" {
                merged.push(value);
            } else {
                map.insert(key, value);
            }
        }
        for value in merged {
            merge(&mut map, value);
        }
        Ok(Value::Object(map))
    }

    /// The value one step further down, which stands at `place`.
    fn below(
        &mut self,
        step: Step,
        event: Event<'t>,
        span: Span,
        mut place: Lines,
        lines: &mut Lines,
    ) -> Result<Value, SyntaxError> {
        self.path.0.push(step.clone());
        let value = self.value(event, span, &mut place);
        self.path.0.pop();
        lines.below.push((step, place));
        value
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
