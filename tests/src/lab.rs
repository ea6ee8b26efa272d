//! A cluster with an agent on it, and tables of who is to reach whom.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use netpol_apiserver::ApiServer;
use netpol_policy::model::Protocol;

use crate::agent::{Agent, AgentOptions};
use crate::cluster::{Cluster, ClusterBuilder};
use crate::matrix::{Cell, Matrix, settle};
use crate::port;
use crate::probe::{Outcome, Probe};

/// How long a change may take to show, on a machine that is busy with other tests.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A cluster, and the agent on its first node.
#[derive(Debug)]
pub struct Lab {
    // Dropped first: the agent ends while its node is there.
    agent: Option<Agent>,
    /// The cluster.
    pub cluster: Cluster,
}

/// A policy by `namespace/name`, and its `spec` as YAML.
///
/// # Panics
/// Where the name is not of that form.
pub fn policy(name: &str, spec: &str) -> String {
    let (namespace, name) = name.split_once('/').unwrap_or_else(|| panic!("{name:?} is not namespace/name"));
    // The first line may stand right after the quote; the others have the margin of the test's own indentation.
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

/// Denies everything to and from all pods of a namespace.
pub fn deny_all(namespace: &str) -> String {
    policy(&format!("{namespace}/deny-all"), "podSelector: {}\npolicyTypes: [Ingress, Egress]")
}

impl Lab {
    /// A cluster with these policies from the start, enforced before this returns.
    ///
    /// # Errors
    /// Where the cluster cannot be made or the agent does not get ready.
    pub fn start(cluster: ClusterBuilder, policies: &[String]) -> Result<Self> {
        Self::start_with(cluster, policies, AgentOptions::default())
    }

    /// The same, with the agent told how.
    ///
    /// # Errors
    /// Like [`Self::start`].
    pub fn start_with(cluster: ClusterBuilder, policies: &[String], options: AgentOptions) -> Result<Self> {
        let cluster = cluster.build()?;
        cluster.apply("first", &policies.concat())?;
        let agent = Agent::start_with(&cluster, options)?;
        Ok(Self { agent: Some(agent), cluster })
    }

    /// Of a cluster that is there, and the agent on it.
    pub const fn of(cluster: Cluster, agent: Agent) -> Self {
        Self { agent: Some(agent), cluster }
    }

    /// The agent.
    ///
    /// # Panics
    /// Never: it is there until the lab goes.
    pub fn agent(&mut self) -> &mut Agent {
        self.agent.as_mut().expect("a lab has an agent")
    }

    /// The agent, to ask.
    ///
    /// # Panics
    /// Never: it is there until the lab goes.
    pub fn agent_ref(&self) -> &Agent {
        self.agent.as_ref().expect("a lab has an agent")
    }

    /// The API server that the agent was given.
    ///
    /// # Panics
    /// Where it was given none.
    pub fn api_server(&self) -> &ApiServer {
        self.agent.as_ref().and_then(Agent::api_server).expect("the test gave the agent an API server")
    }

    /// The agent's metrics page.
    ///
    /// # Errors
    /// Where it does not answer.
    ///
    /// # Panics
    /// Never: it is there until the lab goes.
    pub fn metrics(&self) -> Result<String> {
        self.agent.as_ref().expect("a lab has an agent").get("/metrics")
    }

    /// Replaces the policies given at the start.
    ///
    /// # Errors
    /// Where they cannot be written.
    pub fn policies(&self, policies: &[String]) -> Result<()> {
        self.cluster.apply("first", &policies.concat())
    }

    /// Waits until what is measured between all ends is what the policies mean.
    ///
    /// # Errors
    /// Where it stays different.
    pub fn settles(&self, ports: &[(Protocol, u16)]) -> Result<Matrix> {
        settle(&self.cluster, ports, PATIENCE)
    }

    /// Waits until a table holds. One line per connection: `from -> to 80/TCP` passes, `from -x to 80/TCP` is dropped.
    /// Between pods and outside ends, the policies must mean the same.
    ///
    /// # Errors
    /// Where it does not hold in time, or the policies mean something else.
    pub fn expect(&self, table: &str) -> Result<()> {
        let rows = parse(table);
        let known = |name: &String| name.contains('/') || self.cluster.host(name).is_outside();
        let cells: Vec<_> = rows.keys().filter(|cell| known(&cell.from) && known(&cell.to)).cloned().collect();
        for (cell, meant) in Matrix::meant(&self.cluster, &cells)?.0 {
            ensure!(rows[&cell] == meant, "the test expects {} of {cell}, the policies mean {meant}", rows[&cell]);
        }
        self.measures(&rows)
    }

    /// The same, without asking what the policies mean: for what is no matter of policy, such as a node that masquerades.
    ///
    /// # Errors
    /// Where it does not hold in time.
    pub fn expect_beyond_policy(&self, table: &str) -> Result<()> {
        self.measures(&parse(table))
    }

    fn measures(&self, rows: &BTreeMap<Cell, bool>) -> Result<()> {
        let probes: Vec<(Probe, bool)> = rows
            .iter()
            .flat_map(|(cell, passes)| {
                let probes = self.cluster.probes(&cell.from, &cell.to, cell.protocol, cell.port);
                probes.into_iter().map(|probe| (probe, *passes))
            })
            .collect();
        let questions: Vec<_> = probes.iter().map(|(probe, _)| probe.clone()).collect();
        let start = Instant::now();
        loop {
            let outcomes = self.cluster.try_all(&questions)?;
            let wrong: Vec<_> = probes
                .iter()
                .zip(&outcomes)
                .filter(|((_, passes), outcome)| **outcome != if *passes { Outcome::Allowed } else { Outcome::Dropped })
                .map(|((probe, passes), outcome)| format!("  {probe}: expected {passes}, measured {outcome:?}"))
                .collect();
            if wrong.is_empty() {
                return Ok(());
            }
            let log = self.agent.as_ref().map(Agent::log).unwrap_or_default();
            ensure!(start.elapsed() < PATIENCE, "after {PATIENCE:?}:\n{}\nthe agent says:\n{log}", wrong.join("\n"));
        }
    }

    /// Probes an address that is no host's own.
    ///
    /// # Errors
    /// Where a socket cannot be made.
    pub fn try_at(&self, from: &str, to: &str, address: &str, protocol: Protocol, port: u16) -> Result<Outcome> {
        let address = address.parse().with_context(|| format!("{address:?} is no address"))?;
        let probe = Probe { from: from.into(), to: to.into(), address, protocol, port };
        Ok(self.cluster.try_all(&[probe])?.remove(0))
    }

    /// What becomes of a connection of `server`, and of one of `other`, to a Service that only `server` is behind. The node
    /// translates as kube-proxy does: who reaches itself is masqueraded.
    ///
    /// # Errors
    /// Where the node has no nftables, or a socket cannot be made.
    pub fn through_service_of(&self, server: &str, other: &str) -> Result<[Outcome; 2]> {
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
