//! Builds clusters from a description.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use anyhow::{Context, Result, bail};
use netpol_policy::model::Protocol;

use super::plugin::Plugin;
use super::tunnel::Tunnel;
use super::{Cluster, Families, Interconnect, PodSpec, Topology, host, node_name, pod, wiring};
use crate::cleanup;
use crate::manifests::Manifests;
use crate::netns::Netns;
use crate::serve::Servers;

/// Description of a cluster.
#[derive(Debug)]
pub struct ClusterBuilder {
    topology: Topology,
    interconnect: Interconnect,
    families: Families,
    /// The number of nodes.
    nodes: u8,
    /// Names and labels of namespaces.
    namespaces: Vec<(String, String)>,
    pods: Vec<PodSpec>,
    /// Extra addresses of the external host.
    outside: Vec<IpAddr>,
    /// The ports that every pod and the external host serve.
    serve: Vec<(Protocol, u16)>,
}

impl Default for ClusterBuilder {
    fn default() -> Self {
        Self {
            topology: Topology::Bridge,
            interconnect: Interconnect::Routes,
            families: Families::V4,
            nodes: 1,
            namespaces: Vec::new(),
            pods: Vec::new(),
            outside: Vec::new(),
            serve: vec![(Protocol::Tcp, 80), (Protocol::Udp, 53)],
        }
    }
}

impl ClusterBuilder {
    /// Sets how pods are connected to their node. The default is a bridge.
    #[must_use]
    pub const fn topology(mut self, topology: Topology) -> Self {
        self.topology = topology;
        self
    }

    /// Sets how nodes reach each other's pods. The default is routes.
    #[must_use]
    pub const fn interconnect(mut self, interconnect: Interconnect) -> Self {
        self.interconnect = interconnect;
        self
    }

    /// Sets the address families. The default is IPv4.
    #[must_use]
    pub const fn families(mut self, families: Families) -> Self {
        self.families = families;
        self
    }

    /// Sets the number of nodes. The default is one.
    #[must_use]
    pub const fn nodes(mut self, nodes: u8) -> Self {
        self.nodes = nodes;
        self
    }

    /// Adds a namespace with labels, for example `team=a,env=test`. If a pod's namespace is not added by this method,
    /// the namespace has no labels.
    #[must_use]
    pub fn namespace(mut self, name: &str, labels: &str) -> Self {
        self.namespaces.push((name.into(), labels.into()));
        self
    }

    /// Adds a pod.
    #[must_use]
    pub fn pod(mut self, pod: PodSpec) -> Self {
        self.pods.push(pod);
        self
    }

    /// Adds pods, each given as `namespace/name` and labels such as `app=web,tier=front`.
    #[must_use]
    pub fn pods(mut self, pods: &[(&str, &str)]) -> Self {
        self.pods.extend(pods.iter().map(|(name, labels)| PodSpec::new(name).labels(labels)));
        self
    }

    /// Adds an extra address to the external host. The external host serves at this address, and a probe can use it as
    /// its source. The address is ignored if its family is not in use.
    ///
    /// # Panics
    /// Panics if the text is not an address.
    #[must_use]
    pub fn outside(mut self, address: &str) -> Self {
        self.outside.push(address.parse().unwrap_or_else(|error| panic!("{address:?}: {error}")));
        self
    }

    /// Sets the ports that every pod and the external host serve. The default is 80/TCP and 53/UDP.
    #[must_use]
    pub fn serve(mut self, ports: &[(Protocol, u16)]) -> Self {
        self.serve = ports.to_vec();
        self
    }

    /// Creates the cluster.
    ///
    /// # Errors
    /// Returns an error if the process does not run as root, or a kernel request fails.
    pub fn build(self) -> Result<Cluster> {
        cleanup::prepare();
        // The bridge that connects the nodes and the external host, in a network namespace of its own.
        let fabric = Netns::new("the fabric")?;
        fabric.ip("link add fabric type bridge\nlink set fabric up")?;
        let manifests = Manifests::new()?;
        let mut hosts = BTreeMap::new();
        for node in 1..=self.nodes {
            let host = wiring::wire_node(&fabric, node, self.nodes, (self.topology, self.interconnect), self.families)
                .with_context(|| format!("creating {}", node_name(node)))?;
            manifests.write(
                &format!("{}.yaml", host.name()),
                &pod::node_manifest(host.name(), &host::uplink_addresses(node, self.families)),
            )?;
            hosts.insert(host.name().to_owned(), host);
        }
        let tunnel = match (self.interconnect, self.nodes) {
            (Interconnect::Tun, 2) => {
                let [one, other] = [1, 2].map(|node| hosts[&node_name(node)].netns());
                Some(Tunnel::between(one, other).context("creating the tunnel between the nodes")?)
            }
            (Interconnect::Tun, nodes) => bail!("a tun device needs exactly two nodes, not {nodes}"),
            _ => None,
        };
        let extra_addresses: Vec<_> = self.outside.into_iter().filter(|address| self.families.has(*address)).collect();
        for host in wiring::wire_outside(&fabric, self.nodes, &extra_addresses, self.families)
            .context("creating the external host")?
        {
            hosts.insert(host.name().to_owned(), host);
        }
        let servers = Servers::start()?;
        for host in hosts.values().filter(|host| host.is_outside()) {
            servers.serve(host, &self.serve)?;
        }
        let mut cluster = Cluster {
            topology: self.topology,
            interconnect: self.interconnect,
            families: self.families,
            serve: self.serve,
            hosts,
            specs: BTreeMap::new(),
            next_number: 10,
            last_link_number: 0,
            plugin: Plugin::of(self.topology, self.families),
            servers,
            manifests,
            _tunnel: tunnel,
            _fabric: fabric,
        };
        let mut unlabeled: BTreeSet<_> = self.pods.iter().map(|pod| pod.namespace().to_owned()).collect();
        for (name, labels) in &self.namespaces {
            cluster.label_namespace(name, labels)?;
            unlabeled.remove(name);
        }
        for name in unlabeled {
            cluster.label_namespace(&name, "")?;
        }
        cluster.add_pods(self.pods)?;
        Ok(cluster)
    }
}
