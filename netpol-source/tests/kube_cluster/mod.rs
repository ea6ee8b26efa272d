//! A fake API server that fails on demand, and the source `kube`, which reads the server's objects.

#![allow(dead_code, reason = "each test binary uses a part of this module")]

use std::net::TcpListener;
use std::time::{Duration, Instant};

use netpol_apiserver::{ApiServer, Options, Resource};
use netpol_policy::cluster_state::{ClusterState, Event};
use netpol_policy::manifest;
use netpol_policy::model::{Labels, Object, ObjectKey, PodKey, PolicyKey};
use netpol_source::{Batch, Feed, SourceQuery, Subject, SubjectState, kube};
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio::time::timeout;

/// Timeout of all waits. The source recovers from each fault of the tests in less time.
pub(crate) const WAIT_TIMEOUT: Duration = Duration::from_secs(40);

/// The resources that the agent watches.
const WATCHED: [Resource; 6] = [
    Resource::Namespaces,
    Resource::Nodes,
    Resource::Pods,
    Resource::NetworkPolicies,
    Resource::Services,
    Resource::EndpointSlices,
];

/// An API server, a source, and the cluster state that results from the source's batches.
pub(crate) struct Cluster {
    pub(crate) server: ApiServer,
    pub(crate) feed: Feed,
    /// The cluster state after the batches received so far.
    pub(crate) state: ClusterState,
    /// All batches received so far.
    pub(crate) batches: Vec<Batch>,
    _credentials: tempfile::TempDir,
}

/// Returns options of the source with short timeouts and small pages.
pub(crate) fn short_times() -> kube::Options {
    kube::Options {
        start_jitter: Duration::ZERO,
        response_timeout: Duration::from_secs(2),
        idle_timeout: Duration::from_secs(3),
        watch_timeout: Duration::from_mins(1),
        max_resume_age: Duration::from_mins(1),
        streaming_list_idle_timeout: Duration::from_secs(1),
        page_size: 3,
        streaming: true,
    }
}

/// Starts a server with a node, a namespace, a Service, and the objects that `fill` adds.
pub(crate) fn server(options: Options, fill: impl FnOnce(&ApiServer)) -> ApiServer {
    let server = ApiServer::start(TcpListener::bind("127.0.0.1:0").expect("cannot bind a port"), options)
        .expect("cannot start the API server");
    server
        .apply(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}}))
        .expect("cannot create the node");
    server
        .apply(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}}))
        .expect("cannot create the namespace");
    server.apply(service("web", "10.96.0.7")).expect("cannot create the Service");
    fill(&server);
    server
}

pub(crate) fn service(name: &str, address: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "shop", "name": name},
        "spec": {
            "type": "ClusterIP", "clusterIP": address, "clusterIPs": [address], "selector": {"app": name},
            "ports": [{"name": "http", "port": 80, "targetPort": 8080}],
        },
    })
}

/// Returns an `EndpointSlice` of a Service with backends at these addresses.
pub(crate) fn slice(name: &str, service: &str, addresses: &[&str]) -> Value {
    let endpoints: Vec<_> = addresses
        .iter()
        .map(|address| json!({"addresses": [address], "conditions": {"ready": true}, "nodeName": "n1"}))
        .collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"namespace": "shop", "name": name, "labels": {"kubernetes.io/service-name": service}},
        "endpoints": endpoints, "ports": [{"name": "http", "port": 8080}],
    })
}

pub(crate) fn pod(name: &str, app: &str, address: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": "shop", "name": name, "labels": {"app": app}},
        "spec": {"nodeName": "n1", "containers": [{"name": "c", "image": "i", "env": [{"name": "A", "value": "b"}]}]},
        "status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]},
    })
}

pub(crate) fn policy(name: &str) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": "shop", "name": name},
        "spec": {"podSelector": {}, "policyTypes": ["Ingress"]},
    })
}

pub(crate) fn pod_key(name: &str) -> ObjectKey {
    ObjectKey::Pod(PodKey::new("shop", name))
}

pub(crate) fn policy_key(name: &str) -> ObjectKey {
    ObjectKey::Policy(PolicyKey::new("shop", name))
}

impl Cluster {
    /// Starts a source that reads the server's objects. Does not wait until the source has them.
    pub(crate) fn watch(server: ApiServer, options: kube::Options) -> Self {
        let credentials = tempfile::tempdir().expect("cannot create a directory");
        let kubeconfig = server.write_credentials(credentials.path()).expect("cannot write the credentials");
        let feed = kube::start(Some(kubeconfig), options).expect("cannot start the source");
        Self { server, feed, state: ClusterState::default(), batches: Vec::new(), _credentials: credentials }
    }

    /// Starts a server (see [`server()`]) and a source. Waits until the source has all objects.
    pub(crate) async fn start(options: Options, fill: impl FnOnce(&ApiServer)) -> Self {
        let mut cluster = Self::watch(server(options, fill), short_times());
        cluster.wait_in_sync().await;
        cluster
    }

    /// Receives the next batch and applies it.
    pub(crate) async fn next_batch(&mut self) -> Batch {
        let batch = timeout(WAIT_TIMEOUT, self.feed.batches.recv()).await;
        let batch = batch.unwrap_or_else(|_| panic!("timed out waiting for a batch: {:?}", self.feed.state.kinds()));
        let batch = batch.expect("the source has ended");
        for event in batch.events.clone() {
            self.state.apply(event);
        }
        self.batches.push(batch.clone());
        batch
    }

    /// Checks that no batch arrives within this time.
    pub(crate) async fn expect_no_batch(&mut self, time: Duration) {
        if let Ok(batch) = timeout(time, self.feed.batches.recv()).await {
            panic!("unexpected batch: {batch:?}");
        }
    }

    /// Returns the cluster state on the server. The parser for manifest files parses the objects. It also sets two
    /// fields of Services that only the evaluation of files uses. These fields are cleared: with an API server,
    /// backends come only from `EndpointSlice` objects (docs/semantics.md, item 37).
    pub(crate) fn server_state(&self) -> ClusterState {
        let objects = WATCHED.into_iter().flat_map(|resource| self.server.all(resource));
        let objects = objects.flat_map(|object| manifest::read(object, "server").objects);
        ClusterState::from_objects(objects.map(|located| match located.object {
            Object::Service(mut service) => {
                service.selector = Labels::default();
                service.requested_families = None;
                Object::Service(service)
            }
            object => object,
        }))
    }

    /// Receives batches until the cluster state equals the state on the server.
    pub(crate) async fn wait_in_sync(&mut self) {
        let started = Instant::now();
        while self.batches.is_empty() || self.state != self.server_state() {
            assert!(
                started.elapsed() < WAIT_TIMEOUT,
                "the source has sent {:?}\nthe server has {:?}",
                self.state,
                self.server_state()
            );
            self.next_batch().await;
        }
    }

    /// Sends a query for the state of an object to the source. Receives all batches up to the generation in the answer.
    pub(crate) async fn query(&mut self, object: ObjectKey) -> Result<SubjectState, String> {
        self.query_subject(Subject::Object(object)).await
    }

    /// Like [`Cluster::query`], but for any subject: an object, or all objects.
    pub(crate) async fn query_subject(&mut self, subject: Subject) -> Result<SubjectState, String> {
        let (answer, mut receiver) = oneshot::channel();
        self.feed.queries.send(SourceQuery { subject, answer }).await.expect("the source has ended");
        loop {
            tokio::select! {
                subject_state = &mut receiver => {
                    let subject_state = subject_state.expect("the source dropped the query")?;
                    while self.batches.last().is_none_or(|batch| batch.generation < subject_state.generation) {
                        self.next_batch().await;
                    }
                    return Ok(subject_state);
                }
                Some(batch) = self.feed.batches.recv() => {
                    batch.events.iter().cloned().for_each(|event| self.state.apply(event));
                    self.batches.push(batch);
                }
                () = tokio::time::sleep(WAIT_TIMEOUT) => panic!("timed out waiting for the result of a query"),
            }
        }
    }

    /// Returns the number of requests with `part` in the path or query.
    pub(crate) fn requests_with(&self, part: &str) -> usize {
        self.server.requests().iter().filter(|request| request.path.contains(part)).count()
    }

    /// Waits until all watches are open.
    pub(crate) async fn wait_watching(&self) {
        self.wait_until("all watches are open", || {
            WATCHED.into_iter().all(|resource| self.server.open_watches(resource) > 0)
        })
        .await;
    }

    /// Waits until a condition holds. `condition` describes it in the panic message.
    pub(crate) async fn wait_until(&self, condition: &str, holds: impl Fn() -> bool) {
        let started = Instant::now();
        while !holds() {
            assert!(
                started.elapsed() < WAIT_TIMEOUT,
                "timed out waiting until {condition}; {:?}",
                self.feed.state.kinds()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Returns a text for each event of a batch, sorted: `+` and the key of an applied object, `-` and the key of a deleted
/// object, or `=` and the number of objects of a reset.
pub(crate) fn keys(batch: &Batch) -> Vec<String> {
    let mut keys: Vec<String> = batch.events.iter().map(text).collect();
    keys.sort();
    keys
}

fn text(event: &Event) -> String {
    match event {
        Event::Apply(object) => format!("+{}", Object::key(object)),
        Event::Delete(key) => format!("-{key}"),
        Event::Reset(objects) => format!("={}", objects.len()),
        Event::LocalAddresses(_) => "local addresses".to_owned(),
        Event::Clock(_) => "clock".to_owned(),
    }
}
