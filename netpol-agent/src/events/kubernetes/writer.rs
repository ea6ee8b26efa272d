//! Writes Events to the API server, one request at a time.
//!
//! A *publication* is one write: the Event of a *series* (denied packets of a pod, with their number), or a *notice*
//! (about a policy or a namespace).

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::api::{Patch, PatchParams, PostParams};
use kube::core::Status;
use kube::{Api, Client, Error};
use netpol_policy::model::PodKey;
use tokio::time::timeout;

use super::aggregate::{Publication, Series};
use super::notice::{Notice, NoticeObject};
use super::object;
use super::sink::DropReason;
use netpol_policy::text::error_chain;

/// The time limit of a request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum number of cached pod UIDs. They are cached so that further Events about a pod need no lookup.
const MAX_CACHED_UIDS: usize = 256;

// Rules of the agent's `ClusterRole`, as YAML.
const EVENTS_RULE: &str = r#"{apiGroups: ["events.k8s.io"], resources: ["events"], verbs: ["create", "patch"]}"#;
const PODS_RULE: &str = r#"{apiGroups: [""], resources: ["pods"], verbs: ["get"]}"#;
const POLICIES_RULE: &str = r#"{apiGroups: ["networking.k8s.io"], resources: ["networkpolicies"], verbs: ["get"]}"#;

/// The result of writing a publication.
#[derive(Debug)]
pub(super) enum WriteResult {
    /// The API server stored the publication.
    Written,
    /// The publication can never be written.
    Discarded(DropReason, String),
    /// The publication was not written; a later attempt may succeed.
    Retry(WriteFailure),
}

/// Why a publication could not be written.
#[derive(Debug)]
pub(super) struct WriteFailure {
    /// The error message for the log.
    pub(super) error: String,
    /// The delay that the server requested; zero if none.
    pub(super) retry_after: Duration,
    /// The rule that the agent's `ClusterRole` lacks, if the server rejected the request for this reason.
    pub(super) missing: Option<&'static str>,
    /// The server rejected the credentials: 401.
    pub(super) unauthorized: bool,
}

/// Reads the credentials and creates a client. Must be called in the tokio runtime that uses the client.
pub(super) type Credentials = Box<dyn Fn() -> Result<Client, String> + Send>;

/// Writes Events.
pub(super) struct Writer {
    client: Client,
    credentials: Credentials,
    node: String,
    /// The UIDs of pods, by name and creation time (seconds since 1970).
    uids: HashMap<(PodKey, i64), String>,
    /// Missing rules of the `ClusterRole` that were already logged. Without these rules, Events are written without a
    /// UID.
    reported: Vec<&'static str>,
}

impl Writer {
    /// Reads the credentials, and creates a writer.
    ///
    /// # Errors
    /// If the credentials cannot be read.
    pub(super) fn open(credentials: Credentials, node: String) -> Result<Self, String> {
        Ok(Self { client: credentials()?, credentials, node, uids: HashMap::new(), reported: Vec::new() })
    }

    /// Writes one publication.
    pub(super) async fn publish(&mut self, publication: &Publication) -> WriteResult {
        let written = timeout(REQUEST_TIMEOUT, async {
            match publication {
                Publication::Denied(series) => self.write_series(series).await,
                Publication::Notice(notice) => self.write_notice(notice).await,
            }
        });
        match written.await {
            Ok(Ok(())) => WriteResult::Written,
            Ok(Err(result)) => {
                if matches!(&result, WriteResult::Retry(failure) if failure.unauthorized) {
                    self.renew_client();
                }
                result
            }
            Err(_) => {
                let error = format!("no response from the API server within {} s", REQUEST_TIMEOUT.as_secs());
                WriteResult::Retry(WriteFailure {
                    error,
                    retry_after: Duration::ZERO,
                    missing: None,
                    unauthorized: false,
                })
            }
        }
    }

    /// Reads the credentials again: a token may have expired, or a certificate may have been replaced.
    fn renew_client(&mut self) {
        match (self.credentials)() {
            Ok(client) => self.client = client,
            Err(error) => tracing::debug!(error, "cannot read credentials for the API server again"),
        }
    }

    async fn write_series(&mut self, series: &Series) -> Result<(), WriteResult> {
        let events: Api<Event> = Api::namespaced(self.client.clone(), &series.pod.namespace);
        let update = Patch::Merge(object::series_patch(series));
        let name = object::name_of_series(series);
        if series.update {
            match events.patch(&name, &PatchParams::default(), &update).await {
                // The API server has deleted the Event, because it was old. The Event is created again below.
                Err(Error::Api(status)) if status.is_not_found() => {}
                response => return response.map(drop).map_err(|error| result_of_error(&error, EVENTS_RULE)),
            }
        }
        let uid = self.pod_uid(&series.pod, series.created).await?;
        match events.create(&PostParams::default(), &object::of_series(series, uid, &self.node)).await {
            // An earlier request has created the Event, but its response was lost. The count is updated, unless it is
            // still 1.
            Err(Error::Api(status)) if status.is_already_exists() && series.count > 1 => {
                let patched = events.patch(&name, &PatchParams::default(), &update).await;
                patched.map(drop).map_err(|error| result_of_error(&error, EVENTS_RULE))
            }
            Err(Error::Api(status)) if status.is_already_exists() => Ok(()),
            response => response.map(drop).map_err(|error| result_of_error(&error, EVENTS_RULE)),
        }
    }

    async fn write_notice(&mut self, notice: &Notice) -> Result<(), WriteResult> {
        let (namespace, uid) = match &notice.object {
            NoticeObject::Policy(key) => {
                let policies: Api<NetworkPolicy> = Api::namespaced(self.client.clone(), &key.namespace);
                let found = policies.get_metadata(&key.name).await;
                let uid = self.ignore_forbidden(found.map(|found| found.metadata.uid), POLICIES_RULE)?;
                (&key.namespace, uid)
            }
            NoticeObject::Namespace(name) => (name, None),
        };
        let events: Api<Event> = Api::namespaced(self.client.clone(), namespace);
        let event = object::of_notice(notice, uid, &self.node, SystemTime::now());
        match events.create(&PostParams::default(), &event).await {
            // Another agent has written this Event, or this agent did so earlier.
            Err(Error::Api(status)) if status.is_already_exists() => Ok(()),
            response => response.map(drop).map_err(|error| result_of_error(&error, EVENTS_RULE)),
        }
    }

    /// Looks up the pod's UID, because `kubectl describe pod` shows only Events with this UID. `created` is the
    /// creation time of the pod in seconds since 1970, or 0 if it is unknown.
    async fn pod_uid(&mut self, pod: &PodKey, created: i64) -> Result<Option<String>, WriteResult> {
        let subject = (pod.clone(), created);
        if let Some(uid) = self.uids.get(&subject) {
            return Ok(Some(uid.clone()));
        }
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &pod.namespace);
        let found = pods.get_metadata(&pod.name).await.map(|found| found.metadata);
        let Some(found) = self.ignore_forbidden(found.map(Some), PODS_RULE)? else { return Ok(None) };
        let current_created = found.creation_timestamp.map_or(0, |time| time.0.as_second());
        if created != 0 && current_created != created {
            return Err(WriteResult::Discarded(
                DropReason::Deleted,
                format!("pod {pod} was replaced by another pod with the same name"),
            ));
        }
        if let Some(uid) = found.uid.clone().filter(|_| created != 0) {
            if self.uids.len() >= MAX_CACHED_UIDS {
                self.uids.clear();
            }
            self.uids.insert(subject, uid);
        }
        Ok(found.uid)
    }

    /// Returns `None` if the lookup of a UID is forbidden. Then the Event is written without the UID: an Event that
    /// `kubectl describe` does not show is better than no Event.
    fn ignore_forbidden<T>(
        &mut self,
        response: kube::Result<Option<T>>,
        rule: &'static str,
    ) -> Result<Option<T>, WriteResult> {
        match response {
            Err(Error::Api(status)) if lacks_permission(&status) => {
                if !self.reported.contains(&rule) {
                    self.reported.push(rule);
                    tracing::warn!(
                        error = status.message,
                        "not permitted to look up UIDs, so `kubectl describe` does not show the Events; add to the agent's \
                         ClusterRole: - {rule}"
                    );
                }
                Ok(None)
            }
            response => response.map_err(|error| result_of_error(&error, rule)),
        }
    }
}

/// Returns whether the agent lacks permission. If the namespace is being deleted, the API server also returns 403, but
/// this is no lack of permission.
fn lacks_permission(status: &Status) -> bool {
    status.is_forbidden() && !is_terminating(status)
}

fn is_terminating(status: &Status) -> bool {
    status.details.iter().flat_map(|details| &details.causes).any(|cause| cause.reason == "NamespaceTerminating")
}

/// Converts the error of a request to the result of the publication. `rule` is the rule of the agent's `ClusterRole`
/// that the request needs.
fn result_of_error(error: &Error, rule: &'static str) -> WriteResult {
    let retry = |retry_after, missing, unauthorized| {
        WriteResult::Retry(WriteFailure { error: error_chain(error), retry_after, missing, unauthorized })
    };
    let Error::Api(status) = error else { return retry(Duration::ZERO, None, false) };
    let requested = status.details.as_ref().map_or(0, |details| details.retry_after_seconds);
    let message = status.message.clone();
    match status.code {
        403 if is_terminating(status) => WriteResult::Discarded(DropReason::Deleted, message),
        // The object or its namespace does not exist.
        404 => WriteResult::Discarded(DropReason::Deleted, message),
        400 | 413 | 422 => WriteResult::Discarded(DropReason::Invalid, message),
        403 => retry(Duration::ZERO, Some(rule), false),
        code => retry(Duration::from_secs(requested.into()), None, code == 401),
    }
}
