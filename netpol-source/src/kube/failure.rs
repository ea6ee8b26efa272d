//! Failures of requests to the API server, and their messages.

use std::time::Duration;

use serde::Deserialize;

use super::resource::Resource;

/// Why a request or a watch failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// The server returned an error.
    Status {
        /// The HTTP status.
        code: u16,
        /// The server's message.
        message: String,
        /// The requested delay before the next attempt.
        retry_after: Option<Duration>,
    },
    /// The connection failed, or could not be established.
    Connection(String),
    /// No data was received for this long.
    Timeout(Duration),
    /// The response is not valid.
    InvalidResponse(String),
}

/// The server's `Status` object.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Status {
    pub(super) code: u16,
    pub(super) message: String,
}

impl Failure {
    /// Creates a failure from the HTTP status and the body of a response. A proxy may have sent the response instead of
    /// the API server: then the body is no `Status` object.
    pub(super) fn status(code: u16, body: &str, retry_after: Option<Duration>) -> Self {
        let status = serde_json::from_str::<Status>(body).unwrap_or_default();
        let message = if status.message.is_empty() { body.trim().chars().take(200).collect() } else { status.message };
        Self::Status { code, message, retry_after }
    }

    /// Returns whether the requested `resourceVersion` is no longer available.
    pub(super) fn is_gone(&self) -> bool {
        matches!(self, Self::Status { code: 410, .. })
    }

    /// Returns the value of the metric label `reason`.
    pub(super) fn reason(&self) -> String {
        match self {
            Self::Status { code, .. } => code.to_string(),
            Self::Connection(_) => "connection".to_owned(),
            Self::Timeout(_) => "timeout".to_owned(),
            Self::InvalidResponse(_) => "invalid-response".to_owned(),
        }
    }

    /// Returns the delay that the server requested.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Status { retry_after, .. } => *retry_after,
            Self::Connection(_) | Self::Timeout(_) | Self::InvalidResponse(_) => None,
        }
    }

    /// Returns a message with the failed operation, the resource and the next step.
    pub(super) fn report(&self, verb: &str, resource: Resource) -> String {
        let failed_request = format!("cannot {verb} {resource}");
        match self {
            Self::Status { code: 401, message, .. } => format!(
                "{failed_request}: the API server rejected the credentials (401 {message}); the token is read again. If the error persists, \
                 check the service account or the kubeconfig"
            ),
            Self::Status { code: 403, message, .. } => format!(
                "{failed_request} in API group \"{}\": {message}. Add to the agent's ClusterRole:\n{}",
                resource.group(),
                resource.rule()
            ),
            Self::Status { code: 429, .. } => {
                format!("{failed_request}: the API server is overloaded (429); retrying less often")
            }
            Self::Status { code, message, .. } => {
                format!("{failed_request}: the API server returned {code} {message}; retrying")
            }
            Self::Connection(error) => {
                format!("{failed_request}: {error}; is the API server up, and reachable from this node?")
            }
            Self::Timeout(time) => {
                format!("{failed_request}: no data received for {time:?}; retrying on a new connection")
            }
            Self::InvalidResponse(error) => format!(
                "{failed_request}: the response is not from a Kubernetes API server: {error}; is there a proxy in between?"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_403_message_has_verb_resource_group_and_the_missing_rule() {
        let body = include_str!("../../tests/fixtures/kube/err-403-list.body");
        let text = Failure::status(403, body, None).report("list", Resource::NetworkPolicies);
        for part in [
            "cannot list networkpolicies in API group \"networking.k8s.io\"",
            "system:serviceaccount:shop:nobody",
            "- apiGroups: [networking.k8s.io]\n  resources: [networkpolicies]\n  verbs: [get, list, watch]",
        ] {
            assert!(text.contains(part), "{part}\nnot in\n{text}");
        }
        assert!(Failure::status(403, body, None).report("watch", Resource::Pods).contains("- apiGroups: [\"\"]\n"));
    }

    #[test]
    fn the_message_of_a_proxy_is_included() {
        let failure = Failure::status(503, "<html>no upstream</html>\n", Some(Duration::from_secs(3)));
        assert!(failure.report("watch", Resource::Pods).contains("503 <html>no upstream</html>"));
        assert_eq!(failure.retry_after(), Some(Duration::from_secs(3)));
    }
}
