//! Label and field selectors in requests of clients (`labelSelector` and `fieldSelector`).

use crate::object::Object;

/// The label and field selectors of a request. An object must meet all requirements of both.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Selector {
    labels: Vec<(String, Requirement)>,
    /// Each field, whether it must be equal (`true`) or different (`false`), and the value.
    fields: Vec<(Field, bool, String)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Requirement {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    DoesNotExist,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Field {
    Name,
    Namespace,
    Node,
}

impl Selector {
    /// Parses a label selector and a field selector. The error is the message for the client.
    pub(crate) fn parse(labels: Option<&str>, fields: Option<&str>) -> Result<Self, String> {
        let labels = split(labels.unwrap_or_default()).into_iter().map(parse_requirement).collect::<Result<_, _>>()?;
        let fields = split(fields.unwrap_or_default()).into_iter().map(parse_field).collect::<Result<_, _>>()?;
        Ok(Self { labels, fields })
    }

    /// Returns whether the selector selects everything.
    pub(crate) const fn is_everything(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    pub(crate) fn matches(&self, object: &Object) -> bool {
        let label_matches = |(key, wanted): &(String, Requirement)| {
            let value = object.labels.get(key.as_str());
            let is_in = |values: &[String]| value.is_some_and(|value| values.iter().any(|one| **one == **value));
            match wanted {
                Requirement::In(values) => is_in(values),
                Requirement::NotIn(values) => !is_in(values),
                Requirement::Exists => value.is_some(),
                Requirement::DoesNotExist => value.is_none(),
            }
        };
        let field_matches = |(field, equal, wanted): &(Field, bool, String)| {
            let value = match field {
                Field::Name => object.name(),
                Field::Namespace => object.namespace(),
                Field::Node => object.node.as_deref().unwrap_or_default(),
            };
            (value == wanted) == *equal
        };
        self.labels.iter().all(label_matches) && self.fields.iter().all(field_matches)
    }
}

/// Splits a selector into its requirements, at commas outside parentheses.
fn split(text: &str) -> Vec<&str> {
    let mut depth = 0_usize;
    let parts = text.split(|c| {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            _ => {}
        }
        c == ',' && depth == 0
    });
    parts.map(str::trim).filter(|part| !part.is_empty()).collect()
}

/// Parses one requirement of a label selector.
fn parse_requirement(text: &str) -> Result<(String, Requirement), String> {
    let parse_values = |values: &str| -> Result<Vec<String>, String> {
        let inner = values.trim().strip_prefix('(').and_then(|values| values.strip_suffix(')'));
        let inner = inner.ok_or_else(|| format!("unable to parse requirement: {text}"))?;
        Ok(inner.split(',').map(|value| value.trim().to_owned()).collect())
    };
    if let Some(key) = text.strip_prefix('!') {
        return Ok((key.trim().to_owned(), Requirement::DoesNotExist));
    }
    if let Some((key, values)) = text.split_once(" notin ").or_else(|| text.split_once(" notin(")) {
        return Ok((key.trim().to_owned(), Requirement::NotIn(parse_values(&with_opening_parenthesis(values))?)));
    }
    if let Some((key, values)) = text.split_once(" in ").or_else(|| text.split_once(" in(")) {
        return Ok((key.trim().to_owned(), Requirement::In(parse_values(&with_opening_parenthesis(values))?)));
    }
    if let Some((key, value)) = text.split_once("!=") {
        return Ok((key.trim().to_owned(), Requirement::NotIn(vec![value.trim().to_owned()])));
    }
    if let Some((key, value)) = text.split_once("==").or_else(|| text.split_once('=')) {
        return Ok((key.trim().to_owned(), Requirement::In(vec![value.trim().to_owned()])));
    }
    Ok((text.to_owned(), Requirement::Exists))
}

/// Adds the opening parenthesis of the values, if it was removed together with the operator, as in `app in(db)`.
fn with_opening_parenthesis(values: &str) -> String {
    if values.trim_start().starts_with('(') { values.to_owned() } else { format!("({values}") }
}

/// Parses one requirement of a field selector.
fn parse_field(text: &str) -> Result<(Field, bool, String), String> {
    let (name, equal, value) = if let Some((name, value)) = text.split_once("!=") {
        (name, false, value)
    } else if let Some((name, value)) = text.split_once("==").or_else(|| text.split_once('=')) {
        (name, true, value)
    } else {
        return Err(format!("invalid selector: '{text}'; can't understand '{text}'"));
    };
    let field = match name.trim() {
        "metadata.name" => Field::Name,
        "metadata.namespace" => Field::Namespace,
        "spec.nodeName" => Field::Node,
        other => return Err(format!("field label not supported: {other}")),
    };
    Ok((field, equal, value.trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::resource::Resource;

    #[test]
    fn selectors_select_as_the_api_documents() {
        let web = json!({"metadata": {"labels": {"app": "web", "tier": "front"}}, "spec": {"nodeName": "one"}});
        let web = Object::new(Resource::Pods, "shop/web", 1, web.as_object().cloned().unwrap_or_default());
        for (labels, fields, expected) in [
            ("", "", true),
            ("app=web,tier==front", "", true),
            ("app=web,tier=back", "", false),
            ("app!=db,!stage", "", true),
            ("app in (db, web),tier notin (back)", "spec.nodeName=one", true),
            ("app in (db),tier", "", false),
            ("tier", "metadata.name=web,metadata.namespace=shop", true),
            ("", "spec.nodeName!=one", false),
            ("missing notin (x)", "", true),
        ] {
            let selector = Selector::parse(Some(labels), Some(fields)).expect("the selector is valid");
            assert_eq!(selector.matches(&web), expected, "{labels:?} {fields:?}");
        }
        assert!(Selector::parse(None, Some("status.phase=Running")).is_err());
    }
}
