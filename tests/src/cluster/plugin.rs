//! Connects pods with the CNI plugins bridge and ptp, called as a container runtime calls them.
//!
//! Source: <https://www.cni.dev/docs/spec/>. The IPAM plugin host-local stores which address belongs to which pod (the
//! leases), in a temporary directory of the test cluster. Links, addresses and masquerading rules are in the node's
//! network namespace, and are removed with the namespace.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::IpAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::host::{HostKind, pod_addresses};
use super::wiring::{network_prefix, set_sysctls};
use super::{Families, Host, Mac, Topology};
use crate::cleanup::{PathGuard, temporary_root, unique};
use crate::netns::Netns;

/// Directory of the plugins in Debian's package containernetworking-plugins.
pub(super) const PLUGINS: &str = "/usr/lib/cni";

/// Name that container runtimes give to the pod's end of a veth.
pub(super) const INTERFACE: &str = "eth0";

/// A plugin and its configuration for one cluster.
#[derive(Debug)]
pub(super) struct Plugin {
    name: &'static str,
    families: Families,
    /// The directory of the leases.
    leases: PathGuard,
    /// The plugin's results for the current pods, by pod. The plugins that run after this plugin get them as
    /// `prevResult`.
    results: Mutex<BTreeMap<String, Value>>,
}

/// CNI command.
#[derive(Clone, Copy, Debug)]
pub(super) enum CniCommand {
    Add,
    Delete,
}

impl CniCommand {
    const fn name(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Delete => "DEL",
        }
    }
}

impl Plugin {
    /// Returns the plugin of a topology, if it uses one.
    pub(super) fn of(topology: Topology, families: Families) -> Option<Self> {
        let name = match topology {
            Topology::Bridge | Topology::Routed => return None,
            Topology::BridgePlugin => "bridge",
            Topology::PtpPlugin => "ptp",
        };
        let leases = PathGuard::new(temporary_root().join(unique("leases")));
        Some(Self { name, families, leases, results: Mutex::default() })
    }

    /// Creates a pod's network namespace and connects it. `number`: the last part of the pod's addresses. If no number
    /// is given, host-local selects the addresses.
    pub(super) fn wire_pod(&self, node: &Host, name: &str, number: Option<u8>) -> Result<Host> {
        let netns = Netns::new(name)?;
        // Duplicate address detection would delay each ADD by one to two seconds.
        set_sysctls(&netns, "0")?;
        let result = self.call(CniCommand::Add, node, name, &netns, number).and_then(|result| {
            let result: Value = serde_json::from_slice(&result).context("parsing the plugin's result")?;
            let attached = parse_attachment(&result).with_context(|| format!("in the plugin's result {result}"))?;
            self.results.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned(), result);
            Ok(attached)
        });
        match result {
            Ok(Attachment { addresses, mac, gateway, veth }) => Ok(Host {
                name: name.to_owned(),
                netns,
                addresses,
                interface: INTERFACE,
                mac,
                gateway,
                kind: HostKind::Pod,
                node: node.node,
                veth,
            }),
            Err(error) => {
                // Cleans up after the failed ADD, as runtimes do. The error of ADD is returned.
                let _ = self.call(CniCommand::Delete, node, name, &netns, None);
                Err(error)
            }
        }
    }

    /// Removes a pod's interface, leases and masquerading rules.
    pub(super) fn unwire_pod(&self, node: &Host, pod: &Host) -> Result<()> {
        self.results.lock().unwrap_or_else(PoisonError::into_inner).remove(pod.name());
        self.call(CniCommand::Delete, node, pod.name(), pod.netns(), None).map(|_| ())
    }

    /// Returns the plugin's result for a pod.
    pub(super) fn result(&self, pod: &str) -> Option<Value> {
        self.results.lock().unwrap_or_else(PoisonError::into_inner).get(pod).cloned()
    }

    fn call(
        &self,
        cni_command: CniCommand,
        node: &Host,
        pod: &str,
        netns: &Netns,
        number: Option<u8>,
    ) -> Result<Vec<u8>> {
        let executable = Path::new(PLUGINS).join(self.name);
        call(&executable, cni_command, node, pod, netns, &self.configuration(node, number))
    }

    /// Returns the plugin's configuration, as in a node's `/etc/cni/net.d`. The ptp plugin ignores the fields of the
    /// bridge.
    fn configuration(&self, node: &Host, number: Option<u8>) -> Value {
        let networks = pod_addresses(node.node, 0, self.families);
        let ranges: Vec<_> = networks
            .iter()
            .map(|network| json!([{"subnet": format!("{network}/{}", network_prefix(*network))}]))
            .collect();
        let routes: Vec<_> = networks
            .iter()
            .map(|network| json!({"dst": if network.is_ipv4() { "0.0.0.0/0" } else { "::/0" }}))
            .collect();
        let requested_addresses =
            number.map(|number| pod_addresses(node.node, number, self.families)).unwrap_or_default();
        json!({
            "cniVersion": "1.0.0",
            "name": node.name(),
            "type": self.name,
            "bridge": "cni0",
            "isGateway": true,
            "hairpinMode": true,
            "ipMasq": true,
            "ipam": {
                "type": "host-local",
                "dataDir": self.leases.path(),
                "ranges": ranges,
                "routes": routes,
            },
            "args": {"cni": {"ips": requested_addresses}},
        })
    }
}

/// Calls a plugin for a pod and returns its result.
pub(super) fn call(
    executable: &Path,
    cni_command: CniCommand,
    node: &Host,
    pod: &str,
    netns: &Netns,
    configuration: &Value,
) -> Result<Vec<u8>> {
    let (namespace, name) = pod.split_once('/').context("a pod's name is not namespace/name")?;
    let sandbox = pod.replace('/', "-");
    let mut command = Command::new(executable);
    command.env("CNI_COMMAND", cni_command.name());
    command.env("CNI_CONTAINERID", &sandbox);
    // As containerd does, but without the UID, which manifests do not have.
    let arguments = format!(
        "IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name};K8S_POD_INFRA_CONTAINER_ID={sandbox}"
    );
    command.env("CNI_ARGS", arguments);
    command.env("CNI_NETNS", netns.path());
    command.env("CNI_IFNAME", INTERFACE);
    command.env("CNI_PATH", PLUGINS);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // A thread that has entered the node's network namespace starts the plugin. If the new process entered the
    // namespace itself (`pre_exec`), it would be created by `fork`, which copies the page tables of the test process.
    // If this process is large, the copy takes milliseconds. Without `pre_exec`, the process is created without this
    // copy, as in container runtimes.
    let mut child = node.netns().run(|| {
        let started = command.spawn();
        started.with_context(|| format!("cannot start {}: install it with `cargo xtask setup`", executable.display()))
    })?;
    // If the write fails, the plugin has ended early. Its output contains the reason.
    let _ =
        child.stdin.take().context("the plugin's stdin is not a pipe")?.write_all(configuration.to_string().as_bytes());
    let output =
        child.wait_with_output().with_context(|| format!("waiting for the plugin {}", executable.display()))?;
    if !output.status.success() {
        let plugin_output = [&output.stdout[..], &output.stderr].concat();
        let (plugin, command) = (executable.display(), cni_command.name());
        bail!("{plugin} {command} of {pod}: {}", String::from_utf8_lossy(&plugin_output).trim());
    }
    Ok(output.stdout)
}

/// What a plugin created for a pod.
#[derive(Debug, PartialEq, Eq)]
struct Attachment {
    addresses: Vec<IpAddr>,
    /// MAC address of the pod's end of the veth.
    mac: Mac,
    /// Destination MAC address of the pod's packets to other hosts: that of the bridge, or of the node's end of the
    /// veth.
    gateway: Mac,
    /// Name of the node's end of the veth.
    veth: String,
}

/// Parses a plugin's result.
fn parse_attachment(result: &Value) -> Result<Attachment> {
    let text = |value: &Value, key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let list = |key: &str| result.get(key).and_then(Value::as_array).cloned().unwrap_or_default();
    let interfaces = list("interfaces");
    // Only interfaces in the pod have the field `sandbox`.
    let (pod_interfaces, node_interfaces): (Vec<_>, Vec<_>) =
        interfaces.iter().partition(|one| !text(one, "sandbox").is_empty());
    let pod_interface = pod_interfaces.first().context("the result has no interface in the pod")?;
    let veth = node_interfaces
        .iter()
        .find(|one| text(one, "name").starts_with("veth"))
        .context("the result has no veth on the node")?;
    // The bridge, if there is one, is first in the result.
    let gateway = node_interfaces.first().context("the result has no interface on the node")?;
    let mut addresses = Vec::new();
    for ip in list("ips") {
        let address = text(&ip, "address");
        let address = address.split('/').next().unwrap_or_default();
        addresses.push(address.parse().with_context(|| format!("{address:?} is not an address"))?);
    }
    ensure!(!addresses.is_empty(), "the result has no address");
    Ok(Attachment {
        addresses,
        mac: text(pod_interface, "mac").parse()?,
        gateway: text(gateway, "mac").parse()?,
        veth: text(veth, "name"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_interfaces_are_read_from_the_result() -> Result<()> {
        let result = json!({
            "interfaces": [
                {"name": "cni0", "mac": "02:00:00:00:00:01"},
                {"name": "veth5", "mac": "02:00:00:00:00:02"},
                {"name": "eth0", "mac": "02:00:00:00:00:03", "sandbox": "/run/netns/pod"},
            ],
            "ips": [{"interface": 2, "address": "10.0.0.5/24"}, {"interface": 2, "address": "fd00::5/64"}],
        });
        let attached = parse_attachment(&result)?;
        assert_eq!(attached.addresses, ["10.0.0.5".parse::<IpAddr>()?, "fd00::5".parse()?]);
        assert_eq!((attached.gateway, attached.mac), (Mac([2, 0, 0, 0, 0, 1]), Mac([2, 0, 0, 0, 0, 3])));
        assert_eq!(attached.veth, "veth5");
        assert!(
            parse_attachment(&json!({"interfaces": result["interfaces"]})).is_err(),
            "a result without an address is an error"
        );
        Ok(())
    }
}
