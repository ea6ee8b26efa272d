//! What is known as of now: the API server is asked for the versions of what there is, and the watch must get there.

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
use super::trim::{name, version};
use crate::source::{Inquiry, Known, Revision, Subject};

/// Only names and versions.
const METADATA: &str = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";
const METADATA_LIST: &str = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1";
/// Objects to a page.
const PAGE: u32 = 1000;

/// What the API server says.
pub(super) struct Answered {
    answer: oneshot::Sender<Result<Known, String>>,
    found: Result<Found, String>,
}

/// What there is.
enum Found {
    /// The version of an object; `None`: there is no such object.
    Object(Resource, ObjectKey, Option<u64>),
    /// All objects of each resource, as of a version.
    Everything(Vec<(Resource, Listed)>),
}

#[derive(Default)]
struct Listed {
    versions: HashMap<ObjectKey, u64>,
    version: u64,
}

/// An inquiry that waits for the watch.
pub(super) struct Open {
    /// What is not taken in yet: an object that had a version, or was not there.
    behind: Vec<(Resource, ObjectKey, Option<u64>)>,
    exists: bool,
    answer: Option<oneshot::Sender<Result<Known, String>>>,
}

#[derive(Deserialize)]
struct Page<'p> {
    metadata: PageMeta,
    #[serde(borrow, default)]
    items: Option<Vec<&'p RawValue>>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct PageMeta {
    resource_version: String,
    #[serde(rename = "continue")]
    next: String,
}

/// Asks the API server in a task of its own.
pub(super) fn ask(inquiry: Inquiry, access: Arc<Access>, answered: mpsc::Sender<Answered>) {
    let Inquiry { subject, answer } = inquiry;
    tokio::spawn(async move {
        let found = match subject {
            Subject::Object(key) => object(&access, key).await,
            Subject::Everything => everything(&access).await,
        };
        // Without a receiver the source is gone, and whoever asked learns it by the dropped answer.
        let _ = answered.send(Answered { answer, found }).await;
    });
}

async fn object(access: &Access, key: ObjectKey) -> Result<Found, String> {
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
    let version = match text(access, &url, METADATA).await {
        Ok(text) => name(resource, &text).map(|(_, version)| Some(version)).map_err(Failure::Garbled),
        Err(Failure::Status { code: 404, .. }) => Ok(None),
        Err(failure) => Err(failure),
    };
    match version {
        Ok(version) => Ok(Found::Object(resource, key, version)),
        Err(failure) => Err(told(access, &failure, "get", resource)),
    }
}

async fn everything(access: &Access) -> Result<Found, String> {
    let mut all = Vec::new();
    for resource in Resource::ALL {
        let listed = list(access, resource).await.map_err(|failure| told(access, &failure, "list", resource))?;
        all.push((resource, listed));
    }
    Ok(Found::Everything(all))
}

async fn list(access: &Access, resource: Resource) -> Result<Listed, Failure> {
    let (mut listed, mut next) = (Listed::default(), String::new());
    loop {
        let from = if next.is_empty() { String::new() } else { format!("&continue={next}") };
        let text = text(access, &format!("{}?limit={PAGE}{from}", resource.path()), METADATA_LIST).await?;
        let garbled = |error: serde_json::Error| Failure::Garbled(error.to_string());
        let page: Page<'_> = serde_json::from_str(&text).map_err(garbled)?;
        for item in page.items.into_iter().flatten() {
            let (key, version) = name(resource, item.get()).map_err(Failure::Garbled)?;
            listed.versions.insert(key, version);
        }
        listed.version = version(&page.metadata.resource_version);
        next = page.metadata.next;
        if next.is_empty() {
            return Ok(listed);
        }
    }
}

async fn text(access: &Access, url: &str, form: &'static str) -> Result<String, Failure> {
    let body: Body = access.get_as(url, form).await?.into_body();
    let bytes = body.collect_bytes().await.map_err(|error| Failure::Connection(crate::chain::chain(&error)))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn told(access: &Access, failure: &Failure, verb: &str, resource: Resource) -> String {
    if matches!(failure, Failure::Status { code: 401, .. }) {
        access.renew();
    }
    failure.tell(verb, resource)
}

impl Answered {
    /// What remains to be waited for.
    pub(super) fn settle(self, gatherer: &Gatherer) -> Option<Open> {
        let behind = match self.found {
            Ok(Found::Object(resource, key, version)) => vec![(resource, key, version)],
            Ok(Found::Everything(all)) => {
                all.into_iter().flat_map(|(resource, listed)| listed.all(resource, gatherer)).collect()
            }
            Err(error) => {
                // Whoever asked may have gone.
                let _ = self.answer.send(Err(error));
                return None;
            }
        };
        Some(Open { behind, exists: true, answer: Some(self.answer) })
    }
}

impl Listed {
    /// What must be known: all that was listed, and that what is known and was not listed is gone.
    fn all(self, resource: Resource, gatherer: &Gatherer) -> Vec<(Resource, ObjectKey, Option<u64>)> {
        let known = gatherer.older(resource, self.version);
        let gone: Vec<_> = known.filter(|key| !self.versions.contains_key(*key)).cloned().collect();
        let there = self.versions.into_iter().map(|(key, version)| (resource, key, Some(version)));
        there.chain(gone.into_iter().map(|key| (resource, key, None))).collect()
    }
}

impl Open {
    /// Answers if it can; whether it is done with.
    pub(super) fn answer(&mut self, gatherer: &Gatherer, revision: Revision) -> bool {
        if self.answer.as_ref().is_none_or(oneshot::Sender::is_closed) {
            return true;
        }
        self.behind.retain(|(resource, key, version)| match gatherer.knows(*resource, key, *version) {
            Some(exists) => {
                self.exists = exists;
                false
            }
            None => true,
        });
        if !self.behind.is_empty() {
            return false;
        }
        if let Some(answer) = self.answer.take() {
            let _ = answer.send(Ok(Known { exists: self.exists, revision }));
        }
        true
    }
}
