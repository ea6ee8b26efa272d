//! Answers [`SourceQuery`]s: gets the current versions of objects from the API server, waits until the watch has
//! delivered these versions, and returns the number (generation) of a batch that includes them. A *version* is a
//! `resourceVersion`.

use std::collections::HashMap;
use std::sync::Arc;

use kube::client::Body;
use netpol_policy::model::ObjectKey;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::sync::{mpsc, oneshot};

use super::access::Access;
use super::failure::Failure;
use super::gather::Gatherer;
use super::resource::Resource;
use super::trim::{key_and_version, version};
use crate::{Generation, SourceQuery, Subject, SubjectState};

/// `Accept` headers that request only metadata.
const METADATA: &str = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";
const METADATA_LIST: &str = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";
/// Number of objects in a page.
const PAGE: u32 = 1000;

/// The API server's response to a query, and the channel for the answer.
pub(super) struct QueryResult {
    answer: oneshot::Sender<Result<SubjectState, String>>,
    result: Result<QueriedVersions, String>,
}

/// What the API server returned.
enum QueriedVersions {
    /// The version of an object; `None` if it does not exist.
    Object(Resource, ObjectKey, Option<u64>),
    /// All objects of each resource, and the version of the list.
    Everything(Vec<(Resource, ListedVersions)>),
}

/// The versions of all objects of a resource, and the version of the list.
#[derive(Default)]
struct ListedVersions {
    versions: HashMap<ObjectKey, u64>,
    list_version: u64,
}

/// A query that waits for the watch.
pub(super) struct PendingQuery {
    /// Objects that the watch has not delivered yet, each with the required version. `None`: the API server has no such
    /// object, so the watch must deliver its deletion.
    missing: Vec<(Resource, ObjectKey, Option<u64>)>,
    /// Whether the queried object exists. For [`Subject::Everything`], the requester ignores this value.
    exists: bool,
    answer: Option<oneshot::Sender<Result<SubjectState, String>>>,
}

#[derive(Deserialize)]
struct ListPage<'p> {
    metadata: ListMeta,
    #[serde(borrow, default)]
    items: Option<Vec<&'p RawValue>>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct ListMeta {
    resource_version: String,
    #[serde(rename = "continue")]
    next: String,
}

/// Starts a task that queries the API server, and sends the response to `results`.
pub(super) fn start(query: SourceQuery, access: Arc<Access>, results: mpsc::Sender<QueryResult>) {
    let SourceQuery { subject, answer } = query;
    tokio::spawn(async move {
        let result = match subject {
            Subject::Object(key) => query_object(&access, key).await,
            Subject::Everything => query_everything(&access).await,
        };
        // If the receiver was dropped, the source has ended. Then `answer` is dropped, which notifies the requester.
        let _ = results.send(QueryResult { answer, result }).await;
    });
}

async fn query_object(access: &Access, key: ObjectKey) -> Result<QueriedVersions, String> {
    let (resource, url) = match &key {
        ObjectKey::Namespace(name) => (Resource::Namespaces, Resource::Namespaces.path_of(None, name)),
        ObjectKey::Node(name) => (Resource::Nodes, Resource::Nodes.path_of(None, name)),
        ObjectKey::Pod(key) => (Resource::Pods, Resource::Pods.path_of(Some(&key.namespace), &key.name)),
        ObjectKey::Policy(key) => {
            (Resource::NetworkPolicies, Resource::NetworkPolicies.path_of(Some(&key.namespace), &key.name))
        }
        ObjectKey::Service(key) => (Resource::Services, Resource::Services.path_of(Some(&key.namespace), &key.name)),
        ObjectKey::Slice(key) => {
            (Resource::EndpointSlices, Resource::EndpointSlices.path_of(Some(&key.namespace), &key.name))
        }
    };
    let version = match get_text(access, &url, METADATA).await {
        Ok(text) => {
            key_and_version(resource, &text).map(|(_, version)| Some(version)).map_err(Failure::InvalidResponse)
        }
        Err(Failure::Status { code: 404, .. }) => Ok(None),
        Err(failure) => Err(failure),
    };
    match version {
        Ok(version) => Ok(QueriedVersions::Object(resource, key, version)),
        Err(failure) => Err(report_failure(access, &failure, "get", resource)),
    }
}

async fn query_everything(access: &Access) -> Result<QueriedVersions, String> {
    let mut all = Vec::new();
    for resource in Resource::ALL {
        let listed = list_versions(access, resource)
            .await
            .map_err(|failure| report_failure(access, &failure, "list", resource))?;
        all.push((resource, listed));
    }
    Ok(QueriedVersions::Everything(all))
}

async fn list_versions(access: &Access, resource: Resource) -> Result<ListedVersions, Failure> {
    let (mut listed, mut next) = (ListedVersions::default(), String::new());
    loop {
        let from = if next.is_empty() { String::new() } else { format!("&continue={next}") };
        let text = get_text(access, &format!("{}?limit={PAGE}{from}", resource.path()), METADATA_LIST).await?;
        let invalid = |error: serde_json::Error| Failure::InvalidResponse(error.to_string());
        let page: ListPage<'_> = serde_json::from_str(&text).map_err(invalid)?;
        for item in page.items.into_iter().flatten() {
            let (key, version) = key_and_version(resource, item.get()).map_err(Failure::InvalidResponse)?;
            listed.versions.insert(key, version);
        }
        listed.list_version = version(&page.metadata.resource_version);
        next = page.metadata.next;
        if next.is_empty() {
            return Ok(listed);
        }
    }
}

async fn get_text(access: &Access, url: &str, accept: &'static str) -> Result<String, Failure> {
    let body: Body = access.get_as(url, accept).await?.into_body();
    let bytes =
        body.collect_bytes().await.map_err(|error| Failure::Connection(netpol_policy::text::error_chain(&error)))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Returns a message about a failure. If the server rejected the token, reads the token again for the next request.
fn report_failure(access: &Access, failure: &Failure, verb: &str, resource: Resource) -> String {
    if matches!(failure, Failure::Status { code: 401, .. }) {
        access.renew();
    }
    failure.report(verb, resource)
}

impl QueryResult {
    /// Returns the query with the objects to wait for. If the result is an error, sends it to the requester
    /// immediately, and returns `None`.
    pub(super) fn into_pending(self, gatherer: &Gatherer) -> Option<PendingQuery> {
        let missing = match self.result {
            Ok(QueriedVersions::Object(resource, key, version)) => vec![(resource, key, version)],
            Ok(QueriedVersions::Everything(all)) => {
                all.into_iter().flat_map(|(resource, listed)| listed.requirements(resource, gatherer)).collect()
            }
            Err(error) => {
                // The requester may have stopped waiting.
                let _ = self.answer.send(Err(error));
                return None;
            }
        };
        Some(PendingQuery { missing, exists: true, answer: Some(self.answer) })
    }
}

impl ListedVersions {
    /// Returns what to wait for: all listed objects, and the deletion of known objects that are not listed. Known
    /// objects that are newer than the list are ignored.
    fn requirements(self, resource: Resource, gatherer: &Gatherer) -> Vec<(Resource, ObjectKey, Option<u64>)> {
        let known = gatherer.up_to_version(resource, self.list_version);
        let gone: Vec<_> = known.filter(|key| !self.versions.contains_key(*key)).cloned().collect();
        let existing = self.versions.into_iter().map(|(key, version)| (resource, key, Some(version)));
        existing.chain(gone.into_iter().map(|key| (resource, key, None))).collect()
    }
}

impl PendingQuery {
    /// Answers the query if the watch has delivered all objects. `generation`: the number of the last batch. Returns
    /// whether the query is done: it was answered, or the requester no longer waits.
    pub(super) fn try_answer(&mut self, gatherer: &Gatherer, generation: Generation) -> bool {
        if self.answer.as_ref().is_none_or(oneshot::Sender::is_closed) {
            return true;
        }
        self.missing.retain(|(resource, key, version)| match gatherer.exists_if_sent(*resource, key, *version) {
            Some(exists) => {
                self.exists = exists;
                false
            }
            None => true,
        });
        if !self.missing.is_empty() {
            return false;
        }
        if let Some(answer) = self.answer.take() {
            let _ = answer.send(Ok(SubjectState { exists: self.exists, generation }));
        }
        true
    }
}
