//! Validates names, label keys and label values as the API server does.
//!
//! Source: <https://kubernetes.io/docs/concepts/overview/working-with-objects/names/> and
//! <https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/#syntax-and-character-set>.

/// Maximum length of a DNS label, and of the name and the value of a Kubernetes label, in bytes.
const MAX_LABEL_LENGTH: usize = 63;
/// Maximum length of a DNS subdomain, in bytes.
const MAX_SUBDOMAIN_LENGTH: usize = 253;

/// Returns why the API server rejects a name for this kind of object; `None` if the name is valid.
pub(crate) fn name_error(kind: &str, name: &str) -> Option<String> {
    match kind {
        "Namespace" | "Service" if name.len() > MAX_LABEL_LENGTH => Some(too_long(name, MAX_LABEL_LENGTH)),
        "Namespace" | "Service" if !is_name_part(name) => Some(format!(
            "`{name}` is not a valid name: use lower-case letters, digits and `-`, and begin and end with a letter or digit"
        )),
        _ if name.len() > MAX_SUBDOMAIN_LENGTH => Some(too_long(name, MAX_SUBDOMAIN_LENGTH)),
        _ if !name.split('.').all(is_name_part) => Some(format!(
            "`{name}` is not a valid name: use lower-case letters, digits, `-` and `.`, and begin and end each part with a letter or digit"
        )),
        _ => None,
    }
}

/// Returns why the API server rejects a label key.
pub(crate) fn label_key_error(key: &str) -> Option<String> {
    let (prefix, name) = key.split_once('/').map_or((None, key), |(prefix, name)| (Some(prefix), name));
    if let Some(prefix) = prefix
        && (prefix.len() > MAX_SUBDOMAIN_LENGTH || !prefix.split('.').all(is_name_part))
    {
        return Some(format!("label key `{key}`: `{prefix}` is not a DNS name"));
    }
    if name.is_empty() {
        return Some(format!("label key `{key}` has no name"));
    }
    part_error(name).map(|message| format!("label key {message}"))
}

/// Returns why the API server rejects a label value.
pub(crate) fn label_value_error(value: &str) -> Option<String> {
    if value.is_empty() { None } else { part_error(value).map(|message| format!("label value {message}")) }
}

/// Returns the error in the name of a label key, or in a label value: both have the same syntax.
fn part_error(text: &str) -> Option<String> {
    if text.len() > MAX_LABEL_LENGTH {
        return Some(too_long(text, MAX_LABEL_LENGTH));
    }
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let ends = [text.bytes().next(), text.bytes().last()];
    let valid = text.bytes().all(inner) && ends.into_iter().flatten().all(|byte| byte.is_ascii_alphanumeric());
    (!valid).then(|| {
        format!(
            "`{text}` is not valid: use letters, digits, `-`, `_` and `.`, and begin and end with a letter or digit"
        )
    })
}

/// Returns whether a part of a name between two dots is valid. The API server limits only the length of the whole name.
/// Source: `IsDNS1123Subdomain` in
/// <https://github.com/kubernetes/apimachinery/blob/master/pkg/util/validation/validation.go>.
fn is_name_part(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    !text.is_empty() && text.bytes().all(inner) && !text.starts_with('-') && !text.ends_with('-')
}

fn too_long(text: &str, limit: usize) -> String {
    format!("`{text}` is {} characters long; at most {limit} are allowed", text.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_validated_as_by_the_api_server() {
        let long = "a".repeat(64);
        for (kind, name, valid) in [
            ("Pod", "web-0", true),
            ("Pod", "web.v1", true),
            ("Pod", "Bad_Name", false),
            ("Pod", "web..v1", false),
            ("Pod", "-web", false),
            ("Namespace", "shop.v1", false),
            ("Namespace", &long, false),
            ("NetworkPolicy", &long, true),
            ("Pod", &format!("{long}.x"), true),
            ("NetworkPolicy", &"a.".repeat(130), false),
        ] {
            assert_eq!(name_error(kind, name).is_none(), valid, "{kind} {name}");
        }
    }

    #[test]
    fn labels_are_validated_as_by_the_api_server() {
        let long = "a".repeat(64);
        for (key, valid) in [
            ("app", true),
            ("app.kubernetes.io/name", true),
            ("App_1.x-y", true),
            ("app@b", false),
            ("a/b/c", false),
            ("/name", false),
            ("example.com/", false),
            ("Example.com/name", false),
            ("", false),
            (&long, false),
            (&format!("{long}.io/name"), true),
        ] {
            assert_eq!(label_key_error(key).is_none(), valid, "{key}");
        }
        for (value, valid) in
            [("", true), ("web", true), ("a b", false), ("-web", false), ("v1.2_3", true), (&long, false)]
        {
            assert_eq!(label_value_error(value).is_none(), valid, "{value}");
        }
    }
}
