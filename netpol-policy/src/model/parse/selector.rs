//! Label selectors.

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};

use super::Diagnostics;
use crate::model::{Requirement, Selector, names};

/// Parses the selector `api` of an API object. `field` is its path for diagnostics. An absent selector selects
/// everything.
pub(super) fn selector(api: Option<&LabelSelector>, field: &str, diagnostics: &mut Diagnostics) -> Selector {
    let mut result = Selector::everything();
    let Some(api) = api else { return result };
    for (key, value) in api.match_labels.iter().flatten() {
        if let Some(message) = names::label_key_error(key).or_else(|| names::label_value_error(value)) {
            diagnostics.error(format!("{field}.matchLabels.{key}"), message);
            result.invalid = true;
            continue;
        }
        result.requirements.push(Requirement::In(key.as_str().into(), vec![value.as_str().into()]));
    }
    for (index, expression) in api.match_expressions.iter().flatten().enumerate() {
        match requirement(expression) {
            Ok(requirement) => result.requirements.push(requirement),
            Err(message) => {
                diagnostics.error(format!("{field}.matchExpressions[{index}]"), message);
                result.invalid = true;
            }
        }
    }
    if result.invalid {
        // The valid requirements of an invalid selector have no effect. They are removed, so that all invalid selectors
        // are equal.
        result.requirements.clear();
    }
    result.requirements.sort();
    result.requirements.dedup();
    result
}

fn requirement(api: &LabelSelectorRequirement) -> Result<Requirement, String> {
    let key: Arc<str> = api.key.as_str().into();
    if key.is_empty() {
        return Err("has no key; set the name of a label".into());
    }
    let value_error = || api.values.iter().flatten().find_map(|value| names::label_value_error(value));
    if let Some(message) = names::label_key_error(&key).or_else(value_error) {
        return Err(message);
    }
    let mut values: Vec<Arc<str>> = api.values.iter().flatten().map(|value| value.as_str().into()).collect();
    values.sort();
    values.dedup();
    match (api.operator.as_str(), values.is_empty()) {
        ("In", false) => Ok(Requirement::In(key, values)),
        ("NotIn", false) => Ok(Requirement::NotIn(key, values)),
        ("Exists", true) => Ok(Requirement::Exists(key)),
        ("DoesNotExist", true) => Ok(Requirement::DoesNotExist(key)),
        (operator @ ("In" | "NotIn"), true) => Err(format!(
            "operator {operator} needs values; to check only whether the label exists, write Exists or DoesNotExist"
        )),
        (operator @ ("Exists" | "DoesNotExist"), false) => {
            Err(format!("operator {operator} does not allow values; to compare values, write In or NotIn"))
        }
        (operator, _) => Err(format!("unknown operator `{operator}`; write In, NotIn, Exists or DoesNotExist")),
    }
}
