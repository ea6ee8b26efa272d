//! Clusters for tests. Each node, each pod and the external host is a network namespace. Pods and the external host run
//! servers that answer probes.
//!
//! In this module, a host is a pod, a node, the external host, or an extra address of the external host.

mod builder;
mod host;
mod overlay;
mod plugin;
mod pod;
mod portmap;
mod start_gate;
mod tunnel;
mod wiring;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use anyhow::{Context, Result, bail};
use netpol_policy::model::Protocol;

pub use builder::ClusterBuilder;
pub use host::{Families, Host, Mac, OUTSIDE, Topology, gateway, node_name};
pub use overlay::Interconnect;
pub use pod::PodSpec;
pub use start_gate::StartGate;

use plugin::Plugin;

use crate::manifests::Manifests;
use crate::netns::Netns;
use crate::probe::{Probe, ProbeResult, probe_all};
use crate::serve::Servers;

/// A running cluster. Dropping it removes everything.
#[derive(Debug)]
pub struct Cluster {
    topology: Topology,
    interconnect: Interconnect,
    families: Families,
    /// The ports that every pod and the external host serve.
    serve: Vec<(Protocol, u16)>,
    /// All hosts, by name.
    hosts: BTreeMap<String, Host>,
    /// The descriptions of the pods, by `namespace/name`.
    specs: BTreeMap<String, PodSpec>,
    /// The first number to try for the next pod, see [`Self::free_number`].
    next_number: u8,
    /// How many veths were created for pods. It makes the name of each veth unique.
    last_link_number: u32,
    /// The CNI plugin that connects pods, if the topology uses one.
    plugin: Option<Plugin>,
    servers: Servers,
    manifests: Manifests,
    // The tunnel between nodes, if the interconnect uses one.
    _tunnel: Option<tunnel::Tunnel>,
    // The network namespace with the bridge that connects the nodes and the external host.
    _fabric: Netns,
}

impl Cluster {
    /// Returns a builder.
    pub fn builder() -> ClusterBuilder {
        ClusterBuilder::default()
    }

    /// Returns the address families in use.
    pub const fn families(&self) -> Families {
        self.families
    }

    /// Returns how pods are connected to their node.
    pub const fn topology(&self) -> Topology {
        self.topology
    }

    /// Returns how nodes reach each other's pods.
    pub const fn interconnect(&self) -> Interconnect {
        self.interconnect
    }

    /// Returns the directory with this cluster's manifests.
    pub const fn manifests(&self) -> &Manifests {
        &self.manifests
    }

    /// Returns the host with this name: `namespace/name` of a pod, `node-1`, [`OUTSIDE`], or an address from
    /// [`ClusterBuilder::outside`].
    ///
    /// # Panics
    /// Panics if no host has this name, which is an error in the test.
    pub fn host(&self, name: &str) -> &Host {
        self.hosts.get(name).unwrap_or_else(|| panic!("no host {name:?}; hosts: {:?}", self.hosts.keys()))
    }

    /// Returns the nodes.
    pub fn nodes(&self) -> impl Iterator<Item = &Host> {
        self.hosts.values().filter(|host| host.kind == host::HostKind::Node)
    }

    /// Returns the host that has this address.
    pub fn host_at(&self, address: IpAddr) -> Option<&Host> {
        self.hosts.values().find(|host| host.addresses().contains(&address))
    }

    /// Returns the pods, sorted by `namespace/name`.
    pub fn pods(&self) -> impl Iterator<Item = &PodSpec> {
        self.specs.values()
    }

    /// Returns the names of the hosts at the ends of connections in a [`crate::Matrix`]: pods, then the external
    /// host and its extra addresses.
    pub fn ends(&self) -> Vec<String> {
        let outside = self.hosts.values().filter(|host| host.is_outside()).map(|host| host.name().to_owned());
        self.specs.keys().cloned().chain(outside).collect()
    }

    /// Adds a pod: first its network namespace, veth, addresses and servers, and then its manifest. The manifest is
    /// last, because a kubelet reports a pod's addresses after the CNI plugin has ended.
    ///
    /// # Errors
    /// Returns an error if a kernel request fails, or the name is in use.
    pub fn add_pod(&mut self, spec: PodSpec) -> Result<()> {
        self.add_pods(vec![spec])
    }

    /// Adds pods in parallel.
    ///
    /// # Errors
    /// Same as [`Self::add_pod`]. After an error, some of the pods may exist, without manifests.
    pub fn add_pods(&mut self, specs: Vec<PodSpec>) -> Result<()> {
        for name in self.wire_pods(specs)? {
            self.write_manifest(&name)?;
        }
        Ok(())
    }

    /// Adds a pod without a manifest; [`Self::write_manifest`] writes it.
    ///
    /// # Errors
    /// Same as [`Self::add_pod`].
    pub fn add_pod_without_manifest(&mut self, spec: PodSpec) -> Result<()> {
        self.wire_pods(vec![spec]).map(|_| ())
    }

    /// Connects pods to their nodes and starts servers in the pods. Returns the names of the pods.
    fn wire_pods(&mut self, mut specs: Vec<PodSpec>) -> Result<Vec<String>> {
        let requested: BTreeSet<u8> = specs.iter().filter_map(|spec| spec.number).collect();
        let mut links = Vec::new();
        for spec in &mut specs {
            let name = spec.full_name();
            if self.hosts.contains_key(&name) {
                bail!("pod {name} already exists");
            }
            // A CNI plugin selects addresses itself, so the pod needs no number.
            if self.plugin.is_none() && spec.number.is_none() {
                spec.number = Some(self.free_number(&requested)?);
            }
            self.last_link_number += 1;
            links.push(self.last_link_number);
        }
        let cluster = &*self;
        let connected: Vec<Result<Host>> = std::thread::scope(|scope| {
            let wire = |(spec, link)| scope.spawn(move || cluster.wire_pod(spec, link));
            let workers: Vec<_> = specs.iter().zip(links).map(wire).collect();
            workers.into_iter().map(|worker| worker.join().expect("the thread that connects a pod panicked")).collect()
        });
        let mut names = Vec::new();
        for (spec, host) in specs.into_iter().zip(connected) {
            let host = host?;
            let name = spec.full_name();
            self.servers.serve(&host, &self.serve)?;
            self.hosts.insert(name.clone(), host);
            self.specs.insert(name.clone(), spec);
            names.push(name);
        }
        Ok(names)
    }

    /// Creates a pod's network namespace and connects it to the node. `link` makes the name of the veth unique.
    fn wire_pod(&self, spec: &PodSpec, link: u32) -> Result<Host> {
        let (node, name) = (self.host(&node_name(spec.node)), spec.full_name());
        let host = match (&self.plugin, spec.number) {
            (Some(plugin), number) => plugin.wire_pod(node, &name, number),
            (None, Some(number)) => {
                wiring::wire_pod(node, &name, spec.node, number, link, self.topology, self.families)
            }
            (None, None) => bail!("pod {name} has no number"),
        };
        host.with_context(|| format!("connecting pod {name} to {}", node.name()))
    }

    /// Returns the next number that no pod has, and that is not in `requested`. The number of a pod is the last part of
    /// its addresses. Numbers of removed pods are reused last.
    fn free_number(&mut self, requested: &BTreeSet<u8>) -> Result<u8> {
        const FIRST: u8 = 10;
        for _ in FIRST..=u8::MAX {
            let number = self.next_number;
            self.next_number = number.checked_add(1).unwrap_or(FIRST);
            if !requested.contains(&number) && self.specs.values().all(|spec| spec.number != Some(number)) {
                return Ok(number);
            }
        }
        bail!("all pod numbers are in use")
    }

    /// Removes a pod: first its manifest, and then its servers, network namespace and veth.
    ///
    /// # Errors
    /// Returns an error if the pod does not exist, or its manifest or veth cannot be removed.
    pub fn remove_pod(&mut self, name: &str) -> Result<()> {
        self.manifests.remove(&pod_file(name))?;
        self.remove_pod_keep_manifest(name)
    }

    /// Removes pods in parallel: first their servers, network namespaces and veths, and then their manifests, as a
    /// kubelet does.
    ///
    /// # Errors
    /// Same as [`Self::remove_pod`].
    pub fn remove_pods(&mut self, names: &[String]) -> Result<()> {
        self.unwire_pods(names)?;
        names.iter().try_for_each(|name| self.manifests.remove(&pod_file(name)))
    }

    /// Removes a pod, but keeps its manifest.
    ///
    /// # Errors
    /// Returns an error if the pod does not exist, or its veth cannot be removed.
    pub fn remove_pod_keep_manifest(&mut self, name: &str) -> Result<()> {
        self.unwire_pods(&[name.to_owned()])
    }

    fn unwire_pods(&mut self, names: &[String]) -> Result<()> {
        let mut pods = Vec::new();
        for name in names {
            pods.push(self.hosts.remove(name).with_context(|| format!("no pod {name}"))?);
            self.specs.remove(name);
            self.servers.stop(name);
        }
        let cluster = &*self;
        std::thread::scope(|scope| {
            let workers: Vec<_> = pods.iter().map(|pod| scope.spawn(move || cluster.unwire_pod(pod))).collect();
            workers
                .into_iter()
                .try_for_each(|worker| worker.join().expect("the thread that disconnects a pod panicked"))
        })
    }

    fn unwire_pod(&self, pod: &Host) -> Result<()> {
        match &self.plugin {
            Some(plugin) => plugin.unwire_pod(self.host(&node_name(pod.node)), pod),
            // Without this command, the kernel would delete the veth together with the pod's network namespace, a few
            // milliseconds after the namespace's last descriptor is closed.
            None => pod.netns().ip("link delete eth0"),
        }
    }

    /// Writes a pod's current manifest.
    ///
    /// # Errors
    /// Returns an error if the pod does not exist, or the manifest cannot be written.
    pub fn write_manifest(&self, name: &str) -> Result<()> {
        let spec = self.specs.get(name).with_context(|| format!("no pod {name}"))?;
        self.manifests.write(&pod_file(name), &spec.manifest(self.host(name).addresses()))
    }

    /// Removes a pod's manifest, but keeps the pod.
    ///
    /// # Errors
    /// Returns an error if the manifest does not exist.
    pub fn remove_manifest(&self, name: &str) -> Result<()> {
        self.manifests.remove(&pod_file(name))
    }

    /// Writes the manifest of a pod that is scheduled and has no addresses yet.
    ///
    /// # Errors
    /// Returns an error if the manifest cannot be written.
    pub fn schedule_pod(&self, spec: &PodSpec) -> Result<()> {
        self.manifests.write(&pod_file(&spec.full_name()), &spec.clone().phase("Pending").manifest(&[]))
    }

    /// Changes a pod's description and writes its manifest.
    ///
    /// # Errors
    /// Returns an error if the pod does not exist or its manifest cannot be written.
    pub fn edit_pod(&mut self, name: &str, edit: impl FnOnce(PodSpec) -> PodSpec) -> Result<()> {
        let spec = self.specs.remove(name).with_context(|| format!("no pod {name}"))?;
        self.specs.insert(name.to_owned(), edit(spec));
        self.write_manifest(name)
    }

    /// Writes or replaces the manifest of a namespace. The new manifest has exactly these labels.
    ///
    /// # Errors
    /// Returns an error if the manifest cannot be written.
    pub fn label_namespace(&self, name: &str, labels: &str) -> Result<()> {
        self.manifests.write(&format!("namespace-{name}.yaml"), &pod::namespace_manifest(name, labels))
    }

    /// Writes or replaces a file of policies.
    ///
    /// # Errors
    /// Returns an error if the file cannot be written.
    pub fn apply(&self, file: &str, yaml: &str) -> Result<()> {
        self.manifests.write(&format!("policy-{file}.yaml"), yaml)
    }

    /// Removes a file of policies.
    ///
    /// # Errors
    /// Returns an error if the file does not exist.
    pub fn delete(&self, file: &str) -> Result<()> {
        self.manifests.remove(&format!("policy-{file}.yaml"))
    }

    /// Returns a probe between two hosts, to the destination's first address of a family that the source has, too.
    ///
    /// # Panics
    /// Panics if a host does not exist, or the hosts have no common address family.
    pub fn probe(&self, from: &str, to: &str, protocol: Protocol, port: u16) -> Probe {
        let (source, destination) = (self.host(from), self.host(to));
        let address = destination
            .addresses()
            .iter()
            .copied()
            .find(|address| source.address_of_same_family(*address).is_some())
            .unwrap_or_else(|| panic!("{from} and {to} have no common address family"));
        Probe { from: from.into(), to: to.into(), address, protocol, port }
    }

    /// Returns a probe to each address of the destination, for the families that both hosts have.
    pub fn probes(&self, from: &str, to: &str, protocol: Protocol, port: u16) -> Vec<Probe> {
        let (source, destination) = (self.host(from), self.host(to));
        let reachable =
            destination.addresses().iter().filter(|address| source.address_of_same_family(**address).is_some());
        reachable.map(|&address| Probe { from: from.into(), to: to.into(), address, protocol, port }).collect()
    }

    /// Runs all probes in parallel.
    ///
    /// # Errors
    /// Returns an error if a socket cannot be created.
    pub fn try_all(&self, probes: &[Probe]) -> Result<Vec<ProbeResult>> {
        probe_all(self, probes)
    }

    /// Probes TCP at one address.
    ///
    /// # Errors
    /// Returns an error if a socket cannot be created.
    pub fn try_tcp(&self, from: &str, to: &str, address: IpAddr, port: u16) -> Result<ProbeResult> {
        let probe = Probe { from: from.into(), to: to.into(), address, protocol: Protocol::Tcp, port };
        Ok(self.try_all(&[probe])?.remove(0))
    }

    /// Starts servers for additional ports of a host.
    ///
    /// # Errors
    /// Returns an error if a port cannot be bound.
    pub fn serve_at(&mut self, name: &str, ports: &[(Protocol, u16)]) -> Result<()> {
        let host = self.host(name).clone();
        self.servers.serve(&host, ports)
    }

    /// Returns the inodes of the hosts' network namespaces, to check later that these namespaces were removed.
    ///
    /// # Errors
    /// Returns an error if the kernel does not report an inode.
    pub fn inodes(&self) -> Result<Vec<u64>> {
        self.hosts.values().map(|host| host.netns().inode()).collect()
    }
}

fn pod_file(name: &str) -> String {
    format!("pod-{}.yaml", name.replace('/', "-"))
}
