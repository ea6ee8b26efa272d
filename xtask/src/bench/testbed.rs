//! A node with real pods, and an agent on it that gets a large cluster from a fake API server.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use netpol_apiserver::{ApiServer, Options, Resource};
use netpol_tests::agent::options_with_deployed_role;
use netpol_tests::cluster::node_name;
use netpol_tests::{Agent, AgentOptions, Cluster, PodSpec};

use super::cluster_state::{self, APPS, ClusterSize};

/// Number of namespaces with pods on this node. In each of these namespaces, one pod of each app is on this node.
pub(super) const LOCAL_NAMESPACES: usize = 3;
/// How long an agent may take to become ready.
const READY_LIMIT: Duration = Duration::from_mins(5);
/// Time to wait after the agent is ready, so that work that follows its start does not disturb the measurement.
const QUIET: Duration = Duration::from_secs(3);

/// The node, its pods and its agent.
pub(super) struct Testbed {
    // Dropped first: the agent ends while its node still exists.
    pub(super) agent: Agent,
    pub(super) cluster: Cluster,
}

impl Testbed {
    /// Creates the node, its pods and the cluster's objects. The agent is not running yet: [`Self::start`] starts it
    /// with these arguments.
    pub(super) fn prepare(cluster_size: ClusterSize, arguments: &[&str]) -> Result<Self> {
        eprintln!("creating {} pods on this node …", LOCAL_NAMESPACES * APPS);
        let mut cluster = Cluster::builder().serve(&[]);
        for (namespace, app) in local_pods() {
            cluster = cluster.pod(PodSpec::new(&local_name(namespace, app)));
        }
        let cluster = cluster.build()?;
        let server = Options { history: 50_000, ..options_with_deployed_role()? };
        let options = AgentOptions::default().api_server(server).start_timeout(READY_LIMIT).arguments(arguments);
        let mut agent = Agent::start_with(&cluster, options)?;
        let (removed, output) = agent.uninstall()?;
        ensure!(removed, "the first agent, which created the fake API server, could not be uninstalled:\n{output}");
        let ClusterSize { pods, policies, services } = cluster_size;
        eprintln!("adding {pods} pods, {policies} policies and {services} Services to the fake API server …");
        let testbed = Self { agent, cluster };
        cluster_size.fill(testbed.server()?)?;
        for (namespace, app) in local_pods() {
            testbed.apply_pod(&local_name(namespace, app), app)?;
        }
        Ok(testbed)
    }

    pub(super) fn server(&self) -> Result<&ApiServer> {
        self.agent.api_server().context("the agent does not use an API server")
    }

    /// Adds a local pod with its address to the fake API server. Returns the resource version.
    pub(super) fn apply_pod(&self, name: &str, app: usize) -> Result<u64> {
        let (namespace, short_name) = name.split_once('/').context("the pod's name is not namespace/name")?;
        let address = self.cluster.host(name).v4();
        cluster_state::apply(self.server()?, cluster_state::pod_in(namespace, short_name, &node_name(1), app, address))
    }

    /// Starts the agent without any state of the previous agent. Returns how long the agent took to become ready.
    pub(super) fn start(&mut self) -> Result<Duration> {
        if self.agent.pid().is_some() {
            let (removed, output) = self.agent.uninstall()?;
            ensure!(removed, "the agent could not be uninstalled:\n{output}");
        }
        let start = Instant::now();
        self.agent.restart()?;
        let elapsed = start.elapsed();
        std::thread::sleep(QUIET);
        Ok(elapsed)
    }

    /// Returns how many objects of a resource the agent has, according to its metrics.
    pub(super) fn objects(&self, resource: Resource) -> Result<usize> {
        self.metric(&format!("netpol_source_objects{{kind=\"{}\"}}", resource.plural()))
    }

    /// Returns how many pods of this node are not enforced yet, according to the agent's metrics.
    pub(super) fn pods_waiting(&self) -> Result<usize> {
        self.metric("netpol_pods_waiting")
    }

    fn metric(&self, name: &str) -> Result<usize> {
        let metrics = self.agent.get("/metrics")?;
        let Some(count) = metrics.lines().find_map(|text| text.strip_prefix(name)?.strip_prefix(' ')) else {
            bail!("the agent's metrics have no {name}");
        };
        count.parse().with_context(|| format!("reading {name}"))
    }
}

/// Returns the local pods, as namespace and app.
pub(super) fn local_pods() -> impl Iterator<Item = (usize, usize)> {
    (0..LOCAL_NAMESPACES).flat_map(|namespace| (0..APPS).map(move |app| (namespace, app)))
}

pub(super) fn local_name(namespace: usize, app: usize) -> String {
    format!("{}/local-{app}", cluster_state::namespace_name(namespace))
}
