//! How large an object may be.

use serde_json::Value;

/// Bytes as compact JSON. The API server reads no more of a request, so that no cluster has such an object.
/// Source: <https://github.com/kubernetes/kubernetes/blob/v1.33.0/staging/src/k8s.io/apiserver/pkg/server/config.go>,
/// `MaxRequestBodyBytes`.
const LARGEST: usize = 3 * 1024 * 1024;

pub(super) const TOO_LARGE: &str = "is larger than 3 MiB, the most an API server takes";

/// Whether an object takes more bytes than an API server would read.
pub(super) fn is_too_large(object: &Value) -> bool {
    size(object) > LARGEST
}

/// Bytes as compact JSON, escapes left out.
fn size(value: &Value) -> usize {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => 4,
        Value::String(text) => text.len() + 2,
        Value::Array(items) => 2 + items.iter().map(|item| size(item) + 1).sum::<usize>(),
        Value::Object(map) => 2 + map.iter().map(|(key, value)| key.len() + 4 + size(value)).sum::<usize>(),
    }
}
