//! Pods and namespaces as manifests tell of them.

use std::fmt::Write;
use std::net::IpAddr;

use netpol_policy::model::Protocol;

use super::Families;
use super::host::{node_name, uplink_addresses};

/// A pod to be made.
#[derive(Clone, Debug)]
pub struct PodSpec {
    namespace: String,
    name: String,
    labels: String,
    ports: Vec<(String, Protocol, u16)>,
    pub(super) host_ports: Vec<(Protocol, u16, u16)>,
    phase: &'static str,
    created: &'static str,
    odd_ip: &'static str,
    pub(super) node: u8,
    pub(super) number: Option<u8>,
}

impl PodSpec {
    /// A pod on the first node, by `namespace/name`.
    ///
    /// # Panics
    /// Where the name is not of that form.
    pub fn new(name: &str) -> Self {
        let (namespace, name) = name.split_once('/').unwrap_or_else(|| panic!("{name:?} is not namespace/name"));
        Self {
            namespace: namespace.into(),
            name: name.into(),
            labels: String::new(),
            ports: Vec::new(),
            host_ports: Vec::new(),
            phase: "Running",
            created: "",
            odd_ip: "",
            node: 1,
            number: None,
        }
    }

    /// Its labels: `app=web,tier=front`.
    #[must_use]
    pub fn labels(mut self, labels: &str) -> Self {
        labels.clone_into(&mut self.labels);
        self
    }

    /// A named container port.
    #[must_use]
    pub fn port(mut self, name: &str, protocol: Protocol, port: u16) -> Self {
        self.ports.push((name.into(), protocol, port));
        self
    }

    /// A container port that is to be had at a port of its node too: `(protocol, container's, node's)`. Who makes that true is
    /// [`crate::Cluster::map_host_ports`].
    #[must_use]
    pub fn host_port(mut self, protocol: Protocol, port: u16, host_port: u16) -> Self {
        self.host_ports.push((protocol, port, host_port));
        self
    }

    /// The node it runs on, from 1.
    #[must_use]
    pub const fn node(mut self, node: u8) -> Self {
        self.node = node;
        self
    }

    /// The last part of its addresses, instead of the next free one.
    #[must_use]
    pub const fn number(mut self, number: u8) -> Self {
        self.number = Some(number);
        self
    }

    /// Its `status.phase`.
    #[must_use]
    pub const fn phase(mut self, phase: &'static str) -> Self {
        self.phase = phase;
        self
    }

    /// Its `metadata.creationTimestamp`; unless told, there is none, or an API server sets it.
    #[must_use]
    pub const fn created(mut self, time: &'static str) -> Self {
        self.created = time;
        self
    }

    /// Listed in its `status.podIPs` before the addresses that it has.
    #[must_use]
    pub const fn odd_ip(mut self, address: &'static str) -> Self {
        self.odd_ip = address;
        self
    }

    /// `namespace/name`.
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// Its namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Its manifest, with the addresses it got; that of its node is of the same families.
    pub fn manifest(&self, addresses: &[IpAddr]) -> String {
        let Self { namespace, name, .. } = self;
        let mut yaml = format!("apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  namespace: {namespace}\n");
        yaml += &labels_yaml(&self.labels);
        if !self.created.is_empty() {
            let _ = writeln!(yaml, "  creationTimestamp: \"{}\"", self.created);
        }
        let _ = write!(
            yaml,
            "spec:\n  nodeName: {}\n  containers:\n  - name: main\n    image: none\n",
            node_name(self.node)
        );
        if !self.ports.is_empty() || !self.host_ports.is_empty() {
            yaml += "    ports:\n";
        }
        for (port_name, protocol, port) in &self.ports {
            let protocol = protocol.name();
            let _ = writeln!(yaml, "    - {{name: {port_name}, protocol: {protocol}, containerPort: {port}}}");
        }
        for (protocol, port, host_port) in &self.host_ports {
            let protocol = protocol.name();
            let _ = writeln!(yaml, "    - {{protocol: {protocol}, containerPort: {port}, hostPort: {host_port}}}");
        }
        let _ = writeln!(yaml, "status:\n  phase: {}", self.phase);
        let is_alike = |host: &IpAddr| addresses.iter().any(|address| address.is_ipv4() == host.is_ipv4());
        let hosts = uplink_addresses(self.node, Families::Dual).into_iter().filter(is_alike);
        for (index, host) in hosts.enumerate() {
            if index == 0 {
                let _ = writeln!(yaml, "  hostIP: \"{host}\"\n  hostIPs:");
            }
            let _ = writeln!(yaml, "  - ip: \"{host}\"");
        }
        if let Some(first) = addresses.first() {
            let _ = writeln!(yaml, "  podIP: \"{first}\"\n  podIPs:");
            if !self.odd_ip.is_empty() {
                let _ = writeln!(yaml, "  - ip: \"{}\"", self.odd_ip);
            }
            for address in addresses {
                let _ = writeln!(yaml, "  - ip: \"{address}\"");
            }
        }
        yaml
    }
}

/// A namespace's manifest.
pub(super) fn namespace_manifest(name: &str, labels: &str) -> String {
    format!("apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {name}\n{}", labels_yaml(labels))
}

/// A node's manifest.
pub(super) fn node_manifest(name: &str, addresses: &[IpAddr]) -> String {
    let mut yaml = format!("apiVersion: v1\nkind: Node\nmetadata:\n  name: {name}\nstatus:\n  addresses:\n");
    for address in addresses {
        let _ = writeln!(yaml, "  - {{type: InternalIP, address: \"{address}\"}}");
    }
    yaml
}

fn labels_yaml(labels: &str) -> String {
    let mut yaml = String::new();
    for label in labels.split(',').map(str::trim).filter(|label| !label.is_empty()) {
        let (key, value) = label.split_once('=').unwrap_or((label, ""));
        if yaml.is_empty() {
            yaml += "  labels:\n";
        }
        let _ = writeln!(yaml, "    {key}: \"{value}\"");
    }
    yaml
}
