//! What is known of an object as of now: the API server is asked for its version, and the watch must get there.

use std::sync::Arc;

use netpol_policy::model::ObjectKey;
use tokio::sync::{mpsc, oneshot};

use super::access::Access;
use super::failure::Failure;
use super::gather::Gatherer;
use super::resource::Resource;
use super::trim::understand;
use crate::source::{Inquiry, Known, Revision};

/// What the API server says of an object that was asked about.
pub(super) struct Answered {
    inquiry: Inquiry,
    resource: Resource,
    /// Its version; `None`: there is no such object.
    version: Result<Option<u64>, String>,
}

/// An inquiry that waits for the watch.
pub(super) struct Open {
    object: ObjectKey,
    resource: Resource,
    version: Option<u64>,
    answer: Option<oneshot::Sender<Result<Known, String>>>,
}

/// Asks the API server in a task of its own.
pub(super) fn ask(inquiry: Inquiry, access: Arc<Access>, answered: mpsc::Sender<Answered>) {
    let (resource, url) = match &inquiry.object {
        ObjectKey::Namespace(name) => (Resource::Namespaces, Resource::Namespaces.path_of(None, name)),
        ObjectKey::Node(name) => (Resource::Nodes, Resource::Nodes.path_of(None, name)),
        ObjectKey::Pod(key) => (Resource::Pods, Resource::Pods.path_of(Some(&key.namespace), &key.name)),
        ObjectKey::Policy(key) => {
            (Resource::NetworkPolicies, Resource::NetworkPolicies.path_of(Some(&key.namespace), &key.name))
        }
    };
    tokio::spawn(async move {
        let version = match get(&access, resource, &url).await {
            Ok(version) => Ok(version),
            Err(failure) => {
                if matches!(failure, Failure::Status { code: 401, .. }) {
                    access.renew();
                }
                Err(failure.tell("get", resource))
            }
        };
        // Without a receiver the source is gone, and whoever asked learns it by the dropped answer.
        let _ = answered.send(Answered { inquiry, resource, version }).await;
    });
}

async fn get(access: &Access, resource: Resource, url: &str) -> Result<Option<u64>, Failure> {
    match access.get(url).await {
        Ok(response) => {
            let body = response.into_body().collect_bytes().await;
            let body = body.map_err(|error| Failure::Connection(crate::chain::chain(&error)))?;
            let seen = understand(resource, &String::from_utf8_lossy(&body)).map_err(Failure::Garbled)?;
            Ok(Some(seen.version))
        }
        Err(Failure::Status { code: 404, .. }) => Ok(None),
        Err(failure) => Err(failure),
    }
}

impl Answered {
    /// What remains to be waited for.
    pub(super) fn settle(self) -> Option<Open> {
        let Inquiry { object, answer } = self.inquiry;
        match self.version {
            Ok(version) => Some(Open { object, resource: self.resource, version, answer: Some(answer) }),
            Err(error) => {
                // Whoever asked may have gone.
                let _ = answer.send(Err(error));
                None
            }
        }
    }
}

impl Open {
    /// Answers if it can; whether it is done with.
    pub(super) fn answer(&mut self, gatherer: &Gatherer, revision: Revision) -> bool {
        if self.answer.as_ref().is_none_or(oneshot::Sender::is_closed) {
            return true;
        }
        let Some(exists) = gatherer.knows(self.resource, &self.object, self.version) else { return false };
        if let Some(answer) = self.answer.take() {
            let _ = answer.send(Ok(Known { exists, revision }));
        }
        true
    }
}
