//! Maximum size of an object.

use serde_json::Value;

/// Size limit as compact JSON, in bytes. The API server reads no larger request, so no cluster has a larger object.
/// Source: <https://github.com/kubernetes/kubernetes/blob/v1.33.0/staging/src/k8s.io/apiserver/pkg/server/config.go>,
/// `MaxRequestBodyBytes`.
const MAX_BYTES: usize = 3 * 1024 * 1024;

pub(super) const TOO_LARGE: &str = "is larger than 3 MiB, the limit of the API server";

/// Returns whether an object is larger than the API server's limit.
pub(super) fn is_too_large(object: &Value) -> bool {
    size(object) > MAX_BYTES
}

/// Returns the approximate size as compact JSON in bytes, without escapes.
fn size(value: &Value) -> usize {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => 4,
        Value::String(text) => text.len() + 2,
        Value::Array(items) => 2 + items.iter().map(|item| size(item) + 1).sum::<usize>(),
        Value::Object(map) => 2 + map.iter().map(|(key, value)| key.len() + 4 + size(value)).sum::<usize>(),
    }
}
