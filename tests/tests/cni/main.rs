//! Nodes as they are: pods wired by the CNI plugins themselves, pods that come and go, interfaces that vanish, and
//! addresses of the node that move.

mod churn;
mod fifty;
mod own;
mod shapes;
mod vanish;

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use netpol_tests::lab::TIMEOUT;
use netpol_tests::{Lab, policy};

/// `server` may be connected to by `client`, and by nobody else.
fn server_from_client() -> String {
    policy(
        "shop/server",
        "{podSelector: {matchLabels: {app: server}}, policyTypes: [Ingress],
          ingress: [{from: [{podSelector: {matchLabels: {app: client}}}]}]}",
    )
}

/// Waits until the metrics have all of these lines, and returns the page.
fn wait_metrics(lab: &mut Lab, lines: &[&str]) -> Result<String> {
    let start = Instant::now();
    loop {
        let page = lab.metrics()?;
        if lines.iter().all(|wanted| page.lines().any(|line| line == *wanted)) {
            return Ok(page);
        }
        let log = lab.agent().log();
        ensure!(start.elapsed() < TIMEOUT, "the metrics never had all of {lines:?}:\n{page}\nthe agent says:\n{log}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
