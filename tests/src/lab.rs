//! Combines a test cluster (hosts in network namespaces) and an agent, and checks which connections are allowed.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use netpol_apiserver::ApiServer;
use netpol_policy::model::Protocol;

use crate::agent::{Agent, AgentOptions};
use crate::cluster::{Cluster, ClusterBuilder};
use crate::matrix::{Cell, Matrix, wait_until_expected};
use crate::port;
use crate::probe::{Probe, ProbeResult};

/// How long a change may take to have an effect, on a busy machine.
pub const TIMEOUT: Duration = Duration::from_secs(20);
/// Name of the manifest with the policies of a lab. The file is `policy-first.yaml`.
const POLICY_FILE: &str = "first";

/// A cluster, and the agent on its first node.
#[derive(Debug)]
pub struct Lab {
    // The first field is dropped first: the agent ends while its node still exists.
    agent: Agent,
    /// The cluster.
    pub cluster: Cluster,
}

/// Returns the manifest of a policy. `name` has the form `namespace/name`; `spec` is YAML.
///
/// # Panics
/// Panics if `name` has another form.
pub fn policy(name: &str, spec: &str) -> String {
    let (namespace, name) = name.split_once('/').unwrap_or_else(|| panic!("{name:?} is not namespace/name"));
    // The first line may directly follow the opening quote of the string. The other lines are indented like the code of
    // the test.
    let lines: Vec<_> = spec.lines().filter(|line| !line.trim().is_empty()).collect();
    let margin = lines.iter().skip(1).map(|line| line.len() - line.trim_start().len()).min().unwrap_or(0);
    let spec: Vec<_> = lines
        .iter()
        .enumerate()
        .map(|(index, line)| format!("  {}\n", if index == 0 { line.trim_start() } else { &line[margin..] }))
        .collect();
    format!(
        "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{namespace: {namespace}, name: {name}}}\n\
         spec:\n{}",
        spec.concat()
    )
}

/// Returns a policy that denies all traffic to and from all pods of a namespace.
pub fn deny_all(namespace: &str) -> String {
    policy(&format!("{namespace}/deny-all"), "podSelector: {}\npolicyTypes: [Ingress, Egress]")
}

impl Lab {
    /// Creates a cluster and an agent. When this function returns, the agent enforces `policies`.
    ///
    /// # Errors
    /// Returns an error if the cluster cannot be created or the agent does not become ready.
    pub fn start(cluster: ClusterBuilder, policies: &[String]) -> Result<Self> {
        Self::start_with(cluster, policies, AgentOptions::default())
    }

    /// Creates a cluster and an agent with options.
    ///
    /// # Errors
    /// Same as [`Self::start`].
    pub fn start_with(cluster: ClusterBuilder, policies: &[String], options: AgentOptions) -> Result<Self> {
        let cluster = cluster.build()?;
        cluster.apply(POLICY_FILE, &policies.concat())?;
        let agent = Agent::start_with(&cluster, options)?;
        Ok(Self { agent, cluster })
    }

    /// Combines an existing cluster and the agent on it.
    pub const fn of(cluster: Cluster, agent: Agent) -> Self {
        Self { agent, cluster }
    }

    /// Returns the agent.
    pub const fn agent(&mut self) -> &mut Agent {
        &mut self.agent
    }

    /// Returns a shared reference to the agent.
    pub const fn agent_ref(&self) -> &Agent {
        &self.agent
    }

    /// Returns the agent's fake API server.
    ///
    /// # Panics
    /// Panics if the agent reads a directory.
    pub fn api_server(&self) -> &ApiServer {
        self.agent.api_server().expect("the agent does not use an API server")
    }

    /// Returns the agent's metrics.
    ///
    /// # Errors
    /// Returns an error if the agent does not respond.
    pub fn metrics(&self) -> Result<String> {
        self.agent.get("/metrics")
    }

    /// Waits until the agent's metrics contain all of these lines, and returns the page.
    ///
    /// # Errors
    /// Returns an error if the agent does not respond, or if the lines do not appear in time.
    pub fn wait_metrics(&self, lines: &[&str]) -> Result<String> {
        let start = Instant::now();
        loop {
            let page = self.metrics()?;
            if lines.iter().all(|expected| page.lines().any(|line| line == *expected)) {
                return Ok(page);
            }
            let log = self.agent.log();
            ensure!(start.elapsed() < TIMEOUT, "metrics never contained all of {lines:?}:\n{page}\nagent log:\n{log}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Returns the value of one series of the agent's metrics, such as `netpol_map_entries{map="ALLOW"}`.
    ///
    /// # Errors
    /// Returns an error if the agent does not respond, or there is no such series.
    pub fn metric(&self, series: &str) -> Result<f64> {
        let page = self.metrics()?;
        let value = page.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        let value = value.with_context(|| format!("there is no {series} in\n{page}"))?;
        value.parse().with_context(|| format!("reading {series}"))
    }

    /// Replaces the policies that were passed to [`Self::start`] or to an earlier call of this function.
    ///
    /// # Errors
    /// Returns an error if they cannot be written.
    pub fn set_policies(&self, policies: &[String]) -> Result<()> {
        self.cluster.apply(POLICY_FILE, &policies.concat())
    }

    /// Waits until the measured connections between all hosts match the policies.
    ///
    /// # Errors
    /// Returns an error if they do not match in time.
    pub fn wait_until_expected(&self, ports: &[(Protocol, u16)]) -> Result<Matrix> {
        wait_until_expected(&self.cluster, ports, TIMEOUT)
    }

    /// Waits until the measured connections match a table, with one line for each connection: `from -> to 80/TCP` is
    /// allowed, `from -x to 80/TCP` is dropped. `from` and `to` are pods, external hosts or nodes.
    ///
    /// Also compares the table with the reference evaluator (a second, direct implementation of the API documentation),
    /// for the connections that do not involve a node.
    ///
    /// # Errors
    /// Returns an error if the connections do not match in time, or the reference evaluator returns another verdict.
    pub fn expect(&self, table: &str) -> Result<()> {
        let rows = parse(table);
        // The name of a pod contains a slash. Nodes are not compared: a verdict for the local node differs from a
        // verdict for another node, and the manifests do not contain which node is local.
        let is_compared = |name: &String| name.contains('/') || self.cluster.host(name).is_outside();
        let cells: Vec<_> =
            rows.keys().filter(|cell| is_compared(&cell.from) && is_compared(&cell.to)).cloned().collect();
        for (cell, expected) in Matrix::expected(&self.cluster, &cells)?.0 {
            ensure!(
                rows[&cell] == expected,
                "the test expects {} for {cell}, but the reference yields {expected}",
                rows[&cell]
            );
        }
        self.wait_for_rows(&rows)
    }

    /// Waits until the measured connections match a table that the reference evaluator cannot evaluate, for example
    /// because a node masquerades.
    ///
    /// # Errors
    /// Returns an error if the connections do not match in time.
    pub fn expect_without_reference_evaluator(&self, table: &str) -> Result<()> {
        self.wait_for_rows(&parse(table))
    }

    fn wait_for_rows(&self, rows: &BTreeMap<Cell, bool>) -> Result<()> {
        let probes: Vec<(Probe, bool)> = rows
            .iter()
            .flat_map(|(cell, passes)| {
                let probes = self.cluster.probes(&cell.from, &cell.to, cell.protocol, cell.port);
                probes.into_iter().map(|probe| (probe, *passes))
            })
            .collect();
        let only_probes: Vec<_> = probes.iter().map(|(probe, _)| probe.clone()).collect();
        let start = Instant::now();
        loop {
            let outcomes = self.cluster.try_all(&only_probes)?;
            let wrong: Vec<_> = probes
                .iter()
                .zip(&outcomes)
                .filter(|((_, passes), outcome)| {
                    **outcome != if *passes { ProbeResult::Allowed } else { ProbeResult::Dropped }
                })
                .map(|((probe, passes), outcome)| format!("  {probe}: expected {passes}, measured {outcome:?}"))
                .collect();
            if wrong.is_empty() {
                return Ok(());
            }
            let log = self.agent.log();
            ensure!(start.elapsed() < TIMEOUT, "after {TIMEOUT:?}:\n{}\nAgent log:\n{log}", wrong.join("\n"));
        }
    }

    /// Probes any address, such as that of a Service. `to` is the host that should respond.
    ///
    /// # Errors
    /// Returns an error if a socket cannot be created.
    pub fn try_at(&self, from: &str, to: &str, address: &str, protocol: Protocol, port: u16) -> Result<ProbeResult> {
        let address = address.parse().with_context(|| format!("{address:?} is not an address"))?;
        let probe = Probe { from: from.into(), to: to.into(), address, protocol, port };
        Ok(self.cluster.try_all(&[probe])?.remove(0))
    }

    /// Creates a Service with `server` as its only backend, and probes it from `server` and from `other`. The Service
    /// consists of nftables rules on the node: DNAT as kube-proxy does it, and masquerading of hairpin traffic (from
    /// the server to itself).
    ///
    /// # Errors
    /// Returns an error if the node has no nftables, or a socket cannot be created.
    pub fn probe_through_service(&self, server: &str, other: &str) -> Result<[ProbeResult; 2]> {
        let backend = self.cluster.host(server).v4();
        self.cluster.host("node-1").netns().nft(&format!(
            "table ip npt {{
               chain pre {{
                 type nat hook prerouting priority dstnat;
                 ip daddr 10.96.0.10 tcp dport 8080 dnat to {backend}:80
               }}
               chain post {{
                 type nat hook postrouting priority srcnat - 1;
                 ip saddr {backend} ip daddr {backend} masquerade
               }}
             }}"
        ))?;
        let connect = |from| self.try_at(from, server, "10.96.0.10", Protocol::Tcp, 8080);
        Ok([connect(server)?, connect(other)?])
    }
}

fn parse(table: &str) -> BTreeMap<Cell, bool> {
    table.lines().map(str::trim).filter(|line| !line.is_empty()).map(parse_row).collect()
}

fn parse_row(line: &str) -> (Cell, bool) {
    let words: Vec<_> = line.split_whitespace().collect();
    let &[from, arrow, to, port] = &words[..] else { panic!("{line:?} is not `from -> to port/protocol`") };
    let passes = match arrow {
        "->" => true,
        "-x" => false,
        _ => panic!("{line:?} has neither -> nor -x"),
    };
    let (protocol, port) = port::parse(port).unwrap_or_else(|error| panic!("{line:?}: {error}"));
    (Cell { from: from.into(), to: to.into(), protocol, port }, passes)
}
