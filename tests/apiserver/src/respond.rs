//! From a request to its answer.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use hyper::body::Incoming;
use hyper::header::{ACCEPT, AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER};
use hyper::{Request, Response, StatusCode};

use crate::body::Body;
use crate::faults::Kind;
use crate::list::list;
use crate::log;
use crate::object::Form;
use crate::resource::Verb;
use crate::route::{self, Target};
use crate::shared::Shared;
use crate::status::Status;
use crate::watch::watch;
use crate::write::write;

/// What a real server calls those that do not say who they are.
const ANONYMOUS: &str = "system:anonymous";

/// Answers; an error cuts the connection.
pub(crate) async fn respond(shared: Arc<Shared>, request: Request<Incoming>) -> io::Result<Response<Body>> {
    let query = route::query(request.uri().query());
    let target = Target::parse(request.method(), request.uri().path(), &query);
    let known = target.as_ref().and_then(|target| target.as_ref().ok());
    let number = {
        let mut state = shared.lock();
        state.requests.push(log::Request {
            at: Instant::now(),
            path: request.uri().to_string(),
            verb: known.map(|target| target.verb),
            resource: known.map(|target| target.resource),
            namespace: known.map(|target| target.namespace.clone()).unwrap_or_default(),
            name: known.map(|target| target.name.clone()).unwrap_or_default(),
            query,
            status: None,
        });
        state.requests.len() - 1
    };
    shared.pace().await;
    let response = answer(&shared, request, target).await?;
    // The log may have been forgotten meanwhile.
    if let Some(request) = shared.lock().requests.get_mut(number) {
        request.status = Some(response.status().as_u16());
    }
    Ok(response)
}

async fn answer(
    shared: &Arc<Shared>,
    request: Request<Incoming>,
    target: Option<Result<Target, Status>>,
) -> io::Result<Response<Body>> {
    let user = match user(shared, &request) {
        Ok(user) => user,
        Err(status) => return Ok(refuse(&status)),
    };
    let target = match target {
        Some(Ok(target)) => target,
        Some(Err(status)) => return Ok(refuse(&status)),
        None => return Ok(other(request.uri().path())),
    };
    if let Err(status) = permit(shared, &user, &target) {
        return Ok(refuse(&status));
    }
    let met = meet(shared, &target);
    let mut tear = false;
    match met {
        None => {}
        Some(Kind::Delay(time)) => tokio::time::sleep(time).await,
        Some(Kind::Status { code, retry_after }) => return Ok(refuse(&Status::injected(code, retry_after))),
        Some(Kind::Cut) => return Err(io::ErrorKind::ConnectionAborted.into()),
        Some(Kind::CutMiddle) => tear = true,
        Some(Kind::Hang) => {
            let (writer, body) = Body::parts(shared.clone());
            tokio::spawn(async move { writer.gone().await });
            return Ok(ok(body));
        }
        Some(Kind::Empty) => return Ok(ok(Body::whole(Vec::new()))),
        Some(Kind::Garbage) => return Ok(ok(Body::whole(b"<html>upstream \xff\xfe{\"type\":\n".to_vec()))),
    }
    let accept = request.headers().get(ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    let answer = match route::form(accept) {
        Ok(form) => dispatch(shared, request, &target, form, tear).await,
        Err(status) => Err(status),
    };
    Ok(answer.unwrap_or_else(|status| refuse(&status)))
}

async fn dispatch(
    shared: &Arc<Shared>,
    request: Request<Incoming>,
    target: &Target,
    form: Form,
    tear: bool,
) -> Result<Response<Body>, Status> {
    match target.verb {
        Verb::List => list(shared, target, form, tear).map(ok),
        Verb::Watch => watch(shared, target, form, tear).map(ok),
        Verb::Get => {
            let state = shared.lock();
            let object = state.store.get(target.resource, &target.key());
            let object = object.ok_or_else(|| Status::not_found(target.resource, &target.name))?;
            Ok(json(StatusCode::OK, object.bytes(form)))
        }
        Verb::Create | Verb::Update | Verb::Patch | Verb::Delete => {
            let answer = write(shared, target, request).await?;
            // Watches may tell of it before this answer is written, or after, as with a real server.
            Ok(json(answer.code, answer.body))
        }
    }
}

fn user(shared: &Shared, request: &Request<Incoming>) -> Result<String, Status> {
    let Some(header) = request.headers().get(AUTHORIZATION) else { return Ok(ANONYMOUS.to_owned()) };
    let state = shared.lock();
    match header.to_str().ok().and_then(|header| header.strip_prefix("Bearer ")) {
        Some(token) if state.credentials.accepts(token.trim()) => Ok(state.user.clone()),
        Some(_) | None => Err(Status::unauthorized()),
    }
}

fn permit(shared: &Shared, user: &str, target: &Target) -> Result<(), Status> {
    let allowed = user != ANONYMOUS && shared.lock().rules.allows(target.verb, target.resource);
    let refusal = || Status::forbidden(user, target.verb, target.resource, &target.namespace, &target.name);
    if allowed { Ok(()) } else { Err(refusal()) }
}

fn meet(shared: &Shared, target: &Target) -> Option<Kind> {
    let mut state = shared.lock();
    let page = state.pages.entry(target.resource).or_default();
    if target.verb == Verb::List {
        *page = if target.option("continue").is_some() { *page + 1 } else { 1 };
    }
    let page = *page;
    state.faults.meet(target.verb, target.resource, page).map(|effect| effect.0)
}

/// Paths that are no resource's.
fn other(path: &str) -> Response<Body> {
    match path {
        "/healthz" | "/readyz" | "/livez" => plain(StatusCode::OK, "ok"),
        "/version" => {
            let version =
                serde_json::json!({"major": "1", "minor": "36", "gitVersion": "v1.36.2", "platform": "linux/amd64"});
            json(StatusCode::OK, version.to_string().into_bytes())
        }
        _ => plain(StatusCode::NOT_FOUND, "404 page not found\n"),
    }
}

pub(crate) fn refuse(status: &Status) -> Response<Body> {
    let code = StatusCode::from_u16(status.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = json(code, status.body.to_string().into_bytes());
    if let Some(seconds) = status.retry_after {
        response.headers_mut().insert(RETRY_AFTER, seconds.into());
    }
    response
}

fn json(code: StatusCode, mut bytes: Vec<u8>) -> Response<Body> {
    bytes.push(b'\n');
    head(code, "application/json", Body::whole(bytes))
}

fn plain(code: StatusCode, text: &str) -> Response<Body> {
    head(code, "text/plain; charset=utf-8", Body::whole(text.as_bytes().to_vec()))
}

fn ok(body: Body) -> Response<Body> {
    head(StatusCode::OK, "application/json", body)
}

fn head(code: StatusCode, kind: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = code;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, hyper::header::HeaderValue::from_static("no-cache, private"));
    headers.insert("audit-id", hyper::header::HeaderValue::from_static("00000000-0000-4000-8000-000000000000"));
    response
}
