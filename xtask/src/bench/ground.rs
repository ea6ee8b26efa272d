//! A node with real pods, and an agent on it that gets a big cluster from an API server.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use netpol_apiserver::{ApiServer, Options, Resource};
use netpol_tests::agent::as_deployed;
use netpol_tests::cluster::node_name;
use netpol_tests::{Agent, AgentOptions, Cluster, PodSpec};

use super::world::{self, APPS, World};

/// Namespaces with pods on this node, one for each app.
pub(super) const LOCAL_NAMESPACES: usize = 3;
/// How long an agent may take to get ready.
const PATIENCE: Duration = Duration::from_mins(5);
/// Longer than any page the agent makes takes it to become ready after its file says so.
const SETTLE: Duration = Duration::from_secs(3);

/// See the module.
pub(super) struct Ground {
    // Dropped first: the agent ends while its node is there.
    pub(super) agent: Agent,
    pub(super) cluster: Cluster,
}

impl Ground {
    /// All of it, with no agent running yet, which is to have these arguments.
    pub(super) fn prepare(world: World, arguments: &[&str]) -> Result<Self> {
        eprintln!("making {} pods on this node …", LOCAL_NAMESPACES * APPS);
        let mut cluster = Cluster::builder().serve(&[]);
        for (namespace, app) in local_pods() {
            cluster = cluster.pod(PodSpec::new(&local_name(namespace, app)));
        }
        let cluster = cluster.build()?;
        let server = Options { history: 50_000, ..as_deployed()? };
        let options = AgentOptions::default().api_server(server).patience(PATIENCE).arguments(arguments);
        let mut agent = Agent::start_with(&cluster, options)?;
        let (removed, said) = agent.uninstall()?;
        ensure!(removed, "the agent that brought the API server double could not be uninstalled:\n{said}");
        let World { pods, policies, services } = world;
        eprintln!("giving the API server double {pods} pods, {policies} policies and {services} Services …");
        let ground = Self { agent, cluster };
        world.fill(ground.server()?)?;
        for (namespace, app) in local_pods() {
            ground.announce(&local_name(namespace, app), app)?;
        }
        Ok(ground)
    }

    pub(super) fn server(&self) -> Result<&ApiServer> {
        self.agent.api_server().context("the agent has an API server")
    }

    /// Lets the server say that a pod of this node has its address; the version in which it does.
    pub(super) fn announce(&self, name: &str, app: usize) -> Result<u64> {
        let (namespace, short) = name.split_once('/').context("pods are named namespace/name")?;
        let address = self.cluster.host(name).v4();
        world::apply(self.server()?, world::pod_in(namespace, short, &node_name(1), app, address))
    }

    /// Starts the agent anew, with nothing left of the one before; how long until it was ready.
    pub(super) fn start(&mut self) -> Result<Duration> {
        if self.agent.pid().is_some() {
            let (removed, said) = self.agent.uninstall()?;
            ensure!(removed, "the agent could not be uninstalled:\n{said}");
        }
        let begun = Instant::now();
        self.agent.restart()?;
        let took = begun.elapsed();
        std::thread::sleep(SETTLE);
        Ok(took)
    }

    /// How many objects of a resource the agent says it knows.
    pub(super) fn known(&self, resource: Resource) -> Result<usize> {
        self.metric(&format!("netpol_source_objects{{kind=\"{}\"}}", resource.plural()))
    }

    /// How many pods of this node the agent says are not enforced yet.
    pub(super) fn pods_waiting(&self) -> Result<usize> {
        self.metric("netpol_pods_waiting")
    }

    fn metric(&self, name: &str) -> Result<usize> {
        let page = self.agent.get("/metrics")?;
        let Some(count) = page.lines().find_map(|text| text.strip_prefix(name)?.strip_prefix(' ')) else {
            bail!("the agent's metrics have no {name}");
        };
        count.parse().with_context(|| format!("reading {name}"))
    }
}

/// By namespace and app.
pub(super) fn local_pods() -> impl Iterator<Item = (usize, usize)> {
    (0..LOCAL_NAMESPACES).flat_map(|namespace| (0..APPS).map(move |app| (namespace, app)))
}

pub(super) fn local_name(namespace: usize, app: usize) -> String {
    format!("{}/local-{app}", world::namespace_name(namespace))
}
