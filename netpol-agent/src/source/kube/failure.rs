//! What goes wrong between here and the API server, for people.

use std::time::Duration;

use serde::Deserialize;

use super::resource::Resource;

/// Why a request or a watch ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// The server says no.
    Status {
        /// The HTTP status.
        code: u16,
        /// The server's words.
        message: String,
        /// When it wants to be asked again.
        retry_after: Option<Duration>,
    },
    /// No connection, or one that broke.
    Connection(String),
    /// Nothing came for this long.
    Silent(Duration),
    /// What came was not what was asked for.
    Garbled(String),
}

/// The server's `Status` object.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Status {
    pub(super) code: u16,
    pub(super) message: String,
}

impl Failure {
    /// A failure from a status and its body, which a proxy may have written.
    pub(super) fn status(code: u16, body: &str, retry_after: Option<Duration>) -> Self {
        let status = serde_json::from_str::<Status>(body).unwrap_or_default();
        let message = if status.message.is_empty() { body.trim().chars().take(200).collect() } else { status.message };
        Self::Status { code, message, retry_after }
    }

    /// Whether versions are asked for that the server no longer has.
    pub(super) fn is_gone(&self) -> bool {
        matches!(self, Self::Status { code: 410, .. })
    }

    /// The metric's label.
    pub(super) fn reason(&self) -> String {
        match self {
            Self::Status { code, .. } => code.to_string(),
            Self::Connection(_) => "connection".to_owned(),
            Self::Silent(_) => "silent".to_owned(),
            Self::Garbled(_) => "garbled".to_owned(),
        }
    }

    /// When the server wants to be asked again.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Status { retry_after, .. } => *retry_after,
            Self::Connection(_) | Self::Silent(_) | Self::Garbled(_) => None,
        }
    }

    /// What was being done, to what, and what to do.
    pub(super) fn tell(&self, verb: &str, resource: Resource) -> String {
        let what = format!("cannot {verb} {resource}");
        match self {
            Self::Status { code: 401, message, .. } => format!(
                "{what}: the API server does not know who asks (401 {message}); the token is read again. If it stays so, \
                 look at the service account or the kubeconfig"
            ),
            Self::Status { code: 403, message, .. } => format!(
                "{what} in API group \"{}\": {message}. Add to the agent's ClusterRole:\n{}",
                resource.group(),
                resource.rule()
            ),
            Self::Status { code: 429, .. } => {
                format!("{what}: the API server has too much to do (429); it is asked less often")
            }
            Self::Status { code, message, .. } => {
                format!("{what}: the API server answers {code} {message}; it is tried again")
            }
            Self::Connection(error) => format!("{what}: {error}; is the API server up, and reachable from this node?"),
            Self::Silent(time) => {
                format!("{what}: nothing came for {time:?}; it is tried again on a new connection")
            }
            Self::Garbled(error) => format!("{what}: the answer is not the API server's: {error}; is there a proxy?"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_403_names_verb_resource_group_and_the_missing_rule() {
        let body = include_str!("../../../tests/fixtures/kube/err-403-list.body");
        let text = Failure::status(403, body, None).tell("list", Resource::NetworkPolicies);
        for part in [
            "cannot list networkpolicies in API group \"networking.k8s.io\"",
            "system:serviceaccount:shop:nobody",
            "- apiGroups: [networking.k8s.io]\n  resources: [networkpolicies]\n  verbs: [get, list, watch]",
        ] {
            assert!(text.contains(part), "{part}\nnot in\n{text}");
        }
        assert!(Failure::status(403, body, None).tell("watch", Resource::Pods).contains("- apiGroups: [\"\"]\n"));
    }

    #[test]
    fn what_a_proxy_says_is_told_too() {
        let failure = Failure::status(503, "<html>no upstream</html>\n", Some(Duration::from_secs(3)));
        assert!(failure.tell("watch", Resource::Pods).contains("503 <html>no upstream</html>"));
        assert_eq!(failure.retry_after(), Some(Duration::from_secs(3)));
    }
}
