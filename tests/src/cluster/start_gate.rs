//! The start gate with CNI: the tests call the CNI plugin `netpol-cni` after the plugin that connects a pod, as a
//! container runtime does. The call of `netpol-cni` lasts until the pod's policies are enforced.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::plugin::{CniCommand, INTERFACE, call};
use super::{Cluster, node_name};
use crate::agent::netpol_cni;
use crate::netns::Netns;

/// Calls `netpol-cni` with these settings.
#[derive(Clone, Debug)]
pub struct StartGate {
    socket: PathBuf,
    when_agent_away: &'static str,
    timeout_seconds: u16,
}

impl StartGate {
    /// Creates settings with which `netpol-cni` calls the agent at this API socket.
    pub fn new(socket: &Path) -> Self {
        Self { socket: socket.to_owned(), when_agent_away: "wait", timeout_seconds: 20 }
    }

    /// Sets what `netpol-cni` does if the agent does not respond: `wait`, `deny` or `allow`.
    #[must_use]
    pub const fn when_agent_away(mut self, choice: &'static str) -> Self {
        self.when_agent_away = choice;
        self
    }

    /// Sets how long a call may wait, in seconds.
    #[must_use]
    pub const fn timeout_seconds(mut self, seconds: u16) -> Self {
        self.timeout_seconds = seconds;
        self
    }

    /// Calls the command `ADD` of `netpol-cni`, which waits until a pod may start. The cluster's CNI plugin must have
    /// connected the pod before.
    ///
    /// # Errors
    /// Returns an error with the output of `netpol-cni` if the pod may not start now, or if the result differs from
    /// that of the cluster's plugin.
    pub fn add(&self, cluster: &Cluster, pod: &str) -> Result<()> {
        let plugin = cluster.plugin.as_ref().context("the topology has no CNI plugin")?;
        let previous = plugin.result(pod).with_context(|| format!("the plugin did not connect {pod}"))?;
        let result = self.call(cluster, CniCommand::Add, pod, node_and_netns(cluster, pod), &previous)?;
        let result: Value = serde_json::from_slice(&result).context("parsing the result of netpol-cni")?;
        ensure!(result == previous, "netpol-cni changed {previous} to {result}");
        Ok(())
    }

    /// Does the same as [`Self::add`] for a pod that is connected without the cluster's plugin, for example by
    /// [`crate::PodSlots`]. The pod must be on the first node.
    ///
    /// # Errors
    /// Same as [`Self::add`].
    pub fn add_at(&self, cluster: &Cluster, pod: &str, netns: &Netns, address: Ipv4Addr) -> Result<()> {
        let previous = json!({
            "cniVersion": "1.0.0",
            "interfaces": [{"name": INTERFACE, "sandbox": netns.path()}],
            "ips": [{"address": format!("{address}/24"), "interface": 0}],
        });
        self.call(cluster, CniCommand::Add, pod, (1, netns), &previous).map(drop)
    }

    /// Calls the command `DEL` of `netpol-cni`, before the cluster's plugin disconnects a pod that stops.
    ///
    /// # Errors
    /// Returns an error with the output of `netpol-cni` if it fails.
    pub fn delete(&self, cluster: &Cluster, pod: &str) -> Result<()> {
        let output = self.call(cluster, CniCommand::Delete, pod, node_and_netns(cluster, pod), &Value::Null)?;
        ensure!(output.is_empty(), "netpol-cni DEL printed {}", String::from_utf8_lossy(&output));
        Ok(())
    }

    fn call(
        &self,
        cluster: &Cluster,
        command: CniCommand,
        pod: &str,
        (node, netns): (u8, &Netns),
        previous: &Value,
    ) -> Result<Vec<u8>> {
        let configuration = json!({
            "cniVersion": "1.0.0",
            "name": "pods",
            "type": "netpol-cni",
            "socket": self.socket,
            "whenAgentAway": self.when_agent_away,
            "timeoutSeconds": self.timeout_seconds,
            "prevResult": previous,
        });
        call(&netpol_cni()?, command, cluster.host(&node_name(node)), pod, netns, &configuration)
    }
}

/// Returns the number of a pod's node, and the pod's network namespace.
fn node_and_netns<'a>(cluster: &'a Cluster, pod: &str) -> (u8, &'a Netns) {
    let host = cluster.host(pod);
    (host.node, host.netns())
}
