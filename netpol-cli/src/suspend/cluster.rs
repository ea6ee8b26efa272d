//! The requests of `netpol suspend` and `netpol resume` to the API server, each with a time limit. Errors of type
//! `String` are messages for the user.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;
use http_body_util::BodyExt;
use hyper::{Request, header};
use jiff::Timestamp;
use jiff::fmt::rfc2822::DateTimeParser;
use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::Api;
use kube::api::{GetParams, ListParams, Patch, PatchParams, PostParams};
use kube::client::Body;
use kube::core::{Request as Requests, Resource, Status};
use serde_json::{Value, json};
use tokio::time::timeout;

use super::target::UNTIL;
use crate::args::ApiOptions;
use crate::remote::{AGENT_LABEL, Kube, within};

/// The time limit for reading the name of the user. It is short, because the name is only printed.
const REVIEW_TIME: Duration = Duration::from_secs(2);

/// The end of the message if the user has no right to read or change a Namespace. "it" is the command.
const NEEDED: &str = "; it needs the verbs get and patch on this Namespace";

/// A client of the API server.
pub(super) struct Cluster {
    pub(super) kube: Kube,
    limit: Duration,
}

/// A Namespace before a change.
pub(super) struct Before {
    pub(super) annotations: BTreeMap<String, String>,
    /// The time of the API server; `None` if the response has no time.
    pub(super) time: Option<Timestamp>,
}

impl Cluster {
    pub(super) async fn open(options: &ApiOptions) -> Result<Self> {
        Ok(Self { kube: Kube::open(&options.kube, "").await?, limit: options.request_timeout })
    }

    /// Reads the Namespace to change.
    pub(super) async fn read(&self, namespace: &str) -> Result<Before, String> {
        within(self.limit, NEEDED, get(&self.kube, namespace)).await
    }

    /// Reads the annotations of a Namespace that the command only reads and does not change.
    pub(super) async fn annotations(&self, namespace: &str) -> Result<BTreeMap<String, String>, String> {
        let api: Api<Namespace> = Api::all(self.kube.client.clone());
        let namespace = within(self.limit, "", api.get_metadata(namespace)).await?;
        Ok(namespace.metadata.annotations.unwrap_or_default())
    }

    /// Changes annotations of a Namespace.
    pub(super) async fn patch(&self, namespace: &str, annotations: &Value) -> Result<(), String> {
        let api: Api<Namespace> = Api::all(self.kube.client.clone());
        let patch = Patch::Merge(json!({"metadata": {"annotations": annotations}}));
        let parameters = PatchParams { field_manager: Some("netpol".to_owned()), ..PatchParams::default() };
        within(self.limit, NEEDED, api.patch(namespace, &parameters, &patch)).await.map(drop)
    }

    /// Returns whether a namespace has pods of the agents.
    pub(super) async fn has_agents(&self, namespace: &str) -> Result<bool, String> {
        let api: Api<Pod> = Api::namespaced(self.kube.client.clone(), namespace);
        let parameters = ListParams::default().labels(AGENT_LABEL).limit(1);
        Ok(!within(self.limit, "", api.list_metadata(&parameters)).await?.items.is_empty())
    }

    /// Returns the Namespaces that have a suspension of their own, each with the end of the suspension.
    pub(super) async fn suspended_namespaces(&self) -> Result<Vec<(String, String)>, String> {
        let api: Api<Namespace> = Api::all(self.kube.client.clone());
        let namespaces = within(self.limit, "", api.list_metadata(&ListParams::default())).await?.items.into_iter();
        let suspended = namespaces
            .filter_map(|namespace| Some((namespace.metadata.name?, namespace.metadata.annotations?.remove(UNTIL)?)));
        Ok(suspended.collect())
    }

    /// Returns the user's name, as authenticated by the API server. API servers before Kubernetes 1.28 do not report
    /// it.
    pub(super) async fn user(&self) -> Option<String> {
        let api: Api<SelfSubjectReview> = Api::all(self.kube.client.clone());
        let (parameters, review) = (PostParams::default(), SelfSubjectReview::default());
        let review = timeout(self.limit.min(REVIEW_TIME), api.create(&parameters, &review)).await.ok()?.ok()?;
        review.status?.user_info?.username
    }
}

/// Reads a Namespace, with the time in the header of the response.
async fn get(kube: &Kube, name: &str) -> kube::Result<Before> {
    let requests = Requests::new(Namespace::url_path(&(), None));
    let request: Request<Vec<u8>> = requests.get(name, &GetParams::default()).map_err(kube::Error::BuildRequest)?;
    let response = kube.client.send(request.map(Body::from)).await?;
    let (head, body) = response.into_parts();
    let body = body.collect().await?.to_bytes();
    if !head.status.is_success() {
        let unknown = || Status::failure("", "").with_code(head.status.as_u16());
        return Err(kube::Error::Api(Box::new(serde_json::from_slice(&body).unwrap_or_else(|_| unknown()))));
    }
    let namespace: Namespace = serde_json::from_slice(&body).map_err(kube::Error::SerdeError)?;
    let date = head.headers.get(header::DATE).and_then(|date| date.to_str().ok());
    Ok(Before {
        annotations: namespace.metadata.annotations.unwrap_or_default(),
        time: date.and_then(|date| DateTimeParser::new().parse_timestamp(date).ok()),
    })
}
