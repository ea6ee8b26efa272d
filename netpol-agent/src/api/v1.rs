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

/// Handles a request for a resource; `None` if there is none at this path.
pub(super) async fn respond(path: &str, query: &str, requests: &Requests) -> Option<HttpResponse> {
    let response = match path {
        "/openapi.json" => {
            no_parameters(query).map(|()| response(StatusCode::OK, JSON, OPENAPI.to_owned())).map_err(invalid)
        }
        "/v1/status" => with_status(query, requests, |status| json(StatusCode::OK, &status)).await,
        "/v1/endpoints" => {
            with_status(query, requests, |status| list(&status.node, status.generation, status.endpoints)).await
        }
        "/v1/conflicts" => {
            with_status(query, requests, |status| list(&status.node, status.generation, status.conflicts)).await
        }
        "/v1/maps" => with_status(query, requests, |status| list(&status.node, status.generation, status.maps)).await,
        "/v1/pods" => match no_parameters(query) {
            Ok(()) => answered(requests.send(LoopRequest::Pods).await),
            Err(error) => Err(invalid(error)),
        },
        "/v1/generations" => match no_parameters(query) {
            Ok(()) => answered(requests.send(LoopRequest::Generations).await),
            Err(error) => Err(invalid(error)),
        },
        "/v1/policies" => match PolicyQuery::parse(query) {
            Ok(query) => answered(requests.send(|client| LoopRequest::Policies(query, client)).await),
            Err(error) => Err(invalid(error)),
        },
        "/v1/shadow" => match ShadowQuery::parse(query) {
            Ok(query) => answered(requests.send(|client| LoopRequest::Shadow(query, client)).await),
            Err(error) => Err(invalid(error)),
        },
        "/v1/explain" => match ExplainQuery::parse(query) {
            Ok(query) => match requests.send(|client| LoopRequest::Explain(query, client)).await {
                Some(Err(error)) => Err(refuse(StatusCode::NOT_FOUND, error)),
                Some(Ok(explained)) => Ok(json(StatusCode::OK, &explained)),
                None => Err(stopping()),
            },
            Err(error) => Err(invalid(error)),
        },
        _ => return None,
    };
    Some(response.unwrap_or_else(|error| error))
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

fn invalid(error: String) -> HttpResponse {
    refuse(StatusCode::BAD_REQUEST, error)
}

fn answered(answer: Option<impl serde::Serialize>) -> Result<HttpResponse, HttpResponse> {
    answer.map(|answer| json(StatusCode::OK, &answer)).ok_or_else(stopping)
}

fn list<T: serde::Serialize>(node: &str, generation: u64, items: Vec<T>) -> HttpResponse {
    json(StatusCode::OK, &List { node: node.to_owned(), generation, items })
}

async fn with_status(
    query: &str,
    requests: &Requests,
    respond: impl FnOnce(Status) -> HttpResponse,
) -> Result<HttpResponse, HttpResponse> {
    no_parameters(query).map_err(invalid)?;
    let status = requests.send(LoopRequest::Status).await.ok_or_else(stopping)?;
    let (node, source) = (requests.about.node.clone(), requests.about.source.clone());
    let mut status = Status { version: env!("CARGO_PKG_VERSION").to_owned(), node, source, ..status };
    status.warnings.extend(requests.warnings.all());
    status.gate = requests.gate.status();
    Ok(respond(status))
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
