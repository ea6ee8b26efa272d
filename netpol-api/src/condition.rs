//! Conditions that a client can wait for, and their text form.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// The kind of the object in a condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetKind {
    /// A `NetworkPolicy`.
    Policy,
    /// A pod.
    Pod,
}

/// The object in a condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Its kind.
    pub kind: TargetKind,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// A condition to wait for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// `policy/NAMESPACE/NAME`: the agent's node enforces the current version of the policy. `pod/NAMESPACE/NAME`: the
    /// node enforces the current policies of the pod.
    Enforced(Target),
    /// `delete=policy/NAMESPACE/NAME` or `delete=pod/NAMESPACE/NAME`: the object was deleted, and has no effect on the
    /// agent's node any more.
    Deleted(Target),
    /// `sync`: the agent has processed everything that its source of objects (API server or directory) currently
    /// contains, and enforces policies on every pod of its node.
    Sync,
}

/// Why a text is not a valid condition.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error(
    "`{text}` is not a valid condition: {why}; write policy/NAMESPACE/NAME, pod/NAMESPACE/NAME, delete=policy/NAMESPACE/NAME, delete=pod/NAMESPACE/NAME or sync"
)]
pub struct ConditionError {
    text: String,
    why: &'static str,
}

impl FromStr for Condition {
    type Err = ConditionError;

    fn from_str(text: &str) -> Result<Self, ConditionError> {
        let failed = |why| ConditionError { text: text.to_owned(), why };
        if text == "sync" {
            return Ok(Self::Sync);
        }
        let (deleted, rest) = text.strip_prefix("delete=").map_or((false, text), |rest| (true, rest));
        let parts: Vec<&str> = rest.split('/').collect();
        let &[kind, namespace, name] = &parts[..] else { return Err(failed("it is not KIND/NAMESPACE/NAME")) };
        let kind = match kind {
            "policy" | "netpol" | "networkpolicy" | "networkpolicies" | "networkpolicy.networking.k8s.io" => {
                TargetKind::Policy
            }
            "pod" | "pods" | "po" => TargetKind::Pod,
            _ => return Err(failed("the kind is not supported")),
        };
        // The names become part of a URL without escaping.
        if !is_name(namespace) || !is_name(name) {
            return Err(failed("the namespace or name is not a valid object name"));
        }
        let target = Target { kind, namespace: namespace.to_owned(), name: name.to_owned() };
        Ok(if deleted { Self::Deleted(target) } else { Self::Enforced(target) })
    }
}

/// Returns whether a text has only characters of an RFC 1123 subdomain. Names of namespaces, pods and policies are such
/// subdomains.
pub(crate) fn is_name(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'.';
    (1..=253).contains(&text.len()) && text.bytes().all(allowed)
}

impl fmt::Display for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (before, target) = match self {
            Self::Enforced(target) => ("", target),
            Self::Deleted(target) => ("delete=", target),
            Self::Sync => return f.write_str("sync"),
        };
        let kind = match target.kind {
            TargetKind::Policy => "policy",
            TargetKind::Pod => "pod",
        };
        write!(f, "{before}{kind}/{}/{}", target.namespace, target.name)
    }
}

/// Writes the form for messages, such as `networkpolicy shop/web`.
impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            TargetKind::Policy => "networkpolicy",
            TargetKind::Pod => "pod",
        };
        write!(f, "{kind} {}/{}", self.namespace, self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_are_parsed_from_all_accepted_forms() {
        for (text, canonical) in [
            ("policy/shop/web", "policy/shop/web"),
            ("netpol/shop/web", "policy/shop/web"),
            ("networkpolicy/shop/a.b-c", "policy/shop/a.b-c"),
            ("pod/shop/web-0", "pod/shop/web-0"),
            ("delete=policy/shop/web", "delete=policy/shop/web"),
            ("delete=po/shop/web", "delete=pod/shop/web"),
            ("sync", "sync"),
        ] {
            let condition: Condition = text.parse().expect(text);
            assert_eq!(condition.to_string(), canonical);
            assert_eq!(canonical.parse(), Ok(condition));
        }
    }

    #[test]
    fn an_invalid_condition_is_an_error_with_the_accepted_forms() {
        for text in
            ["", "web", "shop/web", "policy/web", "node/a/b", "policy/a/b/c", "policy//x", "policy/a/B", "pod/a/b&c"]
        {
            let error = text.parse::<Condition>().expect_err(text).to_string();
            assert!(error.contains("write policy/NAMESPACE/NAME"), "{error}");
        }
    }
}
