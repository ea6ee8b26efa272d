//! Nodes, pods and a host outside, wired and serving.

mod builder;
mod host;
mod pod;
mod wiring;

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::{Context, Result, bail};
use netpol_policy::model::Protocol;

pub use builder::ClusterBuilder;
pub use host::{Families, Host, Mac, OUTSIDE, Topology, gateway, node_name};
pub use pod::PodSpec;

use crate::manifests::Manifests;
use crate::netns::Netns;
use crate::probe::{Outcome, Probe, probe_all};
use crate::serve::Servers;

/// A running cluster. Dropping it takes everything down.
#[derive(Debug)]
pub struct Cluster {
    topology: Topology,
    families: Families,
    serve: Vec<(Protocol, u16)>,
    hosts: BTreeMap<String, Host>,
    specs: BTreeMap<String, PodSpec>,
    next_number: u8,
    next_link: u32,
    servers: Servers,
    manifests: Manifests,
    // The switch between nodes lives as long as this.
    _fabric: Netns,
}

impl Cluster {
    /// Starts describing one.
    pub fn builder() -> ClusterBuilder {
        ClusterBuilder::default()
    }

    /// Families in use.
    pub const fn families(&self) -> Families {
        self.families
    }

    /// How pods are connected to their node.
    pub const fn topology(&self) -> Topology {
        self.topology
    }

    /// The directory of manifests that tells of this cluster.
    pub const fn manifests(&self) -> &Manifests {
        &self.manifests
    }

    /// A pod (`namespace/name`), a node (`node-1`), [`OUTSIDE`] or one of the outside's further addresses.
    ///
    /// # Panics
    /// Where there is none of that name: a mistake in the test.
    pub fn host(&self, name: &str) -> &Host {
        self.hosts.get(name).unwrap_or_else(|| panic!("no host {name:?}; there are {:?}", self.hosts.keys()))
    }

    /// The pods there are, by `namespace/name`.
    pub fn pods(&self) -> impl Iterator<Item = &PodSpec> {
        self.specs.values()
    }

    /// Names of pods and outside addresses, in the order tables show them.
    pub fn ends(&self) -> Vec<String> {
        let outside = self.hosts.values().filter(|host| host.is_outside()).map(|host| host.name().to_owned());
        self.specs.keys().cloned().chain(outside).collect()
    }

    /// Makes a pod: namespace, veth, addresses, servers, and last its manifest, as a kubelet reports an address after
    /// the network plugin is done.
    ///
    /// # Errors
    /// Where the kernel refuses, or the name is taken.
    pub fn add_pod(&mut self, spec: PodSpec) -> Result<()> {
        let (name, manifest) = self.wire_pod(spec)?;
        self.manifests.write(&pod_file(&name), &manifest)
    }

    /// Makes a pod that the manifests do not tell of yet; [`Self::announce`] does.
    ///
    /// # Errors
    /// Like [`Self::add_pod`].
    pub fn add_pod_quietly(&mut self, spec: PodSpec) -> Result<()> {
        self.wire_pod(spec).map(|_| ())
    }

    fn wire_pod(&mut self, mut spec: PodSpec) -> Result<(String, String)> {
        let name = spec.full_name();
        if self.hosts.contains_key(&name) {
            bail!("there is a pod {name} already");
        }
        let number = spec.number.unwrap_or(self.next_number);
        self.next_number = self.next_number.max(number + 1);
        spec.number = Some(number);
        self.next_link += 1;
        let node = self.host(&node_name(spec.node));
        let host = wiring::wire_pod(node, &name, spec.node, number, self.next_link, self.topology, self.families)
            .with_context(|| format!("wiring pod {name} to {}", node.name()))?;
        self.servers.serve(&host, &self.serve)?;
        let manifest = spec.manifest(host.addresses());
        self.hosts.insert(name.clone(), host);
        self.specs.insert(name.clone(), spec);
        Ok((name, manifest))
    }

    /// Takes a pod away: its manifest, its servers, its namespace and veth.
    ///
    /// # Errors
    /// Where there is none, or its manifest or link cannot be removed.
    pub fn remove_pod(&mut self, name: &str) -> Result<()> {
        self.manifests.remove(&pod_file(name))?;
        self.remove_pod_quietly(name)
    }

    /// Takes a pod away, but leaves its manifest.
    ///
    /// # Errors
    /// Where there is none, or its link cannot be removed.
    pub fn remove_pod_quietly(&mut self, name: &str) -> Result<()> {
        let host = self.hosts.remove(name).with_context(|| format!("no pod {name} to remove"))?;
        self.specs.remove(name);
        self.servers.stop(name);
        // Explicitly, as the namespace itself goes some milliseconds after its last descriptor.
        host.netns().ip("link delete eth0")
    }

    /// Writes a pod's manifest as it is now.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn announce(&self, name: &str) -> Result<()> {
        let spec = self.specs.get(name).with_context(|| format!("no pod {name} to announce"))?;
        self.manifests.write(&pod_file(name), &spec.manifest(self.host(name).addresses()))
    }

    /// Takes a pod's manifest away, and leaves the pod.
    ///
    /// # Errors
    /// Where there is none.
    pub fn conceal(&self, name: &str) -> Result<()> {
        self.manifests.remove(&pod_file(name))
    }

    /// Changes a pod's description and tells of it.
    ///
    /// # Errors
    /// Where there is no such pod or its manifest cannot be written.
    pub fn edit_pod(&mut self, name: &str, edit: impl FnOnce(PodSpec) -> PodSpec) -> Result<()> {
        let spec = self.specs.remove(name).with_context(|| format!("no pod {name} to edit"))?;
        self.specs.insert(name.to_owned(), edit(spec));
        self.announce(name)
    }

    /// Writes (or replaces) a namespace.
    ///
    /// # Errors
    /// Where its manifest cannot be written.
    pub fn label_namespace(&self, name: &str, labels: &str) -> Result<()> {
        self.manifests.write(&format!("namespace-{name}.yaml"), &pod::namespace_manifest(name, labels))
    }

    /// Writes (or replaces) a file of policies.
    ///
    /// # Errors
    /// Where it cannot be written.
    pub fn apply(&self, file: &str, yaml: &str) -> Result<()> {
        self.manifests.write(&format!("policy-{file}.yaml"), yaml)
    }

    /// Removes a file of policies.
    ///
    /// # Errors
    /// Where there is none.
    pub fn withdraw(&self, file: &str) -> Result<()> {
        self.manifests.remove(&format!("policy-{file}.yaml"))
    }

    /// What a probe by names comes to: the destination's address of the first family both have.
    ///
    /// # Panics
    /// Where a host is unknown, or two have no family in common.
    pub fn probe(&self, from: &str, to: &str, protocol: Protocol, port: u16) -> Probe {
        let (source, destination) = (self.host(from), self.host(to));
        let address = destination
            .addresses()
            .iter()
            .copied()
            .find(|address| source.address_like(*address).is_some())
            .unwrap_or_else(|| panic!("{from} and {to} have no address family in common"));
        Probe { from: from.into(), to: to.into(), address, protocol, port }
    }

    /// The same probe to each address of the destination.
    pub fn probes(&self, from: &str, to: &str, protocol: Protocol, port: u16) -> Vec<Probe> {
        let (source, destination) = (self.host(from), self.host(to));
        let reachable = destination.addresses().iter().filter(|address| source.address_like(**address).is_some());
        reachable.map(|&address| Probe { from: from.into(), to: to.into(), address, protocol, port }).collect()
    }

    /// Tries them all at once.
    ///
    /// # Errors
    /// Where a socket cannot even be made.
    pub fn try_all(&self, probes: &[Probe]) -> Result<Vec<Outcome>> {
        probe_all(self, probes)
    }

    /// Tries TCP to one address.
    ///
    /// # Errors
    /// Where a socket cannot even be made.
    pub fn try_tcp(&self, from: &str, to: &str, address: IpAddr, port: u16) -> Result<Outcome> {
        let probe = Probe { from: from.into(), to: to.into(), address, protocol: Protocol::Tcp, port };
        Ok(self.try_all(&[probe])?.remove(0))
    }

    /// Serves further ports at a host.
    ///
    /// # Errors
    /// Where one cannot be bound.
    pub fn serve_at(&mut self, name: &str, ports: &[(Protocol, u16)]) -> Result<()> {
        let host = self.host(name).clone();
        self.servers.serve(&host, ports)
    }

    /// The cluster's namespaces by their inode, to look for them when it is gone.
    ///
    /// # Errors
    /// Where the kernel does not tell.
    pub fn inodes(&self) -> Result<Vec<u64>> {
        self.hosts.values().map(|host| host.netns().inode()).collect()
    }
}

fn pod_file(name: &str) -> String {
    format!("pod-{}.yaml", name.replace('/', "-"))
}
