//! Routes requests by path.

use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use netpol_api::ErrorResponse;
use netpol_policy::text::{self, Safe};
use serde::Serialize;
use tokio::time::timeout;

use super::body::ApiBody;
use super::connections::AnswerTracker;
use super::requests::{LoopRequest, Readiness, Requests};
use super::{flows, pods, v1, wait};
use crate::metrics;

/// The content type of Prometheus' text format.
const EXPOSITION: &str = "text/plain; version=0.0.4; charset=utf-8";
const TEXT: &str = "text/plain; charset=utf-8";
pub(super) const JSON: &str = "application/json";

/// Paths that a listener serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Paths {
    /// Health only.
    Health,
    /// Metrics and health. Anyone who reaches the listener may read them.
    Open,
    /// Everything: metrics, health, and `/v1`. For the administrator of the node only.
    All,
}

pub(super) type HttpResponse = Response<ApiBody>;

/// Answers a request. `limit` is the time limit of the response, except for requests that wait for a condition, and for
/// streams of records. For a POST request, `limit` is only the time limit for reading the body.
pub(super) async fn answer(
    request: Request<Incoming>,
    requests: &Requests,
    paths: Paths,
    answering: &AnswerTracker,
    limit: Duration,
) -> HttpResponse {
    if paths == Paths::All && request.method() == Method::POST && pods::serves(request.uri().path()) {
        return pods::answer(request, requests, limit).await;
    }
    if request.method() != Method::GET && request.method() != Method::HEAD {
        let mut response = response(StatusCode::METHOD_NOT_ALLOWED, TEXT, "only GET and HEAD\n".to_owned());
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    let path = request.uri().path();
    let query = request.uri().query().unwrap_or_default();
    match path {
        "/v1/wait" if paths == Paths::All => return wait(query, requests).await,
        "/v1/flows" if paths == Paths::All => return flows::answer(query, requests, answering),
        _ => {}
    }
    timeout(limit, respond(path, query, requests, paths)).await.unwrap_or_else(|_| {
        let error = "the agent did not respond in time: it is starting or overloaded";
        if path.starts_with("/v1/") {
            refuse(StatusCode::SERVICE_UNAVAILABLE, error.to_owned())
        } else {
            response(StatusCode::SERVICE_UNAVAILABLE, TEXT, format!("{error}\n"))
        }
    })
}

async fn respond(path: &str, query: &str, requests: &Requests, paths: Paths) -> HttpResponse {
    if paths == Paths::All
        && let Some(response) = v1::respond(path, query, requests).await
    {
        return response;
    }
    let response = match path {
        // An agent that waits for the API server is healthy, but not ready.
        "/healthz" if !requests.is_started() => Some(response(StatusCode::OK, TEXT, "starting\n".to_owned())),
        "/readyz" if !requests.is_started() => {
            let waiting = requests.about.state.waiting().unwrap_or_else(|| "waiting for the first objects".to_owned());
            Some(response(StatusCode::SERVICE_UNAVAILABLE, TEXT, format!("{}\n", Safe(waiting))))
        }
        "/metrics" if paths != Paths::Health && !requests.is_started() => Some(response(
            StatusCode::OK,
            EXPOSITION,
            metrics::render_waiting(&requests.about.state) + &metrics::render_gate(&requests.gate),
        )),
        "/metrics" if paths != Paths::Health => {
            // One metrics request at a time: many metrics clients must not fill the main loop's queue of requests.
            // Health requests use this queue, too.
            let _turn = requests.metrics_turn.acquire().await;
            requests
                .send(LoopRequest::Metrics)
                .await
                .map(|text| response(StatusCode::OK, EXPOSITION, text + &metrics::render_gate(&requests.gate)))
        }
        "/healthz" => {
            requests.send(LoopRequest::Ready).await.map(|_| response(StatusCode::OK, TEXT, "ok\n".to_owned()))
        }
        "/readyz" => requests.send(LoopRequest::Ready).await.map(|readiness| match readiness {
            Readiness::Ready => response(StatusCode::OK, TEXT, "ok\n".to_owned()),
            Readiness::Starting => {
                response(StatusCode::SERVICE_UNAVAILABLE, TEXT, "not everything is enforced yet\n".to_owned())
            }
            Readiness::UnknownNode => {
                let text = unknown_node(&requests.about.node);
                response(StatusCode::SERVICE_UNAVAILABLE, TEXT, format!("{}\n", Safe(text)))
            }
        }),
        _ => {
            let paths = match paths {
                Paths::Health => "/healthz, /readyz".to_owned(),
                Paths::Open => "/metrics, /healthz, /readyz".to_owned(),
                Paths::All => v1::all_paths(),
            };
            let error = format!("no such path; available: {paths}");
            if path.starts_with("/v1/") {
                return refuse(StatusCode::NOT_FOUND, error);
            }
            Some(response(StatusCode::NOT_FOUND, TEXT, format!("{error}\n")))
        }
    };
    response
        .unwrap_or_else(|| self::response(StatusCode::SERVICE_UNAVAILABLE, TEXT, "the agent is stopping\n".to_owned()))
}

/// Returns why an agent without a Node object for its node is not ready.
pub fn unknown_node(node: &str) -> String {
    format!("no Node object is named {node}; set --node to the name of this node as in spec.nodeName of its pods")
}

async fn wait(query: &str, requests: &Requests) -> HttpResponse {
    let request = match wait::parse(query) {
        Ok(request) => request,
        Err(error) => return refuse(StatusCode::BAD_REQUEST, error),
    };
    let Ok(_permit) = requests.waiters.try_acquire() else {
        let error = "too many requests are waiting; retry later".to_owned();
        return refuse(StatusCode::SERVICE_UNAVAILABLE, error);
    };
    match wait::wait(&request, requests).await {
        Some(waited) => json(StatusCode::OK, &waited),
        None => v1::stopping(),
    }
}

/// Returns a response with an error.
pub(super) fn refuse(status: StatusCode, error: String) -> HttpResponse {
    json(status, &ErrorResponse { error })
}

pub(super) fn json(status: StatusCode, body: &impl Serialize) -> HttpResponse {
    match serde_json::to_string(body) {
        Ok(body) => response(status, JSON, text::json(&body).into_owned() + "\n"),
        Err(error) => {
            response(StatusCode::INTERNAL_SERVER_ERROR, TEXT, format!("cannot encode the response: {error}\n"))
        }
    }
}

pub(super) fn response(status: StatusCode, content_type: &'static str, text: String) -> HttpResponse {
    let mut response = Response::new(ApiBody::Text(text.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}
