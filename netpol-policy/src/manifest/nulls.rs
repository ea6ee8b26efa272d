//! Replaces null items of lists, and null values in maps of strings such as labels.
//!
//! The API server decodes a null item as an empty one: `ports: [null]` means `ports: [{}]`, every TCP port. Source:
//! `Unmarshal` in <https://pkg.go.dev/encoding/json>: an item starts as its zero value, and null does not change it.

use serde_json::Value;

use super::path::FieldPath;

/// Fields that are lists of strings: a null item means an empty string. In other lists, a null item means an empty
/// object.
const STRINGS: [&str; 9] =
    ["except", "values", "policyTypes", "finalizers", "addresses", "externalIPs", "clusterIPs", "ipFamilies", "args"];
/// Fields that are maps with strings as values: a null value means an empty string.
const STRING_MAPS: [&str; 5] = ["labels", "annotations", "matchLabels", "nodeSelector", "selector"];

/// Replaces null list items, and null values in `STRING_MAPS`, with empty ones. Returns their paths.
pub(super) fn replace(value: &mut Value) -> Vec<FieldPath> {
    let mut found = Vec::new();
    visit(value, "", &FieldPath::default(), &mut found);
    found
}

fn visit(value: &mut Value, field: &str, path: &FieldPath, found: &mut Vec<FieldPath>) {
    match value {
        Value::Array(items) => {
            // The field `addresses` of a Node is a list of objects.
            let are_strings = STRINGS.contains(&field) && !items.iter().any(Value::is_object);
            for (index, item) in items.iter_mut().enumerate() {
                if item.is_null() {
                    *item = if are_strings { Value::from("") } else { Value::Object(serde_json::Map::new()) };
                    found.push(path.index(index));
                } else if item.is_object() || item.is_array() {
                    visit(item, field, &path.index(index), found);
                }
            }
        }
        Value::Object(map) => {
            for (key, child) in map {
                // The selector of a workload is a LabelSelector, with these fields.
                let is_field_of_selector = field == "selector" && ["matchLabels", "matchExpressions"].contains(&&**key);
                if child.is_null() && STRING_MAPS.contains(&field) && !is_field_of_selector {
                    *child = Value::from("");
                    found.push(path.key(key));
                } else if child.is_object() || child.is_array() {
                    visit(child, key, &path.key(key), found);
                }
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}
