//! Parses YAML (and so JSON) into values with line numbers.

use std::collections::HashMap;

use saphyr_parser::{Event, Parser, ScalarStyle, ScanError, Span, StrInput, Tag};
use serde_json::{Map, Value};

use super::path::{FieldPath, Step};
use super::scalar;
use super::split::DocumentText;

/// Maximum nesting depth; no Kubernetes object is deeper. Protects the stack.
const MAX_DEPTH: usize = 100;
/// Maximum number of values that aliases repeat in one file. Protects against nested aliases, which multiply.
pub(super) const MAX_ALIASED: usize = 500_000;

/// A parsed document.
#[derive(Debug)]
pub(super) struct Tree {
    pub(super) value: Value,
    /// Line numbers of its fields.
    pub(super) lines: Lines,
    /// The lines of the file that are part of this document, counted from 0. The caller of [`read`] sets this field.
    pub(super) range: std::ops::Range<usize>,
    /// The paths of keys that a map contains twice, sorted.
    duplicates: Vec<FieldPath>,
}

impl Tree {
    /// Creates a document from a value that was not parsed from text. All fields have line 1.
    pub(super) fn without_lines(value: Value) -> Self {
        Self { value, lines: Lines::at(1), range: 0..0, duplicates: Vec::new() }
    }

    /// Returns the duplicate keys at or below `root`, as paths relative to `root`.
    pub(super) fn duplicates_below(&self, root: &FieldPath) -> impl Iterator<Item = FieldPath> {
        // A path sorts directly before all paths below it.
        let first = self.duplicates.partition_point(|path| path < root);
        self.duplicates[first..].iter().map_while(|path| path.relative_to(root))
    }
}

/// The line of a field (a key or a list item), and the lines of the fields below it (its children). If the value of a
/// field is an alias (`*name`), the field has no children here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Lines {
    line: usize,
    children: Vec<(Step, Lines)>,
}

impl Lines {
    fn at(line: usize) -> Self {
        Self { line, children: Vec::new() }
    }

    /// Returns the lines at `path`, or at the nearest field around it.
    pub(super) fn nearest(&self, path: &FieldPath) -> &Self {
        let mut lines = self;
        for step in &path.0 {
            // The children of a list are in the order of their indices. So an item is found without a search, which
            // would be slow in long lists.
            let at_index = if let Step::Index(index) = step { lines.children.get(*index) } else { None };
            let found = at_index.filter(|(found, _)| found == step);
            // If a key occurs twice, the last one is used.
            let search = || lines.children.iter().rev().find(|(found, _)| found == step);
            let Some((_, children)) = found.or_else(search) else { break };
            lines = children;
        }
        lines
    }

    /// Returns the line of this field.
    pub(crate) const fn line(&self) -> usize {
        self.line
    }

    /// Returns the lines of a child; `None` if there is no such child.
    pub(crate) fn child(&self, step: &Step) -> Option<&Self> {
        self.children.iter().rev().find(|(found, _)| found == step).map(|(_, lines)| lines)
    }

    /// Returns the lines of the children, in the order of the file.
    pub(crate) fn children(&self) -> impl Iterator<Item = &Self> {
        self.children.iter().map(|(_, lines)| lines)
    }

    /// Returns the line of a field, or of the nearest field around it.
    pub(super) fn of(&self, path: &FieldPath) -> usize {
        self.nearest(path).line
    }

    /// Returns the line of the field at this path, or of the nearest field around it. The path is text, such as
    /// `spec.ingress[0]`.
    pub(crate) fn of_text(&self, mut field: &str) -> usize {
        let mut lines = self;
        while let Some((rest, children)) =
            lines.children.iter().rev().find_map(|(step, children)| Some((step.strip(field)?, children)))
        {
            (field, lines) = (rest, children);
        }
        lines.line
    }
}

/// The reason why a document is not valid YAML.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct SyntaxError {
    pub(super) line: usize,
    pub(super) message: String,
}

/// Parses the text of a document. After a YAML end marker (`...`), the text can contain further documents. `aliased`
/// counts the values that aliases of the file have repeated so far.
pub(super) fn read(document: &DocumentText<'_>, aliased: &mut usize) -> Result<Vec<Tree>, SyntaxError> {
    let result = TreeReader::new(document, aliased).parse_documents();
    match (result, document.text.trim_start_matches(['-', ' ', '\n', '\r']).starts_with(['{', '['])) {
        // The text may be JSON that the YAML parser rejects, for example because of escaped surrogate pairs. If the
        // text is JSON, all fields have the first line of the document.
        (Err(error), true) => match serde_json::from_str(document.text) {
            Ok(value) => Ok(vec![Tree {
                value,
                lines: Lines::at(document.lines_before + 1),
                range: 0..0,
                duplicates: Vec::new(),
            }]),
            Err(_) => Err(error),
        },
        (result, _) => result,
    }
}

struct TreeReader<'t, 'f> {
    events: Parser<'t, StrInput<'t>>,
    /// Number of lines in the file before the text.
    lines_before: usize,
    /// The values of the anchors (`&name`), by the number that the parser gives to each anchor.
    anchors: HashMap<usize, Value>,
    /// The path of the value that is being parsed.
    path: FieldPath,
    duplicates: Vec<FieldPath>,
    /// Number of values that aliases of the file have repeated so far.
    aliased: &'f mut usize,
}

impl<'t, 'f> TreeReader<'t, 'f> {
    fn new(document: &DocumentText<'t>, aliased: &'f mut usize) -> Self {
        Self {
            events: Parser::new_from_str(document.text),
            lines_before: document.lines_before,
            anchors: HashMap::new(),
            path: FieldPath::default(),
            duplicates: Vec::new(),
            aliased,
        }
    }

    fn parse_documents(mut self) -> Result<Vec<Tree>, SyntaxError> {
        let mut trees = Vec::new();
        loop {
            let (event, span) = self.next_event()?;
            match event {
                Event::StreamEnd => return Ok(trees),
                Event::Nothing | Event::StreamStart | Event::DocumentStart(_) | Event::DocumentEnd => {}
                event => {
                    let mut lines = Lines::at(self.line(span));
                    let value = self.parse_value(event, span, &mut lines)?;
                    let mut duplicates = std::mem::take(&mut self.duplicates);
                    duplicates.sort_unstable();
                    self.anchors.clear();
                    trees.push(Tree { value, lines, range: 0..0, duplicates });
                }
            }
        }
    }

    fn next_event(&mut self) -> Result<(Event<'t>, Span), SyntaxError> {
        match self.events.next_event() {
            Some(Ok(event)) => Ok(event),
            Some(Err(error)) => Err(self.syntax_error(&error)),
            None => Ok((Event::StreamEnd, Span::default())),
        }
    }

    fn syntax_error(&self, error: &ScanError) -> SyntaxError {
        SyntaxError {
            line: self.lines_before + error.marker().line().max(1),
            message: format!("is not valid YAML: {}", error.info()),
        }
    }

    fn line(&self, span: Span) -> usize {
        self.lines_before + span.start.line().max(1)
    }

    /// Parses the value that starts with `event`. `lines` has the line of the value. The lines of the value's children
    /// are added to `lines`.
    fn parse_value(&mut self, event: Event<'t>, span: Span, lines: &mut Lines) -> Result<Value, SyntaxError> {
        let fail = |line, message: &str| Err(SyntaxError { line, message: message.to_owned() });
        let line = self.line(span);
        let too_deep = "is nested too deeply to be a Kubernetes object";
        if self.path.0.len() > MAX_DEPTH {
            return fail(line, too_deep);
        }
        let (value, anchor) = match event {
            Event::Scalar(text, style, anchor, tag) => (resolve_scalar(&text, style, tag.as_deref()), anchor),
            Event::Alias(anchor) => {
                let Some(value) = self.anchors.get(&anchor) else {
                    return fail(line, "has an alias inside its own anchor");
                };
                let (count, depth) = measure(value);
                // The value of an anchor can contain aliases, so a chain of anchors can be deeper than each of them.
                if self.path.0.len() + depth > MAX_DEPTH {
                    return fail(line, too_deep);
                }
                *self.aliased += count;
                if *self.aliased > MAX_ALIASED {
                    return fail(line, "has aliases (`*name`) that repeat too many values; write the values out");
                }
                (value.clone(), 0)
            }
            Event::SequenceStart(anchor, _) => (self.parse_list(lines)?, anchor),
            Event::MappingStart(anchor, _) => (self.parse_map(lines)?, anchor),
            _ => return fail(line, "ends where a value is expected"),
        };
        // 0: the value has no anchor.
        if anchor != 0 {
            self.anchors.insert(anchor, value.clone());
        }
        Ok(value)
    }

    fn parse_list(&mut self, lines: &mut Lines) -> Result<Value, SyntaxError> {
        let mut items = Vec::new();
        loop {
            let (event, span) = self.next_event()?;
            if event == Event::SequenceEnd {
                return Ok(Value::Array(items));
            }
            let child_lines = Lines::at(self.line(span));
            items.push(self.parse_child(Step::Index(items.len()), event, span, child_lines, lines)?);
        }
    }

    fn parse_map(&mut self, lines: &mut Lines) -> Result<Value, SyntaxError> {
        let mut map = Map::new();
        // The values of `<<` keys.
        let mut merged = Vec::new();
        loop {
            let (event, span) = self.next_event()?;
            let key = match event {
                Event::MappingEnd => break,
                Event::Scalar(text, ..) => text.into_owned(),
                _ => {
                    let message = "has a map or list as a key, which Kubernetes does not support".to_owned();
                    return Err(SyntaxError { line: self.line(span), message });
                }
            };
            let child_lines = Lines::at(self.line(span));
            let (event, span) = self.next_event()?;
            let step = Step::Key(key.clone());
            if map.contains_key(&key) {
                self.path.0.push(step.clone());
                self.duplicates.push(self.path.clone());
                self.path.0.pop();
            }
            let value = self.parse_child(step, event, span, child_lines, lines)?;
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

    /// Parses the value of a child. `child_lines` has only the line at which the child starts. The lines of the child's
    /// own children are added to `child_lines`. Then `child_lines` is added to `lines`, the lines of the parent.
    fn parse_child(
        &mut self,
        step: Step,
        event: Event<'t>,
        span: Span,
        mut child_lines: Lines,
        lines: &mut Lines,
    ) -> Result<Value, SyntaxError> {
        self.path.0.push(step.clone());
        let value = self.parse_value(event, span, &mut child_lines);
        self.path.0.pop();
        lines.children.push((step, child_lines));
        value
    }
}

/// Merges the value of a `<<` key (`<<: *anchor`) into its map: adds the keys that the map does not have itself.
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

fn resolve_scalar(text: &str, style: ScalarStyle, tag: Option<&Tag>) -> Value {
    let is_string = matches!(tag, Some(tag) if tag.is_yaml_core_schema() && tag.suffix == "str");
    if style == ScalarStyle::Plain && !is_string { scalar::resolve(text) } else { Value::String(text.to_owned()) }
}

/// Returns the number of values in a value, itself included, and the depth of their nesting: 0 for a scalar.
fn measure(value: &Value) -> (usize, usize) {
    let add = |(count, depth): (usize, usize), child: &Value| {
        let (child_count, child_depth) = measure(child);
        (count + child_count, depth.max(child_depth + 1))
    };
    match value {
        Value::Array(items) => items.iter().fold((1, 0), add),
        Value::Object(map) => map.values().fold((1, 0), add),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => (1, 0),
    }
}
