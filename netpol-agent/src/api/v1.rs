//! The resources below `/v1`, as JSON.

use hyper::StatusCode;
use netpol_api::{List, Status};

use super::requests::{LoopRequest, Requests};
use super::resources::{ExplainQuery, PolicyQuery, ShadowQuery, no_parameters};
use super::routes::{HttpResponse, JSON, json, refuse, response};

/// The description of the API.
const OPENAPI: &str = include_str!("../../../docs/api/openapi.json");

/// All paths of the Unix socket with their method, for messages and for the description of the API.
pub const PATHS: [(&str, &str); 17] = [
    ("GET", "/v1/status"),
    ("GET", "/v1/flows"),
    ("GET", "/v1/endpoints"),
    ("GET", "/v1/policies"),
    ("GET", "/v1/pods"),
    ("GET", "/v1/explain"),
    ("GET", "/v1/shadow"),
    ("GET", "/v1/generations"),
    ("GET", "/v1/conflicts"),
    ("GET", "/v1/maps"),
    ("GET", "/v1/wait"),
    ("POST", "/v1/pods/start"),
    ("POST", "/v1/pods/stop"),
    ("GET", "/metrics"),
    ("GET", "/healthz"),
    ("GET", "/readyz"),
    ("GET", "/openapi.json"),
];

/// Handles a request for a resource; `None` if the path is unknown, or is handled elsewhere (such as `/v1/flows`).
pub(super) async fn respond(path: &str, query: &str, requests: &Requests) -> Option<HttpResponse> {
    Some(match path {
        "/v1/policies" => match PolicyQuery::parse(query) {
            Ok(query) => json_or_stopping(requests.send(|reply| LoopRequest::Policies(query, reply)).await),
            Err(error) => invalid_query(error),
        },
        "/v1/shadow" => match ShadowQuery::parse(query) {
            Ok(query) => json_or_stopping(requests.send(|reply| LoopRequest::Shadow(query, reply)).await),
            Err(error) => invalid_query(error),
        },
        "/v1/explain" => match ExplainQuery::parse(query) {
            Ok(query) => match requests.send(|reply| LoopRequest::Explain(query, reply)).await {
                Some(Err(error)) => refuse(StatusCode::NOT_FOUND, error),
                explained => json_or_stopping(explained.and_then(Result::ok)),
            },
            Err(error) => invalid_query(error),
        },
        "/openapi.json" | "/v1/status" | "/v1/endpoints" | "/v1/conflicts" | "/v1/maps" | "/v1/pods"
        | "/v1/generations" => match no_parameters(query) {
            Ok(()) => respond_without_parameters(path, requests).await,
            Err(error) => invalid_query(error),
        },
        _ => return None,
    })
}

async fn respond_without_parameters(path: &str, requests: &Requests) -> HttpResponse {
    match path {
        "/openapi.json" => return response(StatusCode::OK, JSON, OPENAPI.to_owned()),
        "/v1/pods" => return json_or_stopping(requests.send(LoopRequest::Pods).await),
        "/v1/generations" => return json_or_stopping(requests.send(LoopRequest::Generations).await),
        _ => {}
    }
    let Some(status) = status(requests).await else { return stopping() };
    let (node, generation) = (status.node.clone(), status.generation);
    match path {
        "/v1/endpoints" => json(StatusCode::OK, &List { node, generation, items: status.endpoints }),
        "/v1/conflicts" => json(StatusCode::OK, &List { node, generation, items: status.conflicts }),
        "/v1/maps" => json(StatusCode::OK, &List { node, generation, items: status.maps }),
        _ => json(StatusCode::OK, &status),
    }
}

/// Returns the names of all paths, for an error message.
pub(super) fn all_paths() -> String {
    let names = PATHS.map(|(method, path)| if method == "GET" { path.to_owned() } else { format!("{method} {path}") });
    names.join(", ")
}

/// The response of an agent that is stopping.
pub(super) fn stopping() -> HttpResponse {
    refuse(StatusCode::SERVICE_UNAVAILABLE, "the agent is stopping".to_owned())
}

fn invalid_query(error: String) -> HttpResponse {
    refuse(StatusCode::BAD_REQUEST, error)
}

fn json_or_stopping(answer: Option<impl serde::Serialize>) -> HttpResponse {
    answer.map_or_else(stopping, |answer| json(StatusCode::OK, &answer))
}

/// Returns the status; `None` if the agent is stopping.
async fn status(requests: &Requests) -> Option<Status> {
    let status = requests.send(LoopRequest::Status).await?;
    let (node, source) = (requests.about.node.clone(), requests.about.source.clone());
    let mut status = Status { version: env!("CARGO_PKG_VERSION").to_owned(), node, source, ..status };
    status.warnings.extend(requests.warnings.all());
    status.gate = requests.gate.status();
    Some(status)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;

    #[test]
    fn the_description_has_exactly_the_paths_of_the_server() {
        let description: Value = serde_json::from_str(OPENAPI).expect("openapi.json is not JSON");
        let paths = description["paths"].as_object().expect("no paths");
        let described: BTreeSet<(String, String)> = paths
            .iter()
            .flat_map(|(path, methods)| {
                let methods = methods.as_object().expect("a path without methods");
                methods.keys().map(move |method| (method.to_uppercase(), path.clone()))
            })
            .collect();
        let served = PATHS.map(|(method, path)| (method.to_owned(), path.to_owned()));
        assert_eq!(described, served.into());
    }
}
