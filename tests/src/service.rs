//! Services and their backends, as manifests tell of them and as [`crate::proxy`] translates.

use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};

use anyhow::Result;
use netpol_policy::model::Protocol;

use crate::cluster::Cluster;

/// A Service, with the addresses of its backends.
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
    /// At the Service's addresses.
    pub(crate) port: u16,
    /// At its backends.
    pub(crate) target: u16,
    /// At every node's addresses.
    pub(crate) node_port: Option<u16>,
}

impl Service {
    /// One by `namespace/name`, at its addresses: IPv4, IPv6, or both.
    ///
    /// # Panics
    /// Where the name is not of that form.
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

    /// Selects its backends by a label, such as `app: good`; its manifest then has no `EndpointSlice`, as in a repository.
    #[must_use]
    pub fn selecting(mut self, label: &str) -> Self {
        self.selector = Some(label.to_owned());
        self
    }

    /// A port, and the one it leads to.
    #[must_use]
    pub fn port(mut self, protocol: Protocol, port: u16, target: u16) -> Self {
        self.ports.push(ServicePort { protocol, port, target, node_port: None });
        self
    }

    /// The same, which every node has too.
    #[must_use]
    pub fn node_port(mut self, protocol: Protocol, port: u16, target: u16, node_port: u16) -> Self {
        self.ports.push(ServicePort { protocol, port, target, node_port: Some(node_port) });
        self
    }

    /// Its backends, by name, instead of those it had: pods, or nodes for what runs in their network.
    #[must_use]
    pub fn backends(mut self, cluster: &Cluster, names: &[&str]) -> Self {
        self.backends = names.iter().flat_map(|name| cluster.host(name).addresses().to_vec()).collect();
        self
    }

    /// Tells of it, and of its backends as they are.
    ///
    /// # Errors
    /// Where its manifest cannot be written.
    pub fn announce(&self, cluster: &Cluster) -> Result<()> {
        cluster.manifests().write(&self.file(), &self.manifest())
    }

    /// Takes its manifest away.
    ///
    /// # Errors
    /// Where there is none.
    pub fn conceal(&self, cluster: &Cluster) -> Result<()> {
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

    /// Where a port leads, of the family of a Service's address.
    pub(crate) fn targets(&self, is_ipv4: bool, port: &ServicePort) -> Vec<SocketAddr> {
        let alike = self.backends.iter().filter(|address| address.is_ipv4() == is_ipv4);
        alike.map(|address| SocketAddr::new(*address, port.target)).collect()
    }

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
        let mut some = false;
        for address in self.backends.iter().filter(|address| address.is_ipv4() == is_ipv4) {
            some = true;
            let _ = writeln!(yaml, "- {{addresses: ['{address}'], conditions: {{ready: true}}}}");
        }
        if !some {
            yaml = yaml.trim_end().to_owned() + " []\n";
        }
        yaml
    }
}

fn port_name(protocol: &str, port: u16) -> String {
    format!("{}-{port}", protocol.to_lowercase())
}
