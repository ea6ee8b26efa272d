//! Descriptions of the test cluster's pods, and manifests of its pods, namespaces and nodes.

use std::fmt::Write;
use std::net::IpAddr;

use netpol_policy::model::Protocol;

use super::Families;
use super::host::{node_name, uplink_addresses};

/// Description of a pod. Each field is documented at the method that sets it.
#[derive(Clone, Debug)]
pub struct PodSpec {
    namespace: String,
    name: String,
    labels: String,
    ports: Vec<(String, Protocol, u16)>,
    pub(super) host_ports: Vec<(Protocol, u16, u16)>,
    phase: &'static str,
    created: &'static str,
    extra_pod_ip: &'static str,
    pub(super) node: u8,
    pub(super) number: Option<u8>,
}

impl PodSpec {
    /// Describes a pod on the first node, by `namespace/name`.
    ///
    /// # Panics
    /// Panics if the name has another form.
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
            extra_pod_ip: "",
            node: 1,
            number: None,
        }
    }

    /// Sets the labels, for example `app=web,tier=front`.
    #[must_use]
    pub fn labels(mut self, labels: &str) -> Self {
        labels.clone_into(&mut self.labels);
        self
    }

    /// Adds a named container port.
    #[must_use]
    pub fn port(mut self, name: &str, protocol: Protocol, port: u16) -> Self {
        self.ports.push((name.into(), protocol, port));
        self
    }

    /// Adds a container port with a hostPort: `(protocol, container port, host port)`.
    /// [`crate::Cluster::map_host_ports`] creates the rules that translate the hostPort.
    #[must_use]
    pub fn host_port(mut self, protocol: Protocol, port: u16, host_port: u16) -> Self {
        self.host_ports.push((protocol, port, host_port));
        self
    }

    /// Sets the number of the pod's node. The first node has the number 1.
    #[must_use]
    pub const fn node(mut self, node: u8) -> Self {
        self.node = node;
        self
    }

    /// Sets the number of the pod, which is the last part of its addresses. The default is the next free number.
    #[must_use]
    pub const fn number(mut self, number: u8) -> Self {
        self.number = Some(number);
        self
    }

    /// Sets `status.phase`.
    #[must_use]
    pub const fn phase(mut self, phase: &'static str) -> Self {
        self.phase = phase;
        self
    }

    /// Sets `metadata.creationTimestamp`. By default, the manifest does not contain it, and a fake API server sets it.
    #[must_use]
    pub const fn created(mut self, time: &'static str) -> Self {
        self.created = time;
        self
    }

    /// Sets an additional address, which `status.podIPs` lists before the pod's own addresses. An empty text, the
    /// default, adds no address.
    #[must_use]
    pub const fn extra_pod_ip(mut self, address: &'static str) -> Self {
        self.extra_pod_ip = address;
        self
    }

    /// Returns `namespace/name`.
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// Returns the namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Returns the manifest of the pod with these addresses in `podIPs`. `hostIPs` has the node's addresses of the same
    /// families.
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
        let has_same_family = |host_ip: &IpAddr| addresses.iter().any(|address| address.is_ipv4() == host_ip.is_ipv4());
        let host_ips = uplink_addresses(self.node, Families::Dual).into_iter().filter(has_same_family);
        for (index, host_ip) in host_ips.enumerate() {
            if index == 0 {
                let _ = writeln!(yaml, "  hostIP: \"{host_ip}\"\n  hostIPs:");
            }
            let _ = writeln!(yaml, "  - ip: \"{host_ip}\"");
        }
        if let Some(first) = addresses.first() {
            let _ = writeln!(yaml, "  podIP: \"{first}\"\n  podIPs:");
            if !self.extra_pod_ip.is_empty() {
                let _ = writeln!(yaml, "  - ip: \"{}\"", self.extra_pod_ip);
            }
            for address in addresses {
                let _ = writeln!(yaml, "  - ip: \"{address}\"");
            }
        }
        yaml
    }
}

/// Returns a namespace's manifest.
pub(super) fn namespace_manifest(name: &str, labels: &str) -> String {
    format!("apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {name}\n{}", labels_yaml(labels))
}

/// Returns a node's manifest.
pub(super) fn node_manifest(name: &str, addresses: &[IpAddr]) -> String {
    let mut yaml = format!("apiVersion: v1\nkind: Node\nmetadata:\n  name: {name}\nstatus:\n  addresses:\n");
    for address in addresses {
        let _ = writeln!(yaml, "  - {{type: InternalIP, address: \"{address}\"}}");
    }
    yaml
}

/// Returns the lines of `metadata.labels` for labels such as `app=web,tier=front`.
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
