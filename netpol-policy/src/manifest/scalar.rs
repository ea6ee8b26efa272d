//! Resolves plain (unquoted) YAML scalars to JSON values.
//!
//! This follows the YAML reader of Kubernetes, including YAML 1.1 booleans and digit separators. For example, `on` is
//! `true` there, so an unquoted label value `on` must be rejected here, too. Source: `resolve` in
//! <https://github.com/kubernetes-sigs/yaml/blob/v1.4.0/goyaml.v2/resolve.go>.

use serde_json::Value;

/// An `f64` represents all integers below this limit exactly.
const MAX_EXACT: f64 = 9_007_199_254_740_992.0;

pub(super) fn resolve(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "true" | "True" | "TRUE" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" | "y" | "Y" => return Value::Bool(true),
        "false" | "False" | "FALSE" | "no" | "No" | "NO" | "off" | "Off" | "OFF" | "n" | "N" => {
            return Value::Bool(false);
        }
        _ => {}
    }
    if text.starts_with(|first: char| first.is_ascii_digit() || matches!(first, '+' | '-' | '.')) {
        let without_separators = text.replace('_', "");
        if let Some(number) = integer(&without_separators).or_else(|| float(&without_separators)) {
            return number;
        }
    }
    Value::String(text.to_owned())
}

fn integer(text: &str) -> Option<Value> {
    let (negative, digits) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let (radix, digits) = match digits.as_bytes() {
        [b'0', b'x' | b'X', ..] => (16, &digits[2..]),
        [b'0', b'o' | b'O', ..] => (8, &digits[2..]),
        [b'0', b'b' | b'B', ..] => (2, &digits[2..]),
        [b'0', _, ..] => (8, &digits[1..]),
        _ => (10, digits),
    };
    if digits.is_empty() || digits.starts_with(['+', '-']) {
        return None;
    }
    let magnitude = i128::from_str_radix(digits, radix).ok()?;
    let value = if negative { -magnitude } else { magnitude };
    i64::try_from(value).map(Value::from).or_else(|_| u64::try_from(value).map(Value::from)).ok()
}

/// Parses a float. A float without a fraction becomes an integer: JSON does not distinguish the two, and Kubernetes
/// reads `port: 8080.0` as 8080.
#[expect(clippy::cast_possible_truncation, reason = "integral, and within the range that is exact")]
fn float(text: &str) -> Option<Value> {
    // Excludes `inf`, `nan` and similar words, which are strings here.
    let numeric = text.bytes().all(|byte| byte.is_ascii_digit() || b"+-.eE".contains(&byte));
    let number = text.parse::<f64>().ok().filter(|_| numeric && text.bytes().any(|byte| byte.is_ascii_digit()))?;
    if number.fract() == 0.0 && number.abs() < MAX_EXACT {
        return Some(Value::from(number as i64));
    }
    serde_json::Number::from_f64(number).map(Value::Number)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn plain_scalars_are_resolved_as_in_kubernetes() {
        let cases = [
            ("", json!(null)),
            ("~", json!(null)),
            ("web", json!("web")),
            ("true", json!(true)),
            ("off", json!(false)),
            ("y", json!(true)),
            ("80", json!(80)),
            ("-1", json!(-1)),
            ("0x50", json!(80)),
            ("0120", json!(80)),
            ("0o120", json!(80)),
            ("08080", json!(8080)),
            ("8_080", json!(8080)),
            ("8080.0", json!(8080)),
            ("8e3", json!(8000)),
            ("_8080", json!("_8080")),
            ("18446744073709551615", json!(u64::MAX)),
            ("1.10", json!(1.1)),
            ("1e3", json!(1000)),
            ("1e30", json!(1e30)),
            ("1.2.3", json!("1.2.3")),
            ("10.0.0.0/8", json!("10.0.0.0/8")),
            ("inf", json!("inf")),
            ("e", json!("e")),
            (".", json!(".")),
            ("0x", json!("0x")),
        ];
        for (text, expected) in cases {
            assert_eq!(resolve(text), expected, "{text:?}");
        }
    }
}
