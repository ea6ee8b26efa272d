//! Nodes, pods and a host outside, wired and serving.

mod builder;
mod host;
mod overlay;
mod plugin;
mod pod;
mod portmap;
mod tunnel;
mod wiring;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use anyhow::{Context, Result, bail};
use netpol_policy::model::Protocol;

pub use builder::ClusterBuilder;
pub use host::{Families, Host, Mac, OUTSIDE, Topology, gateway, node_name};
pub use overlay::Between;
pub use pod::PodSpec;

use plugin::Plugin;

use crate::manifests::Manifests;
use crate::netns::Netns;
use crate::probe::{Outcome, Probe, probe_all};
use crate::serve::Servers;

/// A running cluster. Dropping it takes everything down.
#[derive(Debug)]
pub struct Cluster {
    topology: Topology,
    between: Between,
    families: Families,
    serve: Vec<(Protocol, u16)>,
    hosts: BTreeMap<String, Host>,
    specs: BTreeMap<String, PodSpec>,
    next_number: u8,
    next_link: u32,
    /// Who wires pods, where that is not the harness.
    plugin: Option<Plugin>,
    servers: Servers,
    manifests: Manifests,
    // Where nodes reach each other's pods by one.
    _tunnel: Option<tunnel::Tunnel>,
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

    /// How nodes reach each other's pods.
    pub const fn between(&self) -> Between {
        self.between
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

    /// The nodes there are.
    pub fn nodes(&self) -> impl Iterator<Item = &Host> {
        self.hosts.values().filter(|host| host.kind == host::Kind::Node)
    }

    /// Who has an address: a pod, a node, or an outside host.
    pub fn host_at(&self, address: IpAddr) -> Option<&Host> {
        self.hosts.values().find(|host| host.addresses().contains(&address))
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
        self.add_pods(vec![spec])
    }

    /// Makes pods, all at once.
    ///
    /// # Errors
    /// Like [`Self::add_pod`]; those that could be made are there then.
    pub fn add_pods(&mut self, specs: Vec<PodSpec>) -> Result<()> {
        for name in self.wire_pods(specs)? {
            self.announce(&name)?;
        }
        Ok(())
    }

    /// Makes a pod that the manifests do not tell of yet; [`Self::announce`] does.
    ///
    /// # Errors
    /// Like [`Self::add_pod`].
    pub fn add_pod_quietly(&mut self, spec: PodSpec) -> Result<()> {
        self.wire_pods(vec![spec]).map(|_| ())
    }

    fn wire_pods(&mut self, mut specs: Vec<PodSpec>) -> Result<Vec<String>> {
        let asked: BTreeSet<u8> = specs.iter().filter_map(|spec| spec.number).collect();
        let mut links = Vec::new();
        for spec in &mut specs {
            let name = spec.full_name();
            if self.hosts.contains_key(&name) {
                bail!("there is a pod {name} already");
            }
            // A plugin numbers by itself.
            if self.plugin.is_none() && spec.number.is_none() {
                spec.number = Some(self.free_number(&asked)?);
            }
            self.next_link += 1;
            links.push(self.next_link);
        }
        let cluster = &*self;
        let wired: Vec<Result<Host>> = std::thread::scope(|scope| {
            let wire = |(spec, link)| scope.spawn(move || cluster.wire_pod(spec, link));
            let workers: Vec<_> = specs.iter().zip(links).map(wire).collect();
            workers.into_iter().map(|worker| worker.join().expect("who wires a pod does not panic")).collect()
        });
        let mut names = Vec::new();
        for (spec, host) in specs.into_iter().zip(wired) {
            let host = host?;
            let name = spec.full_name();
            self.servers.serve(&host, &self.serve)?;
            self.hosts.insert(name.clone(), host);
            self.specs.insert(name.clone(), spec);
            names.push(name);
        }
        Ok(names)
    }

    fn wire_pod(&self, spec: &PodSpec, link: u32) -> Result<Host> {
        let (node, name) = (self.host(&node_name(spec.node)), spec.full_name());
        let host = match (&self.plugin, spec.number) {
            (Some(plugin), number) => plugin.wire_pod(node, &name, number),
            (None, Some(number)) => {
                wiring::wire_pod(node, &name, spec.node, number, link, self.topology, self.families)
            }
            (None, None) => bail!("pod {name} has no number"),
        };
        host.with_context(|| format!("wiring pod {name} to {}", node.name()))
    }

    /// The next number that no pod has or is asked for; those of pods that are gone come last.
    fn free_number(&mut self, asked: &BTreeSet<u8>) -> Result<u8> {
        const FIRST: u8 = 10;
        for _ in FIRST..=u8::MAX {
            let number = self.next_number;
            self.next_number = number.checked_add(1).unwrap_or(FIRST);
            if !asked.contains(&number) && self.specs.values().all(|spec| spec.number != Some(number)) {
                return Ok(number);
            }
        }
        bail!("every number is a pod's")
    }

    /// Takes a pod away: its manifest, its servers, its namespace and veth.
    ///
    /// # Errors
    /// Where there is none, or its manifest or link cannot be removed.
    pub fn remove_pod(&mut self, name: &str) -> Result<()> {
        self.manifests.remove(&pod_file(name))?;
        self.remove_pod_quietly(name)
    }

    /// Takes pods away, all at once: first what is on the network, then the manifests, as a kubelet does.
    ///
    /// # Errors
    /// Like [`Self::remove_pod`].
    pub fn remove_pods(&mut self, names: &[String]) -> Result<()> {
        self.unwire_pods(names)?;
        names.iter().try_for_each(|name| self.manifests.remove(&pod_file(name)))
    }

    /// Takes a pod away, but leaves its manifest.
    ///
    /// # Errors
    /// Where there is none, or its link cannot be removed.
    pub fn remove_pod_quietly(&mut self, name: &str) -> Result<()> {
        self.unwire_pods(&[name.to_owned()])
    }

    fn unwire_pods(&mut self, names: &[String]) -> Result<()> {
        let mut pods = Vec::new();
        for name in names {
            pods.push(self.hosts.remove(name).with_context(|| format!("no pod {name} to remove"))?);
            self.specs.remove(name);
            self.servers.stop(name);
        }
        let cluster = &*self;
        std::thread::scope(|scope| {
            let workers: Vec<_> = pods.iter().map(|pod| scope.spawn(move || cluster.unwire_pod(pod))).collect();
            workers.into_iter().try_for_each(|worker| worker.join().expect("who unwires a pod does not panic"))
        })
    }

    fn unwire_pod(&self, pod: &Host) -> Result<()> {
        match &self.plugin {
            Some(plugin) => plugin.unwire_pod(self.host(&node_name(pod.node)), pod),
            // Explicitly, as the namespace itself goes some milliseconds after its last descriptor.
            None => pod.netns().ip("link delete eth0"),
        }
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
