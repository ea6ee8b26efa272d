//! An agent that reads its objects from a (fake) API server. If the server fails, no allowed packet is lost, and no
//! denied packet passes.

mod access;
mod churn;
mod faults;
mod outage;

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use netpol_apiserver::Options;
use netpol_tests::agent::options_with_deployed_role;
use netpol_tests::load::BackgroundFlows;
use netpol_tests::{AgentOptions, Cluster, ClusterBuilder, Lab, policy};

/// Returns all pods of the tests. The tests' policies always allow connections from `client` to `server`, and never
/// allow connections from `never`.
fn pods() -> ClusterBuilder {
    pods_without_load().pods(&[("shop/client", "app=client"), ("shop/never", "app=never")])
}

/// Returns all pods except `client` and `never`, which [`start_background_flows`] uses.
fn pods_without_load() -> ClusterBuilder {
    Cluster::builder().namespace("shop", "").namespace("blog", "stage=test").pods(&[
        ("shop/server", "app=server"),
        ("shop/other", "app=other"),
        ("blog/web", "app=web"),
    ])
}

/// Returns a policy that allows ingress to `server` from `client` and from these additional peers. `peers` is YAML such
/// as [`PROD_AND_FRIENDS`], or empty.
fn allow_to_server(peers: &str) -> String {
    let rule = format!("{{from: [{{podSelector: {{matchLabels: {{app: client}}}}}}{peers}]}}");
    policy(
        "shop/server",
        &format!("{{podSelector: {{matchLabels: {{app: server}}}}, policyTypes: [Ingress], ingress: [{rule}]}}"),
    )
}

/// Additional peers for [`allow_to_server`]: all pods of namespaces with `stage=prod`, and pods with `friend=yes`.
const PROD_AND_FRIENDS: &str =
    ", {namespaceSelector: {matchLabels: {stage: prod}}}, {podSelector: {matchLabels: {friend: \"yes\"}}}";

/// Returns options for the API server: the agent has only the rights of the `ClusterRole` in `deploy/`, and watches get
/// bookmarks often, so that tests do not wait long for them.
fn options() -> Result<Options> {
    Ok(Options { bookmark_every: Duration::from_secs(2), ..options_with_deployed_role()? })
}

/// Starts a lab (a cluster and an agent) with all pods and these policies. `options`: the options of the API server.
fn lab(options: Options, policies: &[String]) -> Result<Lab> {
    lab_of(pods(), options, policies)
}

/// Starts a lab with this cluster.
fn lab_of(cluster: ClusterBuilder, options: Options, policies: &[String]) -> Result<Lab> {
    Lab::start_with(cluster, policies, AgentOptions::default().api_server(options))
}

/// Starts datagram flows to `server`: allowed ones from `client`, and denied ones from `never`.
fn start_background_flows(lab: &Lab) -> Result<BackgroundFlows> {
    BackgroundFlows::start(&lab.cluster, "shop/client", "shop/never", "shop/server")
}

/// Waits until `holds` returns true. `what` completes the phrase "waiting until …" in the error.
fn wait_until(what: &str, timeout: Duration, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let start = Instant::now();
    while !holds()? {
        ensure!(start.elapsed() < timeout, "timed out after {timeout:?} waiting until {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
