//! Handles create, update, patch and delete requests to the fake API server.

use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::header::CONTENT_TYPE;
use hyper::{Request, StatusCode};
use serde_json::{Map, Value, json};

use crate::object::Form;
use crate::resource::Verb;
use crate::route::Target;
use crate::shared::{Shared, State};
use crate::status::Status;

/// The response to a write.
pub(crate) struct WriteResponse {
    pub(crate) code: StatusCode,
    pub(crate) body: Vec<u8>,
}

/// The type of a patch. Both types are applied as a JSON merge patch, so lists are replaced as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PatchType {
    /// A JSON merge patch or a strategic merge patch.
    Merge,
    /// Server-side apply. It creates the object if the object does not exist.
    Apply,
}

pub(crate) async fn write(
    shared: &Shared,
    target: &Target,
    request: Request<Incoming>,
) -> Result<WriteResponse, Status> {
    let content_type =
        request.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
    let body = request.into_body().collect().await;
    let body = body.map_err(|error| Status::bad_request(&format!("cannot read the request body: {error}")))?.to_bytes();
    shared.change(|state| match target.verb {
        Verb::Create => create(state, target, parse_object(&body, false)?),
        Verb::Update => update(state, target, parse_object(&body, false)?),
        Verb::Patch => {
            let patch_type = match content_type.split(';').next().unwrap_or_default() {
                "application/merge-patch+json" | "application/strategic-merge-patch+json" => PatchType::Merge,
                "application/apply-patch+yaml" => PatchType::Apply,
                _ => return Err(Status::unsupported_media_type()),
            };
            patch(state, target, parse_object(&body, patch_type == PatchType::Apply)?, patch_type)
        }
        Verb::Delete => delete(state, target),
        Verb::Get | Verb::List | Verb::Watch => Err(Status::not_allowed()),
    })
}

fn parse_object(body: &[u8], yaml: bool) -> Result<Value, Status> {
    let value: Result<Value, String> = if yaml {
        let text = String::from_utf8_lossy(body);
        serde_saphyr::from_str(&text).map_err(|error| error.to_string())
    } else {
        serde_json::from_slice(body).map_err(|error| error.to_string())
    };
    match value {
        Ok(value) if value.is_object() => Ok(value),
        Ok(_) => Err(Status::bad_request("the object provided is unrecognized")),
        Err(error) => Err(Status::bad_request(&format!("the object provided is unrecognized: {error}"))),
    }
}

fn create(state: &mut State, target: &Target, mut value: Value) -> Result<WriteResponse, Status> {
    let metadata = value.get("metadata").cloned().unwrap_or_default();
    let text = |field: &str| metadata.get(field).and_then(Value::as_str).unwrap_or_default();
    let name = match (text("name"), text("generateName")) {
        ("", "") => {
            let message = format!(
                "{} \"\" is invalid: metadata.name: Required value: name or generateName is required",
                target.resource.kind()
            );
            return Err(Status::bad_request(&message));
        }
        ("", prefix) => format!("{prefix}{:05x}", state.store.version() + 1),
        (name, _) => name.to_owned(),
    };
    set_identity(target, &name, &mut value)?;
    let key = Target { name: name.clone(), ..target.clone() }.key();
    if state.store.get(target.resource, &key).is_some() {
        return Err(Status::already_exists(target.resource, &name));
    }
    store_object(state, target, &key, value, StatusCode::CREATED)
}

fn update(state: &mut State, target: &Target, mut value: Value) -> Result<WriteResponse, Status> {
    let key = target.key();
    let before = state.store.get(target.resource, &key);
    let version = before.ok_or_else(|| Status::not_found(target.resource, &target.name))?.version;
    check_version(target, &value, version)?;
    set_identity(target, &target.name, &mut value)?;
    store_object(state, target, &key, value, StatusCode::OK)
}

fn patch(state: &mut State, target: &Target, patch: Value, patch_type: PatchType) -> Result<WriteResponse, Status> {
    let key = target.key();
    let before = state.store.get(target.resource, &key).map(|object| (object.version, object.value()));
    let (mut value, code) = match (before, patch_type) {
        (Some((version, value)), _) => {
            check_version(target, &patch, version)?;
            (value, StatusCode::OK)
        }
        (None, PatchType::Apply) => (Value::Object(Map::new()), StatusCode::CREATED),
        (None, PatchType::Merge) => return Err(Status::not_found(target.resource, &target.name)),
    };
    merge(&mut value, patch);
    set_identity(target, &target.name, &mut value)?;
    store_object(state, target, &key, value, code)
}

fn delete(state: &mut State, target: &Target) -> Result<WriteResponse, Status> {
    state
        .store
        .delete(target.resource, &target.key())
        .ok_or_else(|| Status::not_found(target.resource, &target.name))?;
    let details = json!({"name": target.name, "group": target.resource.group(), "kind": target.resource.plural()});
    let body = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details});
    Ok(WriteResponse { code: StatusCode::OK, body: body.to_string().into_bytes() })
}

/// Rejects a write with another `resourceVersion` than the object's current `version`.
fn check_version(target: &Target, value: &Value, version: u64) -> Result<(), Status> {
    match value.pointer("/metadata/resourceVersion").and_then(Value::as_str) {
        Some(required) if !required.is_empty() && required != version.to_string() => {
            Err(Status::conflict(target.resource, &target.name))
        }
        Some(_) | None => Ok(()),
    }
}

/// Sets the kind, name and namespace of an object to those of the request. Returns an error if the object already has
/// another name or namespace.
fn set_identity(target: &Target, name: &str, value: &mut Value) -> Result<(), Status> {
    value["kind"] = target.resource.kind().into();
    value["apiVersion"] = target.resource.api_version().into();
    if !value["metadata"].is_object() {
        value["metadata"] = json!({});
    }
    let metadata = &mut value["metadata"];
    for (field, wanted) in [("name", name), ("namespace", target.namespace.as_str())] {
        match metadata.get(field).and_then(Value::as_str) {
            Some(existing) if !existing.is_empty() && existing != wanted => {
                let message =
                    format!("the {field} of the provided object does not match the {field} sent on the request");
                return Err(Status::bad_request(&message));
            }
            Some(_) | None if !wanted.is_empty() => metadata[field] = wanted.into(),
            Some(_) | None => {}
        }
    }
    Ok(())
}

fn store_object(
    state: &mut State,
    target: &Target,
    key: &str,
    value: Value,
    code: StatusCode,
) -> Result<WriteResponse, Status> {
    state.store.apply(value).map_err(|error| Status::bad_request(&error.to_string()))?;
    let object = state.store.get(target.resource, key).ok_or_else(|| Status::not_found(target.resource, key))?;
    Ok(WriteResponse { code, body: object.bytes(Form::Whole) })
}

/// Applies a JSON merge patch: RFC 7386.
fn merge(value: &mut Value, patch: Value) {
    let Value::Object(patch) = patch else {
        *value = patch;
        return;
    };
    if !value.is_object() {
        *value = json!({});
    }
    for (name, patch) in patch {
        if patch.is_null() {
            value.as_object_mut().map(|value| value.remove(&name));
        } else {
            merge(&mut value[name.as_str()], patch);
        }
    }
}
