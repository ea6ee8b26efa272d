//! Nodes as they are: pods wired by the CNI plugins themselves, pods that come and go, interfaces that vanish, and
//! addresses of the node that move.

mod churn;
mod own;
mod shapes;
mod vanish;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use netpol_tests::lab::PATIENCE;
use netpol_tests::{AgentOptions, Lab, policy};

/// Where the agent serves its metrics, within its node.
const METRICS: &str = "127.0.0.1:9400";

fn measured() -> AgentOptions {
    AgentOptions::default().arguments(&["--metrics", METRICS])
}

/// `server` may be connected to by `client`, and by nobody else.
fn server_from_client() -> String {
    policy(
        "shop/server",
        "{podSelector: {matchLabels: {app: server}}, policyTypes: [Ingress],
          ingress: [{from: [{podSelector: {matchLabels: {app: client}}}]}]}",
    )
}

fn metrics(lab: &Lab) -> Result<String> {
    lab.cluster.host("node-1").netns().run(|| {
        let mut stream = TcpStream::connect(METRICS).context("connecting to the agent's metrics")?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n")?;
        let mut page = String::new();
        stream.read_to_string(&mut page).context("reading the agent's metrics")?;
        Ok(page)
    })
}

/// Waits until the metrics have all of these lines, and returns the page.
fn wait_metrics(lab: &mut Lab, lines: &[&str]) -> Result<String> {
    let start = Instant::now();
    loop {
        let page = metrics(lab)?;
        if lines.iter().all(|wanted| page.lines().any(|line| line == *wanted)) {
            return Ok(page);
        }
        let log = lab.agent().log();
        ensure!(start.elapsed() < PATIENCE, "the metrics never had all of {lines:?}:\n{page}\nthe agent says:\n{log}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
