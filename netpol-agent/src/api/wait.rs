//! `/v1/wait`: waits until conditions hold on this node. There are three kinds of conditions: a policy or pod is
//! enforced; a policy or pod is deleted; all objects are processed and policies are enforced on all pods of the node.

use std::time::{Duration, Instant};

use futures::future::join_all;
use netpol_api::{Condition, ConditionResult, Target, TargetKind, WaitOutcome, WaitResponse, parse_duration};
use netpol_policy::model::{ObjectKey, PodKey, PolicyKey};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::requests::Requests;
use crate::reconcile::{Check, ConditionState};
use netpol_source::{SourceQuery, Subject, SubjectState};

/// Maximum number of conditions in a request.
const MAX_CONDITIONS: usize = 64;
/// Timeout of a request without the parameter `timeout`.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);
/// Minimum timeout of a query to the source (the watch of the API server or of a directory), even if the timeout of the
/// request is shorter. So a request with a shorter timeout can also get the state of its conditions.
const MIN_SOURCE_TIMEOUT: Duration = Duration::from_secs(3);

/// Conditions of a request, and its timeout.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct WaitRequest {
    conditions: Vec<Condition>,
    timeout: Duration,
}

/// Parses the query of a URL, such as `for=policy/shop/web&timeout=30s`.
pub(super) fn parse(query: &str) -> Result<WaitRequest, String> {
    let mut request = WaitRequest { conditions: Vec::new(), timeout: DEFAULT_TIMEOUT };
    for part in query.split('&').filter(|part| !part.is_empty()) {
        match part.split_once('=') {
            Some(("for", text)) => {
                let text = text.replace("%2F", "/").replace("%2f", "/").replace("%3D", "=").replace("%3d", "=");
                request.conditions.push(text.parse().map_err(|error| format!("for: {error}"))?);
            }
            Some(("timeout", text)) => {
                request.timeout = parse_duration(text).map_err(|error| format!("timeout: {error}"))?;
            }
            _ => return Err(format!("`{part}` is not supported; use for=CONDITION and timeout=DURATION")),
        }
    }
    match request.conditions.len() {
        0 => Err("nothing to wait for; add for=policy/NAMESPACE/NAME".to_owned()),
        1..=MAX_CONDITIONS => Ok(request),
        _ => Err(format!("more than {MAX_CONDITIONS} conditions; use several requests")),
    }
}

/// Waits for all conditions of a request at the same time. A condition that held once is not checked again. Returns
/// `None` if the agent is stopping.
pub(super) async fn wait(request: &WaitRequest, requests: &Requests) -> Option<WaitResponse> {
    let started = Instant::now();
    let waiting =
        request.conditions.iter().map(|condition| wait_for(condition, started, started + request.timeout, requests));
    let results: Option<Vec<_>> = join_all(waiting).await.into_iter().collect();
    Some(WaitResponse { node: requests.about.node.clone(), results: results? })
}

/// Waits for one condition, until the time `until`. Returns `None` if the agent is stopping.
async fn wait_for(
    condition: &Condition,
    started: Instant,
    until: Instant,
    requests: &Requests,
) -> Option<ConditionResult> {
    let mut answer = ConditionResult {
        condition: condition.to_string(),
        result: WaitOutcome::Timeout,
        generation: None,
        seconds: 0.0,
        pods: Vec::new(),
        pending: Vec::new(),
        reason: None,
    };
    match query_source(condition, until, requests).await {
        Ok(subject) if !subject.exists && matches!(condition, Condition::Enforced(_)) => {
            answer.generation = Some(subject.generation.0);
            answer.result = WaitOutcome::Absent;
        }
        Ok(subject) => {
            let check = Check { condition: condition.clone(), generation: subject.generation, addresses: None };
            let result = requests.wait_until(&check, until).await?;
            answer.generation = Some(result.applied.0);
            (answer.result, answer.reason) = match result.condition {
                ConditionState::Holds => (WaitOutcome::Met, None),
                ConditionState::Absent => (WaitOutcome::Absent, None),
                ConditionState::NotYet(reason) => (WaitOutcome::Timeout, reason),
                ConditionState::Never(reason) => (WaitOutcome::Never, Some(reason)),
            };
            (answer.pods, answer.pending) = (result.pods, result.pending);
        }
        Err(reason) => {
            answer.result = WaitOutcome::Unknown;
            answer.reason = Some(reason);
        }
    }
    answer.seconds = started.elapsed().as_secs_f64();
    Some(answer)
}

/// Requests the state of the condition's subject (an object, or all objects) from the source.
async fn query_source(condition: &Condition, until: Instant, requests: &Requests) -> Result<SubjectState, String> {
    let subject = match condition {
        Condition::Enforced(target) | Condition::Deleted(target) => Subject::Object(object_key(target)),
        Condition::Sync => Subject::Everything,
    };
    let (answer, receiver) = oneshot::channel();
    let ended = || "the source ended; enforcement continues with the last objects".to_owned();
    let response = async {
        requests.query_source(SourceQuery { subject, answer }).await.map_err(|()| ended())?;
        receiver.await.map_err(|_| ended())?
    };
    let limit = until.saturating_duration_since(Instant::now()).max(MIN_SOURCE_TIMEOUT);
    timeout(limit, response)
        .await
        .unwrap_or_else(|_| Err("the source did not respond in time: it may be disconnected or slow".to_owned()))
}

fn object_key(target: &Target) -> ObjectKey {
    let (namespace, name) = (target.namespace.as_str(), target.name.as_str());
    match target.kind {
        TargetKind::Policy => ObjectKey::Policy(PolicyKey::new(namespace, name)),
        TargetKind::Pod => ObjectKey::Pod(PodKey::new(namespace, name)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_parsed() {
        let request = parse("for=policy/shop/web&timeout=2s&for=delete=pod/shop/a&for=delete%3Dpolicy%2Fshop%2Fb")
            .expect("the query was refused");
        let texts: Vec<_> = request.conditions.iter().map(ToString::to_string).collect();
        assert_eq!(texts, ["policy/shop/web", "delete=pod/shop/a", "delete=policy/shop/b"]);
        assert_eq!(request.timeout, Duration::from_secs(2));
        assert_eq!(parse("for=sync").expect("the query was refused").timeout, DEFAULT_TIMEOUT);
    }

    #[test]
    fn invalid_queries_are_refused_with_a_reason() {
        for (query, words) in [
            ("", "nothing to wait for"),
            ("timeout=1s", "nothing to wait for"),
            ("for=shop", "for: `shop`"),
            ("for=sync&timeout=1", "timeout: `1`"),
            ("for=sync&watch=1", "`watch=1` is not supported"),
            ("for", "`for` is not supported"),
        ] {
            let error = parse(query).expect_err(query);
            assert!(error.contains(words), "{error}");
        }
        assert!(parse(&"for=sync&".repeat(MAX_CONDITIONS + 1)).is_err());
    }
}
