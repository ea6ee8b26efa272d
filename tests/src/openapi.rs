//! Checks JSON against the schemas of docs/api/openapi.json. Checks only the JSON Schema keywords that occur in the
//! functions below, and ignores others, for example `format` and `maxItems`.

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value};

/// The `OpenAPI` description of the agent's API.
#[derive(Clone, Debug)]
pub struct OpenApi(Value);

impl OpenApi {
    /// Parses the description.
    ///
    /// # Errors
    /// Returns an error if it is not JSON.
    pub fn parse(text: &str) -> Result<Self> {
        Ok(Self(serde_json::from_str(text).context("the description of the API is not JSON")?))
    }

    /// Returns the paths for which a GET request is described.
    pub fn get_paths(&self) -> Vec<&str> {
        let paths = self.0["paths"].as_object().into_iter().flatten();
        paths.filter(|(_, methods)| methods.get("get").is_some()).map(|(path, _)| path.as_str()).collect()
    }

    /// Checks the body of a successful response to a GET request. If the media type is NDJSON, checks each line. A body
    /// of plain text is not checked.
    ///
    /// # Errors
    /// Returns an error that names the field that does not match.
    pub fn check_response(&self, path: &str, body: &str) -> Result<()> {
        let content = &self.0["paths"][path]["get"]["responses"]["200"]["content"];
        let (media_type, schema) =
            content.as_object().and_then(|content| content.iter().next()).context("no response")?;
        let bodies = match media_type.as_str() {
            "application/json" => vec![body],
            "application/x-ndjson" => body.lines().collect(),
            "text/plain" => return Ok(()),
            other => bail!("{path} has an unknown media type: {other}"),
        };
        for body in bodies {
            let value = serde_json::from_str(body).with_context(|| format!("GET {path} is not JSON: {body}"))?;
            self.check(&schema["schema"], &value, path).with_context(|| format!("the response is {body}"))?;
        }
        Ok(())
    }

    /// Checks a value against a schema. `at` is the position of the value in the response, for messages.
    fn check(&self, schema: &Value, value: &Value, at: &str) -> Result<()> {
        if let Some(name) = schema["$ref"].as_str() {
            let pointer = name.strip_prefix('#').context("a reference to another file")?;
            let schema = self.0.pointer(pointer).with_context(|| format!("{name} does not exist"))?;
            return self.check(schema, value, at);
        }
        if let Some(alternatives) = schema["oneOf"].as_array() {
            let matching = alternatives.iter().filter(|one| self.check(one, value, at).is_ok()).count();
            ensure!(matching == 1, "{at}: {matching} of the alternatives match {value}");
            return Ok(());
        }
        if let Some(expected) = schema.get("const") {
            ensure!(value == expected, "{at}: {value} is not {expected}");
        }
        if let Some(values) = schema["enum"].as_array() {
            ensure!(values.contains(value), "{at}: {value} is not one of {values:?}");
        }
        check_type(&schema["type"], value, at)?;
        check_range(schema, value, at)?;
        match value {
            Value::Object(fields) => self.check_object(schema, fields, at),
            Value::Array(items) => {
                let each = |(index, item)| self.check(&schema["items"], item, &format!("{at}[{index}]"));
                items.iter().enumerate().try_for_each(each)
            }
            _ => Ok(()),
        }
    }

    fn check_object(&self, schema: &Value, fields: &Map<String, Value>, at: &str) -> Result<()> {
        for required in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            ensure!(fields.contains_key(required), "{at}: {required} is missing");
        }
        for (name, value) in fields {
            let at = format!("{at}.{name}");
            match (schema["properties"].get(name), schema.get("additionalProperties")) {
                (Some(schema), _) | (None, Some(schema @ Value::Object(_))) => self.check(schema, value, &at)?,
                (None, Some(Value::Bool(false))) => bail!("{at} is not described"),
                (None, _) => {}
            }
        }
        Ok(())
    }
}

fn check_type(expected: &Value, value: &Value, at: &str) -> Result<()> {
    let expected: Vec<&str> = match expected {
        Value::String(one) => vec![one],
        Value::Array(several) => several.iter().filter_map(Value::as_str).collect(),
        _ => return Ok(()),
    };
    let matches = expected.iter().any(|expected| match *expected {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "integer" => value.is_u64() || value.is_i64(),
        "number" => value.is_number(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        _ => false,
    });
    ensure!(matches, "{at}: {value} is not of type {expected:?}");
    Ok(())
}

fn check_range(schema: &Value, value: &Value, at: &str) -> Result<()> {
    let Some(number) = value.as_f64() else { return Ok(()) };
    let limit = |name: &str| schema[name].as_f64();
    ensure!(limit("minimum").is_none_or(|minimum| number >= minimum), "{at}: {value} is too small");
    ensure!(limit("maximum").is_none_or(|maximum| number <= maximum), "{at}: {value} is too large");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const DESCRIPTION: &str = r##"{
        "paths": {"/a": {"get": {"responses": {"200": {"content": {"application/json": {"schema": {"$ref": "#/schemas/A"}}}}}}}},
        "schemas": {"A": {"type": "object", "required": ["n"], "additionalProperties": false, "properties": {
            "n": {"type": "integer", "minimum": 0, "maximum": 9},
            "kind": {"enum": ["x", "y"]},
            "list": {"type": "array", "items": {"type": ["string", "null"]}},
            "one": {"oneOf": [{"const": 1}, {"type": "string"}]}
        }}}
    }"##;

    #[test]
    fn responses_must_match_their_schema() {
        let api = OpenApi::parse(DESCRIPTION).expect("not JSON");
        assert_eq!(api.get_paths(), ["/a"]);
        for valid in [r#"{"n": 9}"#, r#"{"n": 0, "kind": "x", "list": ["a", null], "one": 1}"#] {
            api.check_response("/a", valid).expect(valid);
        }
        for (invalid, field) in [
            ("{}", "n is missing"),
            (r#"{"n": 10}"#, "/a.n: 10 is too large"),
            (r#"{"n": "1"}"#, "/a.n"),
            (r#"{"n": 1, "kind": "z"}"#, "/a.kind"),
            (r#"{"n": 1, "list": ["a", 1]}"#, "/a.list[1]"),
            (r#"{"n": 1, "one": 2}"#, "/a.one"),
            (r#"{"n": 1, "more": 1}"#, "/a.more is not described"),
        ] {
            let error = format!("{:#}", api.check_response("/a", invalid).expect_err(invalid));
            assert!(error.contains(field), "{invalid}: {error}");
        }
    }
}
