//! What can be kept of a policy that does not have the shape of one.
//!
//! The API server refuses such an object whole. Here it may be all there is, so the innermost peer, port, rule or selector
//! around each fault is replaced by one that matches nothing (or, for the pods to isolate, everything), and the rest counts.

use serde_json::{Map, Value, json};

use super::path::{FieldPath, Step};

/// Replaces the part of a policy around `fault`. Returns what was given up, for the message, or `None` where nothing of
/// the policy can be kept.
pub(super) fn give_up(policy: &mut Value, fault: &FieldPath) -> Option<(FieldPath, &'static str)> {
    let steps: Vec<&str> =
        fault.0.iter().map(|step| if let Step::Key(key) = step { key.as_str() } else { "[]" }).collect();
    let (length, replacement, consequence) = match steps.as_slice() {
        ["spec", "ingress", "[]", "from", "[]", ..] | ["spec", "egress", "[]", "to", "[]", ..] => {
            (5, Some(json!({})), "this peer matches nobody")
        }
        ["spec", "ingress", "[]", "from", ..] | ["spec", "egress", "[]", "to", ..] => {
            (4, Some(json!([{}])), "this rule matches nobody")
        }
        ["spec", "ingress" | "egress", "[]", "ports", "[]", ..] => (5, Some(no_port()), "this item matches no port"),
        ["spec", "ingress" | "egress", "[]", "ports", ..] => (4, Some(json!([no_port()])), "this rule matches no port"),
        ["spec", "ingress", "[]", ..] => (3, Some(json!({ "from": [{}] })), "this rule matches nobody"),
        ["spec", "egress", "[]", ..] => (3, Some(json!({ "to": [{}] })), "this rule matches nobody"),
        ["spec", "ingress", ..] => (2, Some(json!([{ "from": [{}] }])), "no ingress rule of it counts"),
        ["spec", "egress", ..] => (2, Some(json!([{ "to": [{}] }])), "no egress rule of it counts"),
        ["spec", "podSelector", ..] => {
            (2, Some(no_selector()), "every pod of the namespace is isolated by this policy")
        }
        ["spec", "policyTypes", ..] => (2, Some(json!(["Ingress", "Egress"])), "both directions are isolated"),
        ["spec", _, ..] => {
            // A misspelt `egress` or `policyTypes` may be what isolates.
            let spec = policy.get_mut("spec")?.as_object_mut()?;
            spec.insert("policyTypes".into(), json!(["Ingress", "Egress"]));
            (2, None, "both directions are isolated until it is corrected")
        }
        ["spec"] => {
            let spec = json!({ "podSelector": no_selector(), "policyTypes": ["Ingress", "Egress"] });
            (1, Some(spec), "every pod of the namespace is isolated in both directions")
        }
        ["metadata", "name" | "namespace", ..] | ["metadata"] | ["apiVersion" | "kind", ..] | [] => return None,
        ["metadata", ..] => (2, None, "it is left out"),
        [_, ..] => (1, None, "it is left out"),
    };
    let place = FieldPath(fault.0.get(..length)?.to_vec());
    replace(policy, &place.0, replacement)?;
    Some((place, consequence))
}

fn no_port() -> Value {
    json!({ "protocol": "?" })
}

fn no_selector() -> Value {
    json!({ "matchExpressions": [{ "key": "?", "operator": "?" }] })
}

/// Puts `value` at `steps`, or removes what is there.
fn replace(root: &mut Value, steps: &[Step], value: Option<Value>) -> Option<()> {
    let (last, parents) = steps.split_last()?;
    let mut place = root;
    for step in parents {
        place = match step {
            Step::Key(key) => place.get_mut(key)?,
            Step::Index(index) => place.get_mut(index)?,
        };
    }
    match (last, place) {
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
