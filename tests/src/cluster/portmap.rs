//! Maps hostPorts with the CNI plugin portmap. A container runtime calls portmap after the plugin that connects the
//! pod.
//!
//! Source: <https://www.cni.dev/plugins/current/meta/portmap/>. The rules of portmap are in the node's network
//! namespace, and are removed with the namespace.

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::plugin::{CniCommand, INTERFACE, PLUGINS, call};
use super::{Cluster, PodSpec, node_name};

impl Cluster {
    /// Maps the hostPorts that [`PodSpec::host_port`] added to a pod's description.
    ///
    /// # Errors
    /// Returns an error if the pod does not exist, or the plugin fails.
    pub fn map_host_ports(&self, pod: &str) -> Result<()> {
        let spec = self.specs.get(pod).with_context(|| format!("no pod {pod}"))?;
        let (node, host) = (self.host(&node_name(spec.node)), self.host(pod));
        let configuration = configuration(spec, host.netns().path().as_str(), host.addresses());
        let executable = Path::new(PLUGINS).join("portmap");
        call(&executable, CniCommand::Add, node, pod, host.netns(), &configuration).map(|_| ())
    }
}

fn configuration(spec: &PodSpec, sandbox: &str, addresses: &[std::net::IpAddr]) -> Value {
    let mappings: Vec<_> = spec
        .host_ports
        .iter()
        .map(|(protocol, port, host_port)| {
            json!({"hostPort": host_port, "containerPort": port, "protocol": protocol.name().to_lowercase()})
        })
        .collect();
    let prefix = |address: &std::net::IpAddr| super::wiring::host_prefix(*address);
    let ips: Vec<_> = addresses
        .iter()
        .map(|address| json!({"address": format!("{address}/{}", prefix(address)), "interface": 0}))
        .collect();
    json!({
        "cniVersion": "1.0.0",
        "name": "pods",
        "type": "portmap",
        "capabilities": {"portMappings": true},
        "runtimeConfig": {"portMappings": mappings},
        "prevResult": {
            "cniVersion": "1.0.0",
            "interfaces": [{"name": INTERFACE, "sandbox": sandbox}],
            "ips": ips,
        },
    })
}
