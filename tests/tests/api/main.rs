//! An agent that has its objects from an API server: whatever becomes of the server, no allowed packet is lost and no denied
//! one passes.

mod access;
mod away;
mod churn;
mod faults;

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use netpol_apiserver::Options;
use netpol_tests::agent::as_deployed;
use netpol_tests::load::BackgroundFlows;
use netpol_tests::{AgentOptions, Cluster, ClusterBuilder, Lab, policy};

fn pods() -> ClusterBuilder {
    pods_but_two().pods(&[("shop/client", "app=client"), ("shop/never", "app=never")])
}

/// All but the two whose flows are counted.
fn pods_but_two() -> ClusterBuilder {
    Cluster::builder().namespace("shop", "").namespace("blog", "stage=test").pods(&[
        ("shop/server", "app=server"),
        ("shop/other", "app=other"),
        ("blog/web", "app=web"),
    ])
}

/// `server` takes what comes from `client`, and from these peers.
fn server_from(peers: &str) -> String {
    let rule = format!("{{from: [{{podSelector: {{matchLabels: {{app: client}}}}}}{peers}]}}");
    policy(
        "shop/server",
        &format!("{{podSelector: {{matchLabels: {{app: server}}}}, policyTypes: [Ingress], ingress: [{rule}]}}"),
    )
}

/// The peers of other tests here: by the namespace's labels and by the pod's.
const PROD_AND_FRIENDS: &str =
    ", {namespaceSelector: {matchLabels: {stage: prod}}}, {podSelector: {matchLabels: {friend: \"yes\"}}}";

/// A server that tells little on its own, so that what tests wait for is soon there.
fn options() -> Result<Options> {
    Ok(Options { bookmark_every: Duration::from_secs(2), ..as_deployed()? })
}

fn lab(options: Options, policies: &[String]) -> Result<Lab> {
    lab_of(pods(), options, policies)
}

fn lab_of(cluster: ClusterBuilder, options: Options, policies: &[String]) -> Result<Lab> {
    Lab::start_with(cluster, policies, AgentOptions::default().api_server(options))
}

fn load(lab: &Lab) -> Result<BackgroundFlows> {
    BackgroundFlows::start(&lab.cluster, "shop/client", "shop/never", "shop/server")
}

/// Waits until something is so.
fn until(what: &str, patience: Duration, mut so: impl FnMut() -> Result<bool>) -> Result<()> {
    let start = Instant::now();
    while !so()? {
        ensure!(start.elapsed() < patience, "after {patience:?} it is not so that {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
