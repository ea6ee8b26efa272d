//! Responses to list requests, with the objects at the current or at an earlier resource version.

use std::sync::Arc;

use crate::body::{Body, Disconnected, Writer};
use crate::continue_token::ContinueToken;
use crate::object::{Form, Object};
use crate::resource::Resource;
use crate::route::Target;
use crate::shared::{Shared, State};
use crate::status::Status;

/// A list is sent in parts. A part is sent as soon as it has at least this number of bytes.
const PART_SIZE: usize = 128 * 1024;

/// The resource version to list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ListVersion {
    Current,
    Exact(u64),
}

/// A list to send as JSON.
struct Listing {
    /// The JSON text before the first item.
    head: String,
    objects: Vec<Arc<Object>>,
    form: Form,
}

/// Returns the body of the response to a list request. `cut_in_the_middle` injects a fault: only half of the objects
/// are sent, and then the connection is aborted.
pub(crate) fn list(shared: &Arc<Shared>, target: &Target, form: Form, cut_in_the_middle: bool) -> Result<Body, Status> {
    let listing = listing(&shared.lock(), target, form)?;
    let (writer, body) = Body::parts(shared.clone());
    let shared = shared.clone();
    tokio::spawn(async move { listing.send(&shared, writer, cut_in_the_middle).await });
    Ok(body)
}

fn listing(state: &State, target: &Target, form: Form) -> Result<Listing, Status> {
    let selector = target.selector()?;
    let requested = target.version()?;
    let limit = target.number("limit")?.unwrap_or(0);
    let (list_version, token) = list_version(state, target, requested)?;
    let version = match list_version {
        ListVersion::Current => state.store.version(),
        ListVersion::Exact(version) => version,
    };
    let start = token.as_ref().map_or("", |token| token.start.as_str());
    // An error means that the history no longer contains the version.
    let found = state.store.at(target.resource, version, &target.prefix(), start).map_err(|_| match &token {
        Some(token) => Status::expired_page(&token.inconsistent().encode()),
        None => Status::expired_list(),
    })?;
    let mut objects: Vec<_> = found.into_iter().filter(|object| selector.matches(object)).cloned().collect();
    let mut metadata = format!("{{\"resourceVersion\":\"{version}\"");
    // kube-apiserver responds to resourceVersion=0 from its cache, and then ignores `limit`.
    let limit = if requested == Some(0) { 0 } else { usize::try_from(limit).unwrap_or(0) };
    if limit > 0 && objects.len() > limit {
        let remaining = objects.len() - limit;
        objects.truncate(limit);
        let last = objects.last().map_or("", |object| &object.key);
        metadata.extend([",\"continue\":\"", &ContinueToken::after(version, last).encode(), "\""]);
        if selector.is_everything() {
            metadata.extend([",\"remainingItemCount\":", &remaining.to_string()]);
        }
    }
    metadata.push('}');
    Ok(Listing { head: list_head(target.resource, form, &metadata), objects, form })
}

/// Returns the resource version to list, and the continue token if the request has one. Or returns the error with which
/// kube-apiserver rejects this combination of options. `requested`: the option `resourceVersion`.
fn list_version(
    state: &State,
    target: &Target,
    requested: Option<u64>,
) -> Result<(ListVersion, Option<ContinueToken>), Status> {
    let current = state.store.version();
    let version_match = target.option("resourceVersionMatch");
    if let Some(token) = target.option("continue") {
        if requested.is_some_and(|version| version > 0) {
            let why = "specifying resource version is not allowed when using continue";
            return Err(Status::bad_request(why));
        }
        let token = ContinueToken::parse(token).ok_or_else(|| Status::bad_request("continue key is not valid"))?;
        let list_version = token.version.map_or(ListVersion::Current, ListVersion::Exact);
        return Ok((list_version, Some(token)));
    }
    match (version_match, requested) {
        (Some(_), None) => {
            let why = "resourceVersionMatch is forbidden unless resourceVersion is provided";
            Err(Status::forbidden_option("resourceVersionMatch", why))
        }
        (_, Some(version)) if version > current => Err(Status::too_new(version, current)),
        (Some("Exact"), Some(0)) => {
            let why = "resourceVersionMatch \"Exact\" is forbidden for resourceVersion \"0\"";
            Err(Status::forbidden_option("resourceVersionMatch", why))
        }
        (Some("Exact"), Some(version)) => Ok((ListVersion::Exact(version), None)),
        (None | Some("NotOlderThan"), _) => Ok((ListVersion::Current, None)),
        (Some(other), Some(_)) => {
            Err(Status::forbidden_option("resourceVersionMatch", &format!("{other:?} is not supported")))
        }
    }
}

/// Returns the JSON text before the first item of a list.
fn list_head(resource: Resource, form: Form, metadata: &str) -> String {
    let (kind, api_version) = match form {
        Form::Metadata => ("PartialObjectMetadata", "meta.k8s.io/v1"),
        Form::Item | Form::Whole => (resource.kind(), resource.api_version()),
    };
    format!("{{\"kind\":\"{kind}List\",\"apiVersion\":\"{api_version}\",\"metadata\":{metadata},\"items\":[")
}

impl Listing {
    async fn send(self, shared: &Shared, writer: Writer, cut_in_the_middle: bool) {
        if self.send_to(shared, &writer, cut_in_the_middle).await.is_ok() && cut_in_the_middle {
            writer.abort().await;
        }
    }

    async fn send_to(self, shared: &Shared, writer: &Writer, cut_in_the_middle: bool) -> Result<(), Disconnected> {
        let form = match self.form {
            Form::Metadata => Form::Metadata,
            Form::Item | Form::Whole => Form::Item,
        };
        let mut out = self.head.into_bytes();
        let count = if cut_in_the_middle { self.objects.len() / 2 } else { self.objects.len() };
        for (index, object) in self.objects.iter().take(count).enumerate() {
            if index > 0 {
                out.push(b',');
            }
            object.write(&mut out, object.version, form);
            if out.len() >= PART_SIZE {
                shared.throttle().await;
                writer.write(std::mem::take(&mut out), None).await?;
            }
        }
        if !cut_in_the_middle {
            out.extend_from_slice(b"]}\n");
        }
        writer.write(out, None).await
    }
}
