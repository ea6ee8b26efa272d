//! Responds to the requests to a fake API server.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use hyper::body::Incoming;
use hyper::header::{ACCEPT, AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, DATE, HeaderValue, RETRY_AFTER};
use hyper::{Method, Request, Response, StatusCode};

use crate::body::Body;
use crate::exec::{self, ExecRequest};
use crate::faults::EffectKind;
use crate::list::list;
use crate::log;
use crate::object::Form;
use crate::resource::{Resource, Verb};
use crate::route::{self, Target};
use crate::shared::Shared;
use crate::status::Status;
use crate::watch::watch;
use crate::write::write;

/// The user name that a real server gives to requests without credentials.
const ANONYMOUS: &str = "system:anonymous";

/// The path at which a client requests its own user name (`SelfSubjectReview`).
const SELF_REVIEW: &str = "/apis/authentication.k8s.io/v1/selfsubjectreviews";

/// Responds to a request. An error closes the connection.
pub(crate) async fn respond(shared: Arc<Shared>, request: Request<Incoming>) -> io::Result<Response<Body>> {
    let query = route::query(request.uri().query());
    let target = Target::parse(request.method(), request.uri().path(), &query);
    let parsed = target.as_ref().and_then(|target| target.as_ref().ok());
    let log_index = {
        let mut state = shared.lock();
        state.requests.push(log::Request {
            at: Instant::now(),
            path: request.uri().to_string(),
            verb: parsed.map(|target| target.verb),
            resource: parsed.map(|target| target.resource),
            namespace: parsed.map(|target| target.namespace.clone()).unwrap_or_default(),
            name: parsed.map(|target| target.name.clone()).unwrap_or_default(),
            query,
            status: None,
        });
        state.requests.len() - 1
    };
    shared.throttle().await;
    let mut response = handle(&shared, request, target).await?;
    let mut state = shared.lock();
    if let Some(date) = state.date {
        response.headers_mut().insert(DATE, HeaderValue::from_static(date));
    }
    if let Some(request) = state.requests.get_mut(log_index) {
        request.status = Some(response.status().as_u16());
    }
    Ok(response)
}

/// `target`: the resource and verb of the request; `None` if the path is not the path of a resource.
async fn handle(
    shared: &Arc<Shared>,
    request: Request<Incoming>,
    target: Option<Result<Target, Status>>,
) -> io::Result<Response<Body>> {
    let user = match authenticate(shared, &request) {
        Ok(user) => user,
        Err(status) => return Ok(error_response(&status)),
    };
    if let Some(command) = ExecRequest::parse(request.uri()) {
        let allowed = user != ANONYMOUS && shared.lock().rules.allows_exec(&command.namespace);
        if !allowed {
            return Ok(error_response(&Status::forbidden_exec(&user, &command.namespace, &command.pod)));
        }
        return Ok(exec::respond(shared, &command, request).await.unwrap_or_else(|status| error_response(&status)));
    }
    if (request.method(), request.uri().path()) == (&Method::POST, SELF_REVIEW) {
        let is_served = shared.lock().self_reviews;
        if !is_served {
            // The client gets no response.
            std::future::pending::<()>().await;
        }
        return Ok(json(StatusCode::CREATED, self_review(&user)));
    }
    let target = match target {
        Some(Ok(target)) => target,
        Some(Err(status)) => return Ok(error_response(&status)),
        None => return Ok(non_resource(shared, request.uri().path())),
    };
    if let Err(status) = authorize(shared, &user, &target) {
        return Ok(error_response(&status));
    }
    let effect = next_effect(shared, &target);
    let mut cut_in_the_middle = false;
    match effect {
        None => {}
        Some(EffectKind::Delay(time)) => tokio::time::sleep(time).await,
        Some(EffectKind::Status { code, retry_after }) => {
            return Ok(error_response(&Status::injected(code, retry_after)));
        }
        Some(EffectKind::Cut) => return Err(io::ErrorKind::ConnectionAborted.into()),
        Some(EffectKind::CutInTheMiddle) => cut_in_the_middle = true,
        // The response ends only when the client disconnects.
        Some(EffectKind::Hang) => {
            let (writer, body) = Body::parts(shared.clone());
            tokio::spawn(async move { writer.disconnected().await });
            return Ok(ok(body));
        }
        Some(EffectKind::Empty) => return Ok(ok(Body::whole(Vec::new()))),
        Some(EffectKind::Garbage) => return Ok(ok(Body::whole(b"<html>upstream \xff\xfe{\"type\":\n".to_vec()))),
    }
    let accept = request.headers().get(ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    let response = match route::form(accept) {
        Ok(form) => dispatch(shared, request, &target, form, cut_in_the_middle).await,
        Err(status) => Err(status),
    };
    Ok(response.unwrap_or_else(|status| error_response(&status)))
}

async fn dispatch(
    shared: &Arc<Shared>,
    request: Request<Incoming>,
    target: &Target,
    form: Form,
    cut_in_the_middle: bool,
) -> Result<Response<Body>, Status> {
    match target.verb {
        Verb::List => list(shared, target, form, cut_in_the_middle).map(ok),
        Verb::Watch => watch(shared, target, form, cut_in_the_middle).map(ok),
        Verb::Get => {
            let state = shared.lock();
            let object = state.store.get(target.resource, &target.key());
            let object = object.ok_or_else(|| Status::not_found(target.resource, &target.name))?;
            Ok(json(StatusCode::OK, object.bytes(form)))
        }
        Verb::Create | Verb::Update | Verb::Patch | Verb::Delete => {
            let response = write(shared, target, request).await?;
            // Watches may send the event before or after this response, as with a real server.
            Ok(json(response.code, response.body))
        }
    }
}

/// Returns the name of the user that sent a request.
fn authenticate(shared: &Shared, request: &Request<Incoming>) -> Result<String, Status> {
    let Some(header) = request.headers().get(AUTHORIZATION) else { return Ok(ANONYMOUS.to_owned()) };
    let state = shared.lock();
    match header.to_str().ok().and_then(|header| header.strip_prefix("Bearer ")) {
        Some(token) if state.credentials.accepts(token.trim()) => Ok(state.user.clone()),
        Some(_) | None => Err(Status::unauthorized()),
    }
}

fn authorize(shared: &Shared, user: &str, target: &Target) -> Result<(), Status> {
    // As in RBAC, a Role allows access to the Namespace object of the role's own namespace.
    let namespace = if target.resource == Resource::Namespaces { &target.name } else { &target.namespace };
    let allowed = user != ANONYMOUS && shared.lock().rules.allows_in(target.verb, target.resource, namespace);
    let denied = || Status::forbidden(user, target.verb, target.resource, &target.namespace, &target.name);
    if allowed { Ok(()) } else { Err(denied()) }
}

/// Returns the effect of the injected fault that applies to a request, and subtracts one from the fault's remaining
/// requests. If the request is a list, also updates the page number, because a fault can apply to one page only.
fn next_effect(shared: &Shared, target: &Target) -> Option<EffectKind> {
    let mut state = shared.lock();
    let page = state.pages.entry(target.resource).or_default();
    if target.verb == Verb::List {
        *page = if target.option("continue").is_some() { *page + 1 } else { 1 };
    }
    let page = *page;
    state.faults.next_effect(target.verb, target.resource, page).map(|effect| effect.0)
}

/// Returns the `SelfSubjectReview` for a user.
fn self_review(user: &str) -> Vec<u8> {
    let review = serde_json::json!({
        "kind": "SelfSubjectReview", "apiVersion": "authentication.k8s.io/v1", "metadata": {},
        "status": {"userInfo": {"username": user}},
    });
    review.to_string().into_bytes()
}

/// Responds to a path that is not the path of a resource.
fn non_resource(shared: &Shared, path: &str) -> Response<Body> {
    match path {
        "/apis" => json(StatusCode::OK, groups(shared).to_string().into_bytes()),
        "/healthz" | "/readyz" | "/livez" => plain(StatusCode::OK, "ok"),
        "/version" => {
            let version =
                serde_json::json!({"major": "1", "minor": "36", "gitVersion": "v1.36.2", "platform": "linux/amd64"});
            json(StatusCode::OK, version.to_string().into_bytes())
        }
        _ => plain(StatusCode::NOT_FOUND, "404 page not found\n"),
    }
}

/// Returns the API groups. A group of custom resources exists only if it has an object.
fn groups(shared: &Shared) -> serde_json::Value {
    let state = shared.lock();
    let mut api_versions: Vec<&str> = Vec::new();
    for resource in Resource::ALL {
        let is_custom = resource == Resource::CiliumNetworkPolicies;
        let exists =
            !is_custom || !state.store.at(resource, state.store.version(), "", "").unwrap_or_default().is_empty();
        if exists && !resource.group().is_empty() && !api_versions.contains(&resource.api_version()) {
            api_versions.push(resource.api_version());
        }
    }
    let group = |api_version: &&str| {
        let (name, version) = api_version.split_once('/').unwrap_or((api_version, ""));
        let version = serde_json::json!({"groupVersion": api_version, "version": version});
        serde_json::json!({"name": name, "versions": [version], "preferredVersion": version})
    };
    let groups: Vec<_> = api_versions.iter().map(group).collect();
    serde_json::json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

pub(crate) fn error_response(status: &Status) -> Response<Body> {
    let code = StatusCode::from_u16(status.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = json(code, status.body.to_string().into_bytes());
    if let Some(seconds) = status.retry_after {
        response.headers_mut().insert(RETRY_AFTER, seconds.into());
    }
    response
}

fn json(code: StatusCode, mut bytes: Vec<u8>) -> Response<Body> {
    bytes.push(b'\n');
    new_response(code, "application/json", Body::whole(bytes))
}

fn plain(code: StatusCode, text: &str) -> Response<Body> {
    new_response(code, "text/plain; charset=utf-8", Body::whole(text.as_bytes().to_vec()))
}

fn ok(body: Body) -> Response<Body> {
    new_response(StatusCode::OK, "application/json", body)
}

fn new_response(code: StatusCode, kind: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = code;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    headers.insert("audit-id", HeaderValue::from_static("00000000-0000-4000-8000-000000000000"));
    response
}
