//! Tests on realistic nodes: pods connected by CNI plugins, pods that are created and deleted, interfaces that are
//! removed immediately, and node addresses that move.

mod churn;
mod fifty;
mod node_addresses;
mod plugins;
mod short_lived;
mod start_gate;

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use netpol_tests::lab::TIMEOUT;
use netpol_tests::{Lab, policy};

/// Returns a policy that allows ingress to `server` only from `client`.
fn allow_client_to_server() -> String {
    policy(
        "shop/server",
        "{podSelector: {matchLabels: {app: server}}, policyTypes: [Ingress],
          ingress: [{from: [{podSelector: {matchLabels: {app: client}}}]}]}",
    )
}

/// Waits until the metrics contain all of these lines, and returns the page.
fn wait_metrics(lab: &mut Lab, lines: &[&str]) -> Result<String> {
    let start = Instant::now();
    loop {
        let page = lab.metrics()?;
        if lines.iter().all(|expected| page.lines().any(|line| line == *expected)) {
            return Ok(page);
        }
        let log = lab.agent().log();
        ensure!(start.elapsed() < TIMEOUT, "metrics never contained all of {lines:?}:\n{page}\nagent log:\n{log}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
