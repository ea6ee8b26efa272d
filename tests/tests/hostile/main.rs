//! Tests of attacks on a node. The attacker is a pod that has raw sockets and controls its own network namespace, or a
//! host outside the cluster. Names of tests start with `hostile_`, so that `cargo xtask test --filter hostile` runs
//! them.

mod floods;
mod identity;
mod neighbors;
mod shapes;
mod tunnels;

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use netpol_tests::lab::{TIMEOUT, policy};
use netpol_tests::pinned::Pinned;
use netpol_tests::{Cluster, ClusterBuilder, Families, Lab};

/// `rogue` is the attacker. With [`allow_client_to_server`], `server` accepts traffic only from `client`. In most
/// tests, no policy isolates `open`.
fn pods() -> ClusterBuilder {
    Cluster::builder().families(Families::Dual).pods(&[
        ("shop/client", "app=client"),
        ("shop/server", "app=server"),
        ("shop/rogue", "app=rogue"),
        ("shop/open", "app=open"),
    ])
}

/// Returns a policy that allows ingress to `server` only from `client`.
fn allow_client_to_server() -> String {
    policy(
        "shop/server-from-client",
        "{podSelector: {matchLabels: {app: server}}, policyTypes: [Ingress],
          ingress: [{from: [{podSelector: {matchLabels: {app: client}}}]}]}",
    )
}

/// Returns a policy that denies all egress of `rogue`. It does not restrict ingress.
fn rogue_sends_nothing() -> String {
    policy("shop/rogue-sends-nothing", "{podSelector: {matchLabels: {app: rogue}}, policyTypes: [Egress]}")
}

/// Waits until the agent has read the pods' MAC addresses. The agent reads them in the first scan of the interfaces
/// after the scan that starts enforcement.
fn wait_for_macs(lab: &mut Lab) -> Result<()> {
    let pinned = Pinned::open(lab.agent().pin_path())?;
    let deadline = Instant::now() + TIMEOUT;
    while pinned.endpoints()?.iter().any(|endpoint| endpoint.mac == [0; 6]) {
        ensure!(Instant::now() < deadline, "timed out: the agent has not read the pods' MAC addresses");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
