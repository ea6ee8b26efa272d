//! Writes the rules that kube-proxy writes for Services, in its nftables and iptables modes.
//!
//! Features that do not affect verdicts are missing: session affinity, traffic policies, and rejection at Services
//! without backends. Source: <https://github.com/kubernetes/kubernetes/tree/v1.33.0/pkg/proxy>.

mod iptables;
mod nftables;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result};
use netpol_policy::model::Protocol;

use crate::cluster::Cluster;
use crate::netns::Netns;
use crate::service::Service;

/// kube-proxy's mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Verdict maps of nftables (`vmap`).
    Nftables,
    /// Chains of iptables, written with `iptables-nft`.
    Iptables,
}

/// Mark bit of packets to masquerade: packets through a `NodePort`, packets from outside the cluster, and packets from
/// a backend to itself. `masqueradeAll` is not used.
const MASQUERADE: &str = "0x4000";

/// Returns the network of all pods.
const fn pod_network(is_ipv4: bool) -> &'static str {
    if is_ipv4 { "10.244.0.0/16" } else { "fd77::/32" }
}

/// The rules of kube-proxy on every node of a cluster. No kube-proxy runs: the test harness writes the rules.
#[derive(Debug)]
pub struct KubeProxy {
    mode: Mode,
    nodes: Vec<Netns>,
}

/// A frontend: a port of a Service at one of the Service's addresses, and its backends.
#[derive(Debug)]
struct Frontend {
    address: IpAddr,
    protocol: Protocol,
    port: u16,
    /// The `NodePort` with the same backends, if any.
    node_port: Option<u16>,
    /// The addresses and ports of the backends.
    targets: Vec<SocketAddr>,
}

impl KubeProxy {
    /// Prepares every node for the rules of kube-proxy. [`Self::sync`] then writes the rules.
    ///
    /// # Errors
    /// Returns an error if a kernel request fails.
    pub fn start(cluster: &Cluster, mode: Mode) -> Result<Self> {
        let proxy = Self { mode, nodes: cluster.nodes().map(|node| node.netns().clone()).collect() };
        for node in &proxy.nodes {
            set_bridge_netfilter(node, true)?;
            if mode == Mode::Iptables {
                iptables::prepare(node)?;
            }
        }
        Ok(proxy)
    }

    /// Sets the Services that every node translates. Established connections are not affected.
    ///
    /// # Errors
    /// Returns an error if a kernel request fails.
    pub fn sync(&self, services: &[Service]) -> Result<()> {
        let frontends: Vec<_> = services.iter().flat_map(frontends).collect();
        for node in &self.nodes {
            for is_ipv4 in [true, false] {
                let family_frontends: Vec<_> =
                    frontends.iter().filter(|frontend| frontend.address.is_ipv4() == is_ipv4).collect();
                match self.mode {
                    Mode::Nftables => node.nft(&nftables::rules(&family_frontends, is_ipv4))?,
                    Mode::Iptables => iptables::restore(node, is_ipv4, &iptables::rules(&family_frontends, is_ipv4))?,
                }
            }
        }
        Ok(())
    }

    /// Returns how many connections the nodes have sent to each backend since [`Self::sync`].
    ///
    /// # Errors
    /// Returns an error if the kernel does not report the counts.
    pub fn sent_connections(&self) -> Result<BTreeMap<SocketAddr, u64>> {
        let mut sent = BTreeMap::new();
        for node in &self.nodes {
            let rules = match self.mode {
                Mode::Nftables => nftables::rules_with_counts(node)?,
                Mode::Iptables => iptables::rules_with_counts(node)?,
            };
            for line in rules.lines() {
                let (backend, count) = match self.mode {
                    Mode::Nftables => (nftables::backend(line), nftables::count(line)),
                    Mode::Iptables => (iptables::backend(line), iptables::count(line)),
                };
                let Some(backend) = backend else { continue };
                let backend = backend.parse().with_context(|| format!("parsing the backend in {line:?}"))?;
                *sent.entry(backend).or_default() += count.with_context(|| format!("no count in {line:?}"))?;
            }
        }
        Ok(sent)
    }
}

/// Sets whether iptables and nftables process bridged packets. kube-proxy requires that they do.
///
/// # Errors
/// Returns an error if a kernel request fails.
pub fn set_bridge_netfilter(node: &Netns, enabled: bool) -> Result<()> {
    let names = ["bridge/bridge-nf-call-iptables", "bridge/bridge-nf-call-ip6tables"];
    node.sysctl(&names.map(|name| (name, if enabled { "1" } else { "0" })))
}

fn frontends(service: &Service) -> impl Iterator<Item = Frontend> {
    service.addresses().iter().flat_map(move |&address| {
        service.ports().iter().map(move |port| Frontend {
            address,
            protocol: port.protocol,
            port: port.port,
            node_port: port.node_port,
            targets: service.targets(address.is_ipv4(), port),
        })
    })
}

/// Returns the name of a protocol in rules.
fn protocol_name(protocol: Protocol) -> String {
    protocol.name().to_lowercase()
}
