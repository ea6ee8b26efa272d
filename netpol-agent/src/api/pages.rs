//! Which path has which answer.

use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use netpol_api::{Refusal, Status};
use netpol_policy::text::{self, Safe};
use serde::Serialize;
use tokio::time::timeout;

use super::desk::{Desk, Question, Readiness};
use super::wait;
use crate::metrics;

/// Prometheus' text format.
const EXPOSITION: &str = "text/plain; version=0.0.4; charset=utf-8";
const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";

/// Who is served what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pages {
    /// Health alone.
    Health,
    /// Metrics and health.
    Open,
    /// Also what only this node's administrator may ask.
    All,
}

type Page = Response<Full<Bytes>>;

/// Answers a request; all but waiting within `patience`.
pub(super) async fn answer(request: &Request<Incoming>, desk: &Desk, pages: Pages, patience: Duration) -> Page {
    if request.method() != Method::GET && request.method() != Method::HEAD {
        let mut page = page(StatusCode::METHOD_NOT_ALLOWED, TEXT, "only GET and HEAD\n".to_owned());
        page.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return page;
    }
    let path = request.uri().path();
    if pages == Pages::All && path == "/v1/wait" {
        return wait(request.uri().query().unwrap_or_default(), desk).await;
    }
    timeout(patience, short(path, desk, pages)).await.unwrap_or_else(|_| {
        page(StatusCode::SERVICE_UNAVAILABLE, TEXT, "the agent is starting, or very busy\n".to_owned())
    })
}

async fn short(path: &str, desk: &Desk, pages: Pages) -> Page {
    let page = match path {
        // Who waits for a cluster's API server is well, and has nothing to be ready with.
        "/healthz" if !desk.is_open() => Some(page(StatusCode::OK, TEXT, "starting\n".to_owned())),
        "/readyz" if !desk.is_open() => {
            let waiting = desk.about.state.waiting().unwrap_or_else(|| "waiting for the first objects".to_owned());
            Some(page(StatusCode::SERVICE_UNAVAILABLE, TEXT, format!("{}\n", Safe(waiting))))
        }
        "/metrics" if pages != Pages::Health && !desk.is_open() => {
            Some(page(StatusCode::OK, EXPOSITION, metrics::render_waiting(&desk.about.state)))
        }
        "/metrics" if pages != Pages::Health => {
            // One page at a time: many clients of the metrics must not fill the queue that health uses too.
            let _turn = desk.metrics_turn.acquire().await;
            desk.ask(Question::Metrics).await.map(|text| page(StatusCode::OK, EXPOSITION, text))
        }
        "/healthz" => desk.ask(Question::Ready).await.map(|_| page(StatusCode::OK, TEXT, "ok\n".to_owned())),
        "/readyz" => desk.ask(Question::Ready).await.map(|readiness| match readiness {
            Readiness::Ready => page(StatusCode::OK, TEXT, "ok\n".to_owned()),
            Readiness::Starting => {
                page(StatusCode::SERVICE_UNAVAILABLE, TEXT, "not everything is enforced yet\n".to_owned())
            }
            Readiness::UnknownNode => {
                let text = unknown_node(&desk.about.node);
                page(StatusCode::SERVICE_UNAVAILABLE, TEXT, format!("{}\n", Safe(text)))
            }
        }),
        "/v1/status" if pages == Pages::All => desk.ask(Question::Status).await.map(|status| {
            let (node, source) = (desk.about.node.clone(), desk.about.source.clone());
            let mut status = Status { version: env!("CARGO_PKG_VERSION").to_owned(), node, source, ..status };
            status.warnings.extend(desk.warnings.all());
            json(StatusCode::OK, &status)
        }),
        _ => {
            let paths = match pages {
                Pages::Health => "/healthz, /readyz",
                Pages::Open => "/metrics, /healthz, /readyz",
                Pages::All => "/metrics, /healthz, /readyz, /v1/status, /v1/wait",
            };
            Some(page(StatusCode::NOT_FOUND, TEXT, format!("no such page; available: {paths}\n")))
        }
    };
    page.unwrap_or_else(|| self::page(StatusCode::SERVICE_UNAVAILABLE, TEXT, "the agent is stopping\n".to_owned()))
}

/// Why an agent whose node does not exist is not ready.
pub fn unknown_node(node: &str) -> String {
    format!("no Node object is named {node}; set --node to the name of this node as in spec.nodeName of its pods")
}

async fn wait(query: &str, desk: &Desk) -> Page {
    let refuse = |status, error: String| json(status, &Refusal { error });
    let asked = match wait::parse(query) {
        Ok(asked) => asked,
        Err(error) => return refuse(StatusCode::BAD_REQUEST, error),
    };
    let Ok(_place) = desk.waiters.try_acquire() else {
        let error = "too many wait already; ask again when some have their answer".to_owned();
        return refuse(StatusCode::SERVICE_UNAVAILABLE, error);
    };
    match wait::wait(&asked, desk).await {
        Some(waited) => json(StatusCode::OK, &waited),
        None => refuse(StatusCode::SERVICE_UNAVAILABLE, "the agent is stopping".to_owned()),
    }
}

fn json(status: StatusCode, body: &impl Serialize) -> Page {
    match serde_json::to_string(body) {
        Ok(body) => page(status, JSON, text::json(&body).into_owned() + "\n"),
        Err(error) => page(StatusCode::INTERNAL_SERVER_ERROR, TEXT, format!("cannot write the answer: {error}\n")),
    }
}

fn page(status: StatusCode, kind: &'static str, text: String) -> Page {
    let mut page = Response::new(Full::new(Bytes::from(text)));
    *page.status_mut() = status;
    page.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    page
}
