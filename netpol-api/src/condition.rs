//! What can be waited for, as people write it.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// A kind of object that can be named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A `NetworkPolicy`.
    Policy,
    /// A pod.
    Pod,
}

/// An object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// What it is.
    pub kind: Kind,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// What is waited for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// `policy/NAMESPACE/NAME` or `pod/NAMESPACE/NAME`: as the object is now, this node enforces it.
    Enforced(Target),
    /// `delete=…`: the object is gone, and nothing of it is enforced.
    Deleted(Target),
    /// `sync`: everything the source knows now is taken in, and every pod of this node is enforced.
    Sync,
}

/// What is wrong with a condition.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("`{text}` {why}; write policy/NAMESPACE/NAME, pod/NAMESPACE/NAME, delete=policy/NAMESPACE/NAME or sync")]
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
        let &[kind, namespace, name] = &parts[..] else { return Err(failed("is not kind/namespace/name")) };
        let kind = match kind {
            "policy" | "netpol" | "networkpolicy" | "networkpolicies" | "networkpolicy.networking.k8s.io" => {
                Kind::Policy
            }
            "pod" | "pods" | "po" => Kind::Pod,
            _ => return Err(failed("is of a kind that is not waited for")),
        };
        // They go into a request as they are.
        if !is_name(namespace) || !is_name(name) {
            return Err(failed("has a name that no object can have"));
        }
        let target = Target { kind, namespace: namespace.to_owned(), name: name.to_owned() };
        Ok(if deleted { Self::Deleted(target) } else { Self::Enforced(target) })
    }
}

/// The characters of an RFC 1123 subdomain, which names of namespaces, pods and policies are.
fn is_name(text: &str) -> bool {
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
            Kind::Policy => "policy",
            Kind::Pod => "pod",
        };
        write!(f, "{before}{kind}/{}/{}", target.namespace, target.name)
    }
}

/// `networkpolicy shop/web`, as messages name it.
impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            Kind::Policy => "networkpolicy",
            Kind::Pod => "pod",
        };
        write!(f, "{kind} {}/{}", self.namespace, self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_are_read_as_people_write_them() {
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
    fn what_is_no_condition_is_said_with_what_to_write() {
        for text in
            ["", "web", "shop/web", "policy/web", "node/a/b", "policy/a/b/c", "policy//x", "policy/a/B", "pod/a/b&c"]
        {
            let error = text.parse::<Condition>().expect_err(text).to_string();
            assert!(error.contains("write policy/NAMESPACE/NAME"), "{error}");
        }
    }
}
