//! Requests of the CNI plugin `netpol-cni` when a pod starts or stops. The start gate delays the response for a start
//! until the pod's policies are enforced.

use std::time::Duration;

use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::{Request, StatusCode};
use netpol_api::{PodStart, PodStarted, PodStop, StartOutcome};
use netpol_policy::model::{PodKey, Uid};
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use super::requests::Requests;
use super::routes::{HttpResponse, json, refuse};
use crate::gate::{self, AdmittedPod, Gate};

/// Maximum size of a request's body in bytes.
const MAX_BODY: usize = 64 << 10;
/// Longest time for which one request delays the start of a pod.
const MAX_TIMEOUT: Duration = Duration::from_mins(2);

const START: &str = "/v1/pods/start";
const STOP: &str = "/v1/pods/stop";

/// Returns whether this module serves POST requests for a path.
pub(super) fn serves(path: &str) -> bool {
    matches!(path, START | STOP)
}

/// Handles a POST request for a path that this module serves. `read_limit` is the time limit for reading the body.
pub(super) async fn answer(request: Request<Incoming>, requests: &Requests, read_limit: Duration) -> HttpResponse {
    let gate = Gate::new(requests.clone());
    let response = match request.uri().path() {
        START => async { Ok(start(read_body(request, read_limit).await?, &gate).await) }.await,
        _ => async { Ok(stop(read_body(request, read_limit).await?, &gate).await) }.await,
    };
    response.unwrap_or_else(|error| refuse(StatusCode::BAD_REQUEST, error))
}

async fn stop(stopped: PodStop, gate: &Gate) -> HttpResponse {
    let PodStop { container_id, namespace, name } = stopped;
    gate.stop(PodKey::new(namespace.as_str(), name.as_str()), container_id).await;
    json(StatusCode::OK, &())
}

async fn start(start: PodStart, gate: &Gate) -> HttpResponse {
    let hold_limit = Duration::from_millis(start.timeout_ms).min(MAX_TIMEOUT);
    let start = gate::PodStart {
        key: PodKey::new(start.namespace.as_str(), start.name.as_str()),
        uid: Uid::parse(&start.uid),
        sandbox: start.container_id,
        addresses: start.addresses,
    };
    match gate.hold(start, "cni", hold_limit).await {
        Ok(AdmittedPod { took, exempt }) => {
            // A pod of an exempt namespace (`kube-system`) starts even if its policies are not enforced in time.
            // For such a start, `exempt` is the reason why they are not enforced; otherwise it is `None`.
            let outcome = if exempt.is_none() { StartOutcome::Enforced } else { StartOutcome::Exempt };
            let took_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
            json(StatusCode::OK, &PodStarted { outcome, took_ms, reason: exempt.map(|error| error.to_string()) })
        }
        Err(error) => refuse(StatusCode::SERVICE_UNAVAILABLE, error.to_string()),
    }
}

async fn read_body<T: DeserializeOwned>(request: Request<Incoming>, limit: Duration) -> Result<T, String> {
    let body = timeout(limit, Limited::new(request.into_body(), MAX_BODY).collect()).await;
    let body = body.map_err(|_| "the body did not arrive in time".to_owned())?.map_err(|error| error.to_string())?;
    serde_json::from_slice(&body.to_bytes()).map_err(|error| format!("invalid body: {error}"))
}
