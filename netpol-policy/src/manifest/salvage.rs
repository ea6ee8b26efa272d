//! Keeps the valid parts of an invalid policy.
//!
//! The API server rejects such a policy as a whole. But netpol sometimes has only the manifest, and the policy must
//! still isolate its pods. So netpol replaces the innermost peer, port, rule or selector around each error with one
//! that matches nothing. An invalid `spec.podSelector` is replaced with one that selects every pod of the namespace.
//! All other parts of the policy are used.

use serde_json::{Map, Value, json};

use super::path::{FieldPath, Step};

/// Replaces the part of a policy around an error. Returns the path of the replaced part, and the consequence as a text
/// for the diagnostic. Returns `None` if no part of the policy can be kept.
pub(super) fn replace_invalid(policy: &mut Value, error_path: &FieldPath) -> Option<(FieldPath, &'static str)> {
    let steps: Vec<&str> =
        error_path.0.iter().map(|step| if let Step::Key(key) = step { key.as_str() } else { "[]" }).collect();
    // `length`: number of steps from the root to the part that is replaced. `replacement`: `None` removes the part.
    // An empty peer (`{}`) is invalid, so it matches nothing.
    let (length, replacement, consequence) = match steps.as_slice() {
        ["spec", "ingress", "[]", "from", "[]", ..] | ["spec", "egress", "[]", "to", "[]", ..] => {
            (5, Some(json!({})), "this peer matches nothing")
        }
        ["spec", "ingress", "[]", "from", ..] | ["spec", "egress", "[]", "to", ..] => {
            (4, Some(json!([{}])), "this rule matches no peer")
        }
        ["spec", "ingress" | "egress", "[]", "ports", "[]", ..] => {
            (5, Some(invalid_port()), "this item matches no port")
        }
        ["spec", "ingress" | "egress", "[]", "ports", ..] => {
            (4, Some(json!([invalid_port()])), "this rule matches no port")
        }
        ["spec", "ingress", "[]", ..] => (3, Some(json!({ "from": [{}] })), "this rule matches no peer"),
        ["spec", "egress", "[]", ..] => (3, Some(json!({ "to": [{}] })), "this rule matches no peer"),
        ["spec", "ingress", ..] => (2, Some(json!([{ "from": [{}] }])), "the policy allows no ingress"),
        ["spec", "egress", ..] => (2, Some(json!([{ "to": [{}] }])), "the policy allows no egress"),
        ["spec", "podSelector", ..] => (2, Some(invalid_selector()), "the policy isolates every pod of the namespace"),
        ["spec", "policyTypes", ..] => {
            (2, Some(json!(["Ingress", "Egress"])), "the policy isolates in both directions")
        }
        ["spec", _, ..] => {
            // The unknown field may be a misspelled `egress` or `policyTypes` that isolates the pods.
            let spec = policy.get_mut("spec")?.as_object_mut()?;
            spec.insert("policyTypes".into(), json!(["Ingress", "Egress"]));
            (2, None, "the policy isolates in both directions until this is fixed")
        }
        ["spec"] => {
            let spec = json!({ "podSelector": invalid_selector(), "policyTypes": ["Ingress", "Egress"] });
            (1, Some(spec), "the policy isolates every pod of the namespace in both directions")
        }
        ["metadata", "name" | "namespace", ..] | ["metadata"] | ["apiVersion" | "kind", ..] | [] => return None,
        ["metadata", ..] => (2, None, "the field is ignored"),
        [_, ..] => (1, None, "the field is ignored"),
    };
    let target = FieldPath(error_path.0.get(..length)?.to_vec());
    replace(policy, &target.0, replacement)?;
    Some((target, consequence))
}

/// Returns an item of `ports` with an invalid protocol, which matches no port.
fn invalid_port() -> Value {
    json!({ "protocol": "?" })
}

/// Returns an invalid selector. As `spec.podSelector`, it selects every pod of the namespace.
fn invalid_selector() -> Value {
    json!({ "matchExpressions": [{ "key": "?", "operator": "?" }] })
}

/// Sets the value at `steps`, or removes it if `value` is `None`.
fn replace(root: &mut Value, steps: &[Step], value: Option<Value>) -> Option<()> {
    let (last, parents) = steps.split_last()?;
    let mut target = root;
    for step in parents {
        target = match step {
            Step::Key(key) => target.get_mut(key)?,
            Step::Index(index) => target.get_mut(index)?,
        };
    }
    match (last, target) {
        (Step::Key(key), Value::Object(map)) => set(map, key, value),
        (Step::Index(index), Value::Array(items)) => *items.get_mut(*index)? = value.unwrap_or_default(),
        _ => return None,
    }
    Some(())
}

fn set(map: &mut Map<String, Value>, key: &str, value: Option<Value>) {
    match value {
        Some(value) => {
            map.insert(key.to_owned(), value);
        }
        None => {
            map.remove(key);
        }
    }
}
