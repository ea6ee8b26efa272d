//! A cluster whose API server fails on demand, and what the source tells of it.

#![allow(dead_code, reason = "each test binary uses some of it")]

use std::net::TcpListener;
use std::time::{Duration, Instant};

use netpol_agent::source::{Batch, Feed, Inquiry, Known, Subject, kube};
use netpol_apiserver::{ApiServer, Options, Resource};
use netpol_policy::manifest;
use netpol_policy::model::{Object, ObjectKey, PodKey, PolicyKey};
use netpol_policy::world::{Event, World};
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio::time::timeout;

/// More than anything takes, faults included.
pub(crate) const PATIENCE: Duration = Duration::from_secs(40);

/// What the agent watches.
const WATCHED: [Resource; 6] = [
    Resource::Namespaces,
    Resource::Nodes,
    Resource::Pods,
    Resource::NetworkPolicies,
    Resource::Services,
    Resource::EndpointSlices,
];

/// See the module.
pub(crate) struct Cluster {
    pub(crate) server: ApiServer,
    pub(crate) feed: Feed,
    /// What the batches so far make of it.
    pub(crate) world: World,
    pub(crate) batches: Vec<Batch>,
    _credentials: tempfile::TempDir,
}

/// The source's times, short.
pub(crate) fn hasty() -> kube::Options {
    kube::Options {
        spread: Duration::ZERO,
        answer: Duration::from_secs(2),
        idle: Duration::from_secs(3),
        watch: Duration::from_mins(1),
        trust: Duration::from_mins(1),
        patience: Duration::from_secs(1),
        page: 3,
        streaming: true,
    }
}

/// A server with what `fill` puts on it.
pub(crate) fn server(options: Options, fill: impl FnOnce(&ApiServer)) -> ApiServer {
    let server = ApiServer::start(TcpListener::bind("127.0.0.1:0").expect("a port"), options).expect("a server");
    server.apply(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}})).expect("a node");
    server.apply(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}})).expect("a namespace");
    server.apply(service("web", "10.96.0.7")).expect("a Service");
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

/// One of the slices of a Service, with the backends at these addresses.
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
    /// Starts a source; waits for nothing.
    pub(crate) fn watch(server: ApiServer, options: kube::Options) -> Self {
        let credentials = tempfile::tempdir().expect("a directory");
        let kubeconfig = server.write_credentials(credentials.path()).expect("credentials");
        let feed = kube::start(Some(kubeconfig), options).expect("it starts");
        Self { server, feed, world: World::default(), batches: Vec::new(), _credentials: credentials }
    }

    /// Starts a source, and waits for its first batch.
    pub(crate) async fn start(options: Options, fill: impl FnOnce(&ApiServer)) -> Self {
        let mut cluster = Self::watch(server(options, fill), hasty());
        cluster.until_same().await;
        cluster
    }

    /// The next batch, taken in.
    pub(crate) async fn next(&mut self) -> Batch {
        let batch = timeout(PATIENCE, self.feed.batches.recv()).await;
        let batch = batch.unwrap_or_else(|_| panic!("no batch comes: {:?}", self.feed.state.kinds()));
        let batch = batch.expect("the source never ends");
        for event in batch.events.clone() {
            self.world.apply(event);
        }
        self.batches.push(batch.clone());
        batch
    }

    /// No batch within this time.
    pub(crate) async fn quiet(&mut self, time: Duration) {
        if let Ok(batch) = timeout(time, self.feed.batches.recv()).await {
            panic!("something is told: {batch:?}");
        }
    }

    /// What the server has, as a file with the same would be understood.
    pub(crate) fn truth(&self) -> World {
        let objects = WATCHED.into_iter().flat_map(|resource| self.server.all(resource));
        World::of(objects.flat_map(|object| manifest::read(object, "server").objects).map(|located| located.object))
    }

    /// Takes batches in until what is known is what there is.
    pub(crate) async fn until_same(&mut self) {
        let begun = Instant::now();
        while self.batches.is_empty() || self.world != self.truth() {
            assert!(begun.elapsed() < PATIENCE, "not the same: {:?}\n{:?}", self.world, self.truth());
            self.next().await;
        }
    }

    /// What is known of an object as of now, batches taken in up to the one that says so.
    pub(crate) async fn ask(&mut self, object: ObjectKey) -> Result<Known, String> {
        self.ask_about(Subject::Object(object)).await
    }

    /// The same of anything.
    pub(crate) async fn ask_about(&mut self, subject: Subject) -> Result<Known, String> {
        let (answer, mut answered) = oneshot::channel();
        self.feed.inquiries.send(Inquiry { subject, answer }).await.expect("the source never ends");
        loop {
            tokio::select! {
                known = &mut answered => {
                    let known = known.expect("it answers")?;
                    while self.batches.last().is_none_or(|batch| batch.revision < known.revision) {
                        self.next().await;
                    }
                    return Ok(known);
                }
                Some(batch) = self.feed.batches.recv() => {
                    batch.events.iter().cloned().for_each(|event| self.world.apply(event));
                    self.batches.push(batch);
                }
                () = tokio::time::sleep(PATIENCE) => panic!("no answer"),
            }
        }
    }

    /// Requests with this in their path and query.
    pub(crate) fn asked(&self, part: &str) -> usize {
        self.server.requests().iter().filter(|request| request.path.contains(part)).count()
    }

    /// Waits until all watches are open.
    pub(crate) async fn watching(&self) {
        self.eventually("all watches are open", || {
            WATCHED.into_iter().all(|resource| self.server.open_watches(resource) > 0)
        })
        .await;
    }

    pub(crate) async fn eventually(&self, what: &str, holds: impl Fn() -> bool) {
        let begun = Instant::now();
        while !holds() {
            assert!(begun.elapsed() < PATIENCE, "never: {what}; {:?}", self.feed.state.kinds());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Keys that events apply (+) and delete (-), sorted.
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
        Event::OwnAddresses(_) => "own".to_owned(),
    }
}
