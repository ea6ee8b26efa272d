//! Delays the start of a pod until the agent enforces the pod's policies.

use std::fmt::Display;
use std::thread::sleep;
use std::time::{Duration, Instant};

use netpol_api::{EXEMPT_NAMESPACE, PodStart, PodStarted};

use crate::agent::{RequestError, post};
use crate::{CniError, ErrorCode, Settings, WhenAgentAway};

/// Time for the agent's response, in addition to the time for which the agent waits.
const RESPONSE_TIME: Duration = Duration::from_secs(1);
/// Maximum delay of a pod of the exempt namespace. After this delay, the pod starts without enforcement.
const EXEMPT_TIME: Duration = Duration::from_secs(2);
/// Pause before the second request; it doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(20);
/// Longest pause between two requests. A shorter pause would mean more load on the API server, because the agent may
/// send a request to the API server for each request of the plugin.
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// Minimum time that an agent needs to report why a pod's policies are not enforced.
const TIME_FOR_REASON: Duration = Duration::from_millis(500);

/// Returns as soon as the pod may start. `log` writes a line to the log.
///
/// # Errors
/// If the pod must not start yet. The runtime retries the start.
pub(crate) fn hold(
    settings: &Settings,
    mut start: PodStart,
    log: &mut dyn FnMut(&dyn Display),
) -> Result<(), CniError> {
    let is_exempt = start.namespace == EXEMPT_NAMESPACE;
    let pod = format!("pod {}/{}", start.namespace, start.name);
    let max_delay = if is_exempt { settings.timeout().min(EXEMPT_TIME) } else { settings.timeout() };
    let deadline = Instant::now() + max_delay;
    let mut pause = FIRST_PAUSE;
    let mut last_refusal = None;
    loop {
        let has_time = deadline.saturating_duration_since(Instant::now()) >= TIME_FOR_REASON;
        let error = match request(settings, &mut start, deadline) {
            // `reason` is `None` if the pod's policies are enforced.
            Ok(PodStarted { reason: None, .. }) => return Ok(()),
            Ok(PodStarted { reason: Some(reason), .. }) => {
                log(&format_args!("{pod} starts without enforcement: {reason}"));
                return Ok(());
            }
            // If too little time was left, the agent could not find the actual reason. In this case, the reason of the
            // previous refusal is kept.
            Err(RequestError::Refused(reason)) => {
                let reason = if has_time { reason } else { last_refusal.take().unwrap_or(reason) };
                last_refusal = Some(reason.clone());
                RequestError::Refused(reason)
            }
            Err(error) => error,
        };
        let starts_anyway = match (&error, settings.when_agent_away) {
            _ if is_exempt => true,
            (RequestError::Unavailable(_), WhenAgentAway::Allow) => true,
            (RequestError::Unavailable(_), WhenAgentAway::Deny) => return Err(retry_later(&pod, &error)),
            (RequestError::Unavailable(_), WhenAgentAway::Wait) | (RequestError::Refused(_), _) => false,
        };
        if starts_anyway {
            log(&format_args!("{pod} starts without enforcement: {error}"));
            return Ok(());
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(retry_later(&pod, &error));
        }
        sleep(pause.min(left));
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Sends one request to the agent. The agent responds as soon as the policies are enforced, and at the latest at
/// `deadline`.
fn request(settings: &Settings, start: &mut PodStart, deadline: Instant) -> Result<PodStarted, RequestError> {
    let left = deadline.saturating_duration_since(Instant::now());
    start.timeout_ms = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
    let body = serde_json::to_string(&start).map_err(|error| RequestError::Refused(error.to_string()))?;
    let response = post(&settings.socket, "/v1/pods/start", &body, left + RESPONSE_TIME)?;
    serde_json::from_str(&response)
        .map_err(|error| RequestError::Refused(format!("the agent's response is invalid (another version?): {error}")))
}

fn retry_later(pod: &str, error: &RequestError) -> CniError {
    CniError::new(ErrorCode::TryAgainLater, format!("the policies of {pod} are not enforced: {error}"))
}
