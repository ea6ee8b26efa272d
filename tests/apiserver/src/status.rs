//! Error responses of the fake API server, as `Status` objects of the Kubernetes API.

use serde_json::{Map, Value, json};

use crate::resource::{Resource, Verb};

/// An error response.
#[derive(Clone, Debug)]
pub(crate) struct Status {
    pub(crate) code: u16,
    pub(crate) retry_after: Option<u32>,
    pub(crate) body: Value,
}

impl Status {
    fn new(code: u16, reason: &str, message: &str, details: Option<Value>) -> Self {
        let mut body = Map::new();
        body.insert("kind".to_owned(), "Status".into());
        body.insert("apiVersion".to_owned(), "v1".into());
        body.insert("metadata".to_owned(), json!({}));
        body.insert("status".to_owned(), "Failure".into());
        body.insert("message".to_owned(), message.into());
        if !reason.is_empty() {
            body.insert("reason".to_owned(), reason.into());
        }
        if let Some(details) = details {
            body.insert("details".to_owned(), details);
        }
        body.insert("code".to_owned(), code.into());
        Self { code, retry_after: None, body: Value::Object(body) }
    }

    pub(crate) fn unauthorized() -> Self {
        Self::new(401, "Unauthorized", "Unauthorized", None)
    }

    pub(crate) fn forbidden(user: &str, verb: Verb, resource: Resource, namespace: &str, name: &str) -> Self {
        let quoted_name = if name.is_empty() { String::new() } else { format!(" \"{name}\"") };
        let scope = if namespace.is_empty() || !resource.is_namespaced() {
            "at the cluster scope".to_owned()
        } else {
            format!("in the namespace \"{namespace}\"")
        };
        let message = format!(
            "{resource}{quoted_name} is forbidden: User \"{user}\" cannot {} resource \"{}\" in API group \"{}\" {scope}",
            verb.name(),
            resource.plural(),
            resource.group()
        );
        Self::new(403, "Forbidden", &message, Some(details(resource, name)))
    }

    pub(crate) fn forbidden_exec(user: &str, namespace: &str, pod: &str) -> Self {
        let message = format!(
            "pods \"{pod}\" is forbidden: User \"{user}\" cannot create resource \"pods/exec\" in API group \"\" in the \
             namespace \"{namespace}\""
        );
        Self::new(403, "Forbidden", &message, Some(details(Resource::Pods, pod)))
    }

    pub(crate) fn not_found(resource: Resource, name: &str) -> Self {
        Self::new(404, "NotFound", &format!("{resource} \"{name}\" not found"), Some(details(resource, name)))
    }

    pub(crate) fn already_exists(resource: Resource, name: &str) -> Self {
        let message = format!("{resource} \"{name}\" already exists");
        Self::new(409, "AlreadyExists", &message, Some(details(resource, name)))
    }

    pub(crate) fn conflict(resource: Resource, name: &str) -> Self {
        let message = format!(
            "Operation cannot be fulfilled on {resource} \"{name}\": the object has been modified; please apply your changes \
             to the latest version and try again"
        );
        Self::new(409, "Conflict", &message, Some(details(resource, name)))
    }

    pub(crate) fn bad_request(message: &str) -> Self {
        Self::new(400, "BadRequest", message, None)
    }

    pub(crate) fn not_allowed() -> Self {
        let message = "the server does not allow this method on the requested resource";
        Self::new(405, "MethodNotAllowed", message, Some(json!({})))
    }

    pub(crate) fn not_acceptable() -> Self {
        let message = "only the following media types are accepted: application/json";
        Self::new(406, "NotAcceptable", message, None)
    }

    pub(crate) fn unsupported_media_type() -> Self {
        let message = "the body of the request was in an unknown format - accepted media types include: \
                       application/merge-patch+json, application/strategic-merge-patch+json, application/apply-patch+yaml";
        Self::new(415, "UnsupportedMediaType", message, None)
    }

    /// Returns the error for a `resourceVersion` that is not a number.
    pub(crate) fn bad_version(version: &str) -> Self {
        let message = format!(
            "resourceVersion: Invalid value: \"{version}\": strconv.ParseUint: parsing \"{version}\": invalid syntax"
        );
        Self::new(500, "", &message, None)
    }

    /// Returns the error for an invalid query parameter, or an invalid combination of parameters.
    /// `field`: the name of the parameter.
    pub(crate) fn forbidden_option(field: &str, why: &str) -> Self {
        let message = format!("ListOptions.meta.k8s.io \"\" is invalid: {field}: Forbidden: {why}");
        let cause = json!({"reason": "FieldValueForbidden", "message": format!("Forbidden: {why}"), "field": field});
        let details = json!({"group": "meta.k8s.io", "kind": "ListOptions", "causes": [cause]});
        Self::new(422, "Invalid", &message, Some(details))
    }

    /// Returns the error for the next page of a list, if the list's resource version has expired (the server's history
    /// no longer contains this version). With `token`, the client can continue with the current objects.
    pub(crate) fn expired_page(token: &str) -> Self {
        let message = "The provided continue parameter is too old to display a consistent list result. You can start a new list \
                       without the continue parameter, or use the continue token in this response to retrieve the remainder of \
                       the results. Continuing with the provided token results in an inconsistent list - objects that were \
                       created, modified, or deleted between the time the first chunk was returned and now may show up in the \
                       list.";
        let mut status = Self::new(410, "Expired", message, None);
        status.body["metadata"] = json!({"continue": token});
        status
    }

    /// Returns the error for a list at an exact resource version that has expired.
    pub(crate) fn expired_list() -> Self {
        Self::new(410, "Expired", "The resourceVersion for the provided list is too old.", None)
    }

    /// Returns the error for a watch that starts before the oldest resource version in the history.
    pub(crate) fn expired_watch(version: u64, oldest: u64) -> Self {
        Self::new(410, "Expired", &format!("too old resource version: {version} ({oldest})"), None)
    }

    /// Returns the error for a streaming list, if the server's storage does not support streaming lists.
    pub(crate) fn no_streaming_storage() -> Self {
        let message = "a watch stream was requested by the client but the required storage feature RequestWatchProgress is \
                       disabled";
        Self::new(500, "InternalError", message, None)
    }

    /// Returns the error for a request for a resource version that does not exist yet.
    pub(crate) fn too_new(version: u64, current: u64) -> Self {
        let cause = json!({"reason": "ResourceVersionTooLarge", "message": "Too large resource version"});
        let message = format!("Timeout: Too large resource version: {version}, current: {current}");
        let mut status = Self::new(504, "Timeout", &message, Some(json!({"causes": [cause], "retryAfterSeconds": 1})));
        status.retry_after = Some(1);
        status
    }

    /// Returns an error that a test has injected.
    pub(crate) fn injected(code: u16, retry_after: Option<u32>) -> Self {
        let (reason, message) = match code {
            401 => ("Unauthorized", "Unauthorized"),
            403 => ("Forbidden", "forbidden"),
            404 => ("NotFound", "the server could not find the requested resource"),
            410 => ("Expired", "The resourceVersion for the provided list is too old."),
            429 => ("TooManyRequests", "Too many requests, please try again later."),
            500 => ("InternalError", "Internal error occurred: etcdserver: leader changed"),
            503 => ("ServiceUnavailable", "the server is currently unable to handle the request"),
            504 => ("Timeout", "Timeout: request did not complete within the allotted timeout"),
            _ => ("", "an unknown error"),
        };
        let details = retry_after.map(|seconds| json!({"retryAfterSeconds": seconds}));
        let mut status = Self::new(code, reason, message, details);
        status.retry_after = retry_after;
        status
    }
}

fn details(resource: Resource, name: &str) -> Value {
    let mut details = Map::new();
    if !name.is_empty() {
        details.insert("name".to_owned(), name.into());
    }
    if !resource.group().is_empty() {
        details.insert("group".to_owned(), resource.group().into());
    }
    details.insert("kind".to_owned(), resource.plural().into());
    Value::Object(details)
}
