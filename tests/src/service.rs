//! Services and their backends: written as manifests for the agent, and passed to [`crate::proxy`], which writes
//! kube-proxy's rules for them.

use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};

use anyhow::Result;
use netpol_policy::model::Protocol;

use crate::cluster::Cluster;

/// A Service with its cluster IPs and the addresses of its backends.
#[derive(Clone, Debug)]
pub struct Service {
    namespace: String,
    name: String,
    addresses: Vec<IpAddr>,
    ports: Vec<ServicePort>,
    backends: Vec<IpAddr>,
    selector: Option<String>,
}

/// A port of a [`Service`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct ServicePort {
    pub(crate) protocol: Protocol,
    /// Port at the Service's addresses.
    pub(crate) port: u16,
    /// Port at the backends.
    pub(crate) target: u16,
    /// The `NodePort`, at the addresses of each node.
    pub(crate) node_port: Option<u16>,
}

impl Service {
    /// Creates a Service with the name `namespace/name`. `addresses` are its cluster IPs: an IPv4 address, an IPv6
    /// address, or one of each family.
    ///
    /// # Panics
    /// Panics if the name does not have the form `namespace/name`.
    pub fn new(name: &str, addresses: &[IpAddr]) -> Self {
        let (namespace, name) = name.split_once('/').unwrap_or_else(|| panic!("{name:?} is not namespace/name"));
        Self {
            namespace: namespace.into(),
            name: name.into(),
            addresses: addresses.to_vec(),
            ports: Vec::new(),
            backends: Vec::new(),
            selector: None,
        }
    }

    /// Selects backends by a label, such as `app: good`. The manifest then contains no `EndpointSlice`, like manifests
    /// in a repository.
    #[must_use]
    pub fn selecting(mut self, label: &str) -> Self {
        self.selector = Some(label.to_owned());
        self
    }

    /// Adds a port of the Service, and the target port at its backends.
    #[must_use]
    pub fn port(mut self, protocol: Protocol, port: u16, target: u16) -> Self {
        self.ports.push(ServicePort { protocol, port, target, node_port: None });
        self
    }

    /// Same as [`Self::port`], with a `NodePort`.
    #[must_use]
    pub fn node_port(mut self, protocol: Protocol, port: u16, target: u16, node_port: u16) -> Self {
        self.ports.push(ServicePort { protocol, port, target, node_port: Some(node_port) });
        self
    }

    /// Sets the backends by their names in the cluster: pods, or nodes for host-network backends.
    #[must_use]
    pub fn backends(mut self, cluster: &Cluster, names: &[&str]) -> Self {
        self.backends = names.iter().flat_map(|name| cluster.host(name).addresses().to_vec()).collect();
        self
    }

    /// Writes the manifest of the Service and of the `EndpointSlices` with its backends.
    ///
    /// # Errors
    /// Returns an error if the manifest cannot be written.
    pub fn write_manifest(&self, cluster: &Cluster) -> Result<()> {
        cluster.manifests().write(&self.file(), &self.manifest())
    }

    /// Removes the manifest.
    ///
    /// # Errors
    /// Returns an error if the manifest does not exist.
    pub fn remove_manifest(&self, cluster: &Cluster) -> Result<()> {
        cluster.manifests().remove(&self.file())
    }

    fn file(&self) -> String {
        format!("service-{}-{}.yaml", self.namespace, self.name)
    }

    pub(crate) fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }

    pub(crate) fn ports(&self) -> &[ServicePort] {
        &self.ports
    }

    /// Returns the backends of a port, for one family: the address of each backend, with the target port.
    pub(crate) fn targets(&self, is_ipv4: bool, port: &ServicePort) -> Vec<SocketAddr> {
        let of_family = self.backends.iter().filter(|address| address.is_ipv4() == is_ipv4);
        of_family.map(|address| SocketAddr::new(*address, port.target)).collect()
    }

    /// Returns the manifest. If the Service has a selector, the manifest has no `EndpointSlice`.
    fn manifest(&self) -> String {
        let Self { namespace, name, .. } = self;
        let has_node_ports = self.ports.iter().any(|port| port.node_port.is_some());
        let kind = if has_node_ports { "NodePort" } else { "ClusterIP" };
        let addresses: Vec<_> = self.addresses.iter().map(|address| format!("'{address}'")).collect();
        let mut yaml = format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{namespace: {namespace}, name: {name}}}\nspec:\n  type: {kind}\n  \
             clusterIP: {}\n  clusterIPs: [{}]\n  ports:\n",
            addresses[0],
            addresses.join(", ")
        );
        for ServicePort { protocol, port, target, node_port } in &self.ports {
            let node_port = node_port.map(|port| format!(", nodePort: {port}")).unwrap_or_default();
            let protocol = protocol.name();
            let _ = writeln!(
                yaml,
                "  - {{name: {}, protocol: {protocol}, port: {port}, targetPort: {target}{node_port}}}",
                port_name(protocol, *port)
            );
        }
        if let Some(selector) = &self.selector {
            let _ = writeln!(yaml, "  selector: {{{selector}}}");
            return yaml;
        }
        for (family, is_ipv4) in [("IPv4", true), ("IPv6", false)] {
            if self.addresses.iter().any(|address| address.is_ipv4() == is_ipv4) {
                yaml += &self.slice(family, is_ipv4);
            }
        }
        yaml
    }

    /// Returns the manifest of the `EndpointSlice` of a family.
    fn slice(&self, family: &str, is_ipv4: bool) -> String {
        let Self { namespace, name, .. } = self;
        let mut yaml = format!(
            "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  namespace: {namespace}\n  name: \
             {name}-{}\n  labels: {{kubernetes.io/service-name: {name}}}\naddressType: {family}\nports:\n",
            family.to_lowercase()
        );
        for ServicePort { protocol, port, target, .. } in &self.ports {
            let protocol = protocol.name();
            let name = port_name(protocol, *port);
            let _ = writeln!(yaml, "- {{name: {name}, protocol: {protocol}, port: {target}}}");
        }
        yaml += "endpoints:\n";
        let mut has_backends = false;
        for address in self.backends.iter().filter(|address| address.is_ipv4() == is_ipv4) {
            has_backends = true;
            let _ = writeln!(yaml, "- {{addresses: ['{address}'], conditions: {{ready: true}}}}");
        }
        if !has_backends {
            yaml = yaml.trim_end().to_owned() + " []\n";
        }
        yaml
    }
}

fn port_name(protocol: &str, port: u16) -> String {
    format!("{}-{port}", protocol.to_lowercase())
}
