//! Checks JSON against the schemas in docs/schemas. Supports only the keywords of these schemas: any other keyword is
//! an error.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

/// A schema, and its name in error messages.
pub(crate) struct Schema {
    name: String,
    pub(crate) root: Value,
}

/// Keywords without an effect on validity.
const ANNOTATIONS: [&str; 6] = ["$schema", "$defs", "title", "description", "format", "default"];

/// Returns the directory with the schemas.
pub(crate) fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/schemas")
}

/// A `type` of records that no schema describes. Tests send such records, as a later version of the agent could.
const LATER_TYPE: &str = "of-a-later-version";

/// Checks the output of a command with `-o json` by the command's schema. Other output is not checked.
pub(crate) fn check_output(arguments: &[&str], output: &str) {
    let is_json = arguments.windows(2).any(|pair| matches!(pair, ["-o" | "--output", "json"]));
    if !is_json || output.is_empty() || arguments.contains(&"--help") {
        return;
    }
    let (name, documents) = match arguments[0] {
        // The output has one JSON document per line.
        "flows" => ("flow-record", output.lines().collect()),
        "shadow" => ("shadow-report", vec![output]),
        "resume" => ("suspend", vec![output]),
        command => (command, vec![output]),
    };
    let schema = Schema::read(name);
    for document in documents {
        let value: Value = serde_json::from_str(document).unwrap_or_else(|error| panic!("{error}: {document}"));
        if value["type"] == LATER_TYPE {
            continue;
        }
        schema.check(&value).unwrap_or_else(|error| panic!("docs/schemas/{name}.json: {error}\n{document}"));
    }
}

impl Schema {
    /// Reads docs/schemas/NAME.json.
    pub(crate) fn read(name: &str) -> Self {
        let path = directory().join(format!("{name}.json"));
        let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        Self { name: name.to_owned(), root: serde_json::from_str(&text).expect("JSON") }
    }

    /// Returns a schema that a test defines.
    pub(crate) fn of(root: Value) -> Self {
        Self { name: "test".to_owned(), root }
    }

    /// Checks a value. If it does not match the schema, the error contains the path of the field that does not match.
    pub(crate) fn check(&self, value: &Value) -> Result<(), String> {
        self.check_at(&self.root, value, &self.name)
    }

    /// Checks a value by a part of the schema. `at` is the path of the value, for errors.
    fn check_at(&self, schema: &Value, value: &Value, at: &str) -> Result<(), String> {
        let keywords = schema.as_object().ok_or_else(|| format!("{at}: the schema is not an object"))?;
        for (keyword, expected) in keywords {
            let holds = match keyword.as_str() {
                "$ref" => {
                    let pointer = expected.as_str().and_then(|text| text.strip_prefix('#')).unwrap_or("?");
                    let target = self.root.pointer(pointer).ok_or_else(|| format!("{expected} does not exist"))?;
                    self.check_at(target, value, at)?;
                    true
                }
                "oneOf" => {
                    let results: Vec<_> =
                        items(expected).iter().map(|alternative| self.check_at(alternative, value, at)).collect();
                    if results.iter().filter(|result| result.is_ok()).count() != 1 {
                        return Err(format!("{at}: not exactly one alternative matches: {results:?}"));
                    }
                    true
                }
                "const" => value == expected,
                "enum" => items(expected).contains(value),
                "type" => has_type(expected, value),
                "minimum" => value.as_f64().is_none_or(|number| Some(number) >= expected.as_f64()),
                "maximum" => value.as_f64().is_none_or(|number| Some(number) <= expected.as_f64()),
                "minItems" => value.as_array().is_none_or(|list| Some(list.len() as u64) >= expected.as_u64()),
                "maxItems" => value.as_array().is_none_or(|list| Some(list.len() as u64) <= expected.as_u64()),
                "items" => {
                    for (index, item) in items(value).iter().enumerate() {
                        self.check_at(expected, item, &format!("{at}[{index}]"))?;
                    }
                    true
                }
                "required" => {
                    let has = |name: &Value| value.get(name.as_str().unwrap_or_default()).is_some();
                    !value.is_object() || items(expected).iter().all(has)
                }
                // `check_fields` checks these below.
                "properties" | "additionalProperties" => true,
                annotation if ANNOTATIONS.contains(&annotation) => true,
                other => return Err(format!("{at}: unsupported keyword {other}")),
            };
            if !holds {
                return Err(format!("{at}: {keyword} is {expected}, which does not hold for {value}"));
            }
        }
        value.as_object().map_or(Ok(()), |fields| self.check_fields(keywords, fields, at))
    }

    /// Checks the fields of an object by the keywords `properties` and `additionalProperties`.
    fn check_fields(&self, keywords: &Map<String, Value>, fields: &Map<String, Value>, at: &str) -> Result<(), String> {
        let other_fields = keywords.get("additionalProperties");
        for (name, value) in fields {
            let schema = keywords.get("properties").and_then(|properties| properties.get(name)).or(other_fields);
            match schema {
                Some(Value::Bool(false)) => return Err(format!("{at}.{name} is not in the schema")),
                Some(schema) => self.check_at(schema, value, &format!("{at}.{name}"))?,
                None => {}
            }
        }
        Ok(())
    }
}

fn items(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn has_type(expected: &Value, value: &Value) -> bool {
    let is = |name: &Value| match name.as_str() {
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("integer") => value.is_u64() || value.is_i64(),
        Some("number") => value.is_number(),
        Some("boolean") => value.is_boolean(),
        Some("null") => value.is_null(),
        _ => false,
    };
    expected.as_array().map_or_else(|| is(expected), |names| names.iter().any(is))
}
