//! An agent that reads its objects from an API server. Failures of the server never lose an allowed packet and never
//! let a denied one pass.

mod access;
mod churn;
mod faults;
mod outage;

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use netpol_apiserver::Options;
use netpol_tests::agent::as_deployed;
use netpol_tests::load::BackgroundFlows;
use netpol_tests::{AgentOptions, Cluster, ClusterBuilder, Lab, policy};

fn pods() -> ClusterBuilder {
    pods_without_load().pods(&[("shop/client", "app=client"), ("shop/never", "app=never")])
}

/// Returns all pods except `client` and `never`, which generate the load.
fn pods_without_load() -> ClusterBuilder {
    Cluster::builder().namespace("shop", "").namespace("blog", "stage=test").pods(&[
        ("shop/server", "app=server"),
        ("shop/other", "app=other"),
        ("blog/web", "app=web"),
    ])
}

/// Returns a policy that allows ingress to `server` from `client` and from these peers.
fn allow_to_server(peers: &str) -> String {
    let rule = format!("{{from: [{{podSelector: {{matchLabels: {{app: client}}}}}}{peers}]}}");
    policy(
        "shop/server",
        &format!("{{podSelector: {{matchLabels: {{app: server}}}}, policyTypes: [Ingress], ingress: [{rule}]}}"),
    )
}

/// Additional peers, selected by the labels of the namespace and of the pod.
const PROD_AND_FRIENDS: &str =
    ", {namespaceSelector: {matchLabels: {stage: prod}}}, {podSelector: {matchLabels: {friend: \"yes\"}}}";

/// Options of a server with the deployed role and frequent bookmarks, so that tests do not wait long for them.
fn options() -> Result<Options> {
    Ok(Options { bookmark_every: Duration::from_secs(2), ..as_deployed()? })
}

fn lab(options: Options, policies: &[String]) -> Result<Lab> {
    lab_of(pods(), options, policies)
}

fn lab_of(cluster: ClusterBuilder, options: Options, policies: &[String]) -> Result<Lab> {
    Lab::start_with(cluster, policies, AgentOptions::default().api_server(options))
}

fn start_background_flows(lab: &Lab) -> Result<BackgroundFlows> {
    BackgroundFlows::start(&lab.cluster, "shop/client", "shop/never", "shop/server")
}

/// Waits until a condition holds. `what` describes it in the error.
fn wait_until(what: &str, timeout: Duration, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let start = Instant::now();
    while !holds()? {
        ensure!(start.elapsed() < timeout, "timed out after {timeout:?} waiting until {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
