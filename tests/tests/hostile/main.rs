//! Attacks: what a pod with raw sockets and control of its own network namespace, or a host outside, tries against a node.
//! Names begin with `hostile_`, so that `cargo xtask test --filter hostile` runs them.

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

/// `rogue` is the attacker; `server` takes anything from `client` and nothing else; no policy isolates `open`.
fn pods() -> ClusterBuilder {
    Cluster::builder().families(Families::Dual).pods(&[
        ("shop/client", "app=client"),
        ("shop/server", "app=server"),
        ("shop/rogue", "app=rogue"),
        ("shop/open", "app=open"),
    ])
}

fn server_from_client() -> String {
    policy(
        "shop/server-from-client",
        "{podSelector: {matchLabels: {app: server}}, policyTypes: [Ingress],
          ingress: [{from: [{podSelector: {matchLabels: {app: client}}}]}]}",
    )
}

/// `rogue` may send nothing; anything may reach it.
fn rogue_sends_nothing() -> String {
    policy("shop/rogue-sends-nothing", "{podSelector: {matchLabels: {app: rogue}}, policyTypes: [Egress]}")
}

/// Waits until the pods' MAC addresses are learned, which takes a look at interfaces more than enforcing does.
fn wait_for_macs(lab: &mut Lab) -> Result<()> {
    let pinned = Pinned::open(lab.agent().pin_path())?;
    let deadline = Instant::now() + TIMEOUT;
    while pinned.endpoints()?.iter().any(|endpoint| endpoint.mac == [0; 6]) {
        ensure!(Instant::now() < deadline, "the agent does not learn the pods' MAC addresses");
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
