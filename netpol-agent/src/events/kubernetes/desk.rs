//! Talks to the API server, one request after the other.

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
use super::object;
use super::policies::Misunderstood;
use super::sink::Dropped;
use crate::chain::chain;

/// A request that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(10);
/// Uids that are remembered, so that a pod's further Events need no look.
const UIDS: usize = 256;

const EVENTS_RULE: &str = r#"{apiGroups: ["events.k8s.io"], resources: ["events"], verbs: ["create", "patch"]}"#;
const PODS_RULE: &str = r#"{apiGroups: [""], resources: ["pods"], verbs: ["get"]}"#;
const POLICIES_RULE: &str = r#"{apiGroups: ["networking.k8s.io"], resources: ["networkpolicies"], verbs: ["get"]}"#;

/// What became of a publication.
#[derive(Debug)]
pub(super) enum Outcome {
    /// The API server has it.
    Written,
    /// It never will.
    Lost(Dropped, String),
    /// It may, later.
    Later(Setback),
}

/// Why not now.
#[derive(Debug)]
pub(super) struct Setback {
    /// For people.
    pub(super) error: String,
    /// The server asks for so much time.
    pub(super) after: Duration,
    /// The rule that the agent's `ClusterRole` lacks.
    pub(super) missing: Option<&'static str>,
    /// The server does not know us: 401.
    pub(super) unknown: bool,
}

/// Reads who we are and makes a client of it, in the runtime it will be used in.
pub(super) type Credentials = Box<dyn Fn() -> Result<Client, String> + Send>;

/// See the module.
pub(super) struct Desk {
    client: Client,
    credentials: Credentials,
    node: String,
    uids: HashMap<(PodKey, i64), String>,
    /// Rules whose lack was told: Events without a uid are written all the same.
    told: Vec<&'static str>,
}

impl Desk {
    /// # Errors
    /// Where the credentials cannot be read.
    pub(super) fn open(credentials: Credentials, node: String) -> Result<Self, String> {
        Ok(Self { client: credentials()?, credentials, node, uids: HashMap::new(), told: Vec::new() })
    }

    /// Writes one.
    pub(super) async fn publish(&mut self, publication: &Publication) -> Outcome {
        let written = timeout(PATIENCE, async {
            match publication {
                Publication::Denied(series) => self.denied(series).await,
                Publication::Misunderstood(each) => self.misunderstood(each).await,
            }
        });
        match written.await {
            Ok(Ok(())) => Outcome::Written,
            Ok(Err(outcome)) => {
                if matches!(&outcome, Outcome::Later(setback) if setback.unknown) {
                    self.renew();
                }
                outcome
            }
            Err(_) => {
                let error = format!("the API server did not answer within {} s", PATIENCE.as_secs());
                Outcome::Later(Setback { error, after: Duration::ZERO, missing: None, unknown: false })
            }
        }
    }

    /// A token expires, a certificate is replaced.
    fn renew(&mut self) {
        match (self.credentials)() {
            Ok(client) => self.client = client,
            Err(error) => tracing::debug!(error, "cannot read credentials for the API server again"),
        }
    }

    async fn denied(&mut self, series: &Series) -> Result<(), Outcome> {
        let events: Api<Event> = Api::namespaced(self.client.clone(), &series.pod.namespace);
        let update = Patch::Merge(object::update(series));
        let name = object::name_of_series(series);
        if series.update {
            match events.patch(&name, &PatchParams::default(), &update).await {
                // The API server forgets Events after a while.
                Err(Error::Api(status)) if status.is_not_found() => {}
                answer => return answer.map(drop).map_err(|error| failed(&error, EVENTS_RULE)),
            }
        }
        let uid = self.pods_uid(&series.pod, series.created).await?;
        match events.create(&PostParams::default(), &object::of_series(series, uid, &self.node)).await {
            // A request whose answer was lost had come through.
            Err(Error::Api(status)) if status.is_already_exists() && series.count > 1 => {
                let patched = events.patch(&name, &PatchParams::default(), &update).await;
                patched.map(drop).map_err(|error| failed(&error, EVENTS_RULE))
            }
            Err(Error::Api(status)) if status.is_already_exists() => Ok(()),
            answer => answer.map(drop).map_err(|error| failed(&error, EVENTS_RULE)),
        }
    }

    async fn misunderstood(&mut self, each: &Misunderstood) -> Result<(), Outcome> {
        let policies: Api<NetworkPolicy> = Api::namespaced(self.client.clone(), &each.policy.namespace);
        let found = policies.get_metadata(&each.policy.name).await;
        let uid = self.allow_refusal(found.map(|found| found.metadata.uid), POLICIES_RULE)?;
        let events: Api<Event> = Api::namespaced(self.client.clone(), &each.policy.namespace);
        let event = object::of_misunderstood(each, uid, &self.node, SystemTime::now());
        match events.create(&PostParams::default(), &event).await {
            // Another agent has said it, or this one before.
            Err(Error::Api(status)) if status.is_already_exists() => Ok(()),
            answer => answer.map(drop).map_err(|error| failed(&error, EVENTS_RULE)),
        }
    }

    /// `kubectl describe pod` shows the Events that have the pod's uid, which the agent has no other need of.
    async fn pods_uid(&mut self, pod: &PodKey, created: i64) -> Result<Option<String>, Outcome> {
        let subject = (pod.clone(), created);
        if let Some(uid) = self.uids.get(&subject) {
            return Ok(Some(uid.clone()));
        }
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &pod.namespace);
        let found = pods.get_metadata(&pod.name).await.map(|found| found.metadata);
        let Some(found) = self.allow_refusal(found.map(Some), PODS_RULE)? else { return Ok(None) };
        let now = found.creation_timestamp.map_or(0, |time| time.0.as_second());
        if created != 0 && now != created {
            return Err(Outcome::Lost(Dropped::Gone, format!("pod {pod} is another one by now")));
        }
        if let Some(uid) = found.uid.clone().filter(|_| created != 0) {
            if self.uids.len() >= UIDS {
                self.uids.clear();
            }
            self.uids.insert(subject, uid);
        }
        Ok(found.uid)
    }

    /// An Event that `kubectl describe` does not find is better than none.
    fn allow_refusal<T>(&mut self, answer: kube::Result<Option<T>>, rule: &'static str) -> Result<Option<T>, Outcome> {
        match answer {
            Err(Error::Api(status)) if is_refusal(&status) => {
                if !self.told.contains(&rule) {
                    self.told.push(rule);
                    tracing::warn!(
                        error = status.message,
                        "may not look up uids, so that `kubectl describe` does not show Events; the agent's ClusterRole lacks: \
                         - {rule}"
                    );
                }
                Ok(None)
            }
            answer => answer.map_err(|error| failed(&error, rule)),
        }
    }
}

/// Not for want of a rule, where the namespace is being deleted: 403 too, with a cause.
fn is_refusal(status: &Status) -> bool {
    status.is_forbidden() && !is_terminating(status)
}

fn is_terminating(status: &Status) -> bool {
    status.details.iter().flat_map(|details| &details.causes).any(|cause| cause.reason == "NamespaceTerminating")
}

fn failed(error: &Error, rule: &'static str) -> Outcome {
    let later = |after, missing, unknown| Outcome::Later(Setback { error: chain(error), after, missing, unknown });
    let Error::Api(status) = error else { return later(Duration::ZERO, None, false) };
    let asked = status.details.as_ref().map_or(0, |details| details.retry_after_seconds);
    let message = status.message.clone();
    match status.code {
        403 if is_terminating(status) => Outcome::Lost(Dropped::Gone, message),
        // The object's, or its namespace's.
        404 => Outcome::Lost(Dropped::Gone, message),
        400 | 413 | 422 => Outcome::Lost(Dropped::Invalid, message),
        403 => later(Duration::ZERO, Some(rule), false),
        code => later(Duration::from_secs(asked.into()), None, code == 401),
    }
}
