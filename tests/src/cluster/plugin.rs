//! Pods wired by the CNI plugins bridge and ptp themselves, called as a container runtime calls them.
//!
//! Source: <https://www.cni.dev/docs/spec/>. Leases are in a directory of the cluster's; links, addresses, and the
//! masquerading rules are in the node's network namespace and go with it.

use std::io::Write;
use std::net::IpAddr;
use std::process::Stdio;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::host::{Kind, pod_addresses};
use super::wiring::{network_prefix, quiet};
use super::{Families, Host, Mac, Topology};
use crate::cleanup::{PathGuard, temporary_root, unique};
use crate::netns::Netns;

/// Where Debian's containernetworking-plugins are.
const PLUGINS: &str = "/usr/lib/cni";

/// The pod's end of a veth, as runtimes name it.
pub(super) const INTERFACE: &str = "eth0";

/// A plugin, as the nodes of one cluster are configured to call it.
#[derive(Debug)]
pub(super) struct Plugin {
    name: &'static str,
    families: Families,
    leases: PathGuard,
}

/// What a runtime tells a plugin to do.
#[derive(Clone, Copy, Debug)]
pub(super) enum Verb {
    Add,
    Delete,
}

impl Verb {
    const fn name(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Delete => "DEL",
        }
    }
}

impl Plugin {
    /// The plugin of a topology, where it has one.
    pub(super) fn of(topology: Topology, families: Families) -> Option<Self> {
        let name = match topology {
            Topology::Bridge | Topology::Routed => return None,
            Topology::BridgePlugin => "bridge",
            Topology::PtpPlugin => "ptp",
        };
        Some(Self { name, families, leases: PathGuard::new(temporary_root().join(unique("leases"))) })
    }

    /// Makes a pod's namespace and has it wired. Its addresses are host-local's choice, unless a number is asked for.
    pub(super) fn wire_pod(&self, node: &Host, name: &str, number: Option<u8>) -> Result<Host> {
        let netns = Netns::new(name)?;
        // Detection of duplicate addresses would make each ADD take one to two seconds.
        quiet(&netns, "0")?;
        let answer = self.call(Verb::Add, node, name, &netns, number).and_then(|answer| {
            let answer: Value = serde_json::from_slice(&answer).context("reading the plugin's result")?;
            attachment(&answer).with_context(|| format!("in the plugin's result {answer}"))
        });
        match answer {
            Ok(Attachment { addresses, mac, gateway, veth }) => Ok(Host {
                name: name.to_owned(),
                netns,
                addresses,
                interface: INTERFACE,
                mac,
                gateway,
                kind: Kind::Pod,
                node: node.node,
                veth,
            }),
            Err(error) => {
                // As runtimes do: what an ADD left half done is taken back. The first error is the one to tell.
                let _ = self.call(Verb::Delete, node, name, &netns, None);
                Err(error)
            }
        }
    }

    /// Takes a pod's interface, lease and rules away.
    pub(super) fn unwire_pod(&self, node: &Host, pod: &Host) -> Result<()> {
        self.call(Verb::Delete, node, pod.name(), pod.netns(), None).map(|_| ())
    }

    fn call(&self, verb: Verb, node: &Host, pod: &str, netns: &Netns, number: Option<u8>) -> Result<Vec<u8>> {
        call(self.name, verb, node, pod, netns, &self.configuration(node, number))
    }

    /// What a node's `/etc/cni/net.d` would have.
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
        let wanted = number.map(|number| pod_addresses(node.node, number, self.families)).unwrap_or_default();
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
            "args": {"cni": {"ips": wanted}},
        })
    }
}

/// Calls a plugin for a pod; what it prints is its result.
pub(super) fn call(
    name: &str,
    verb: Verb,
    node: &Host,
    pod: &str,
    netns: &Netns,
    configuration: &Value,
) -> Result<Vec<u8>> {
    let mut command = node.netns().command(format!("{PLUGINS}/{name}"));
    command.env("CNI_COMMAND", verb.name());
    command.env("CNI_CONTAINERID", pod.replace('/', "-"));
    command.env("CNI_NETNS", netns.path());
    command.env("CNI_IFNAME", INTERFACE);
    command.env("CNI_PATH", PLUGINS);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {PLUGINS}/{name}; install it with `cargo xtask setup`"))?;
    // A short write means the plugin died early; what it printed says why.
    let _ = child.stdin.take().context("the plugin has a stdin")?.write_all(configuration.to_string().as_bytes());
    let output = child.wait_with_output().with_context(|| format!("waiting for the plugin {name}"))?;
    if !output.status.success() {
        let said = [&output.stdout[..], &output.stderr].concat();
        bail!("{name} {} of {pod}: {}", verb.name(), String::from_utf8_lossy(&said).trim());
    }
    Ok(output.stdout)
}

/// What a plugin made.
#[derive(Debug, PartialEq, Eq)]
struct Attachment {
    addresses: Vec<IpAddr>,
    /// The pod's end.
    mac: Mac,
    /// Where the pod's packets to elsewhere go: the bridge, or the node's end.
    gateway: Mac,
    /// The node's end.
    veth: String,
}

fn attachment(answer: &Value) -> Result<Attachment> {
    let text = |value: &Value, key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let list = |key: &str| answer.get(key).and_then(Value::as_array).cloned().unwrap_or_default();
    let interfaces = list("interfaces");
    let (inner, outer): (Vec<_>, Vec<_>) = interfaces.iter().partition(|one| !text(one, "sandbox").is_empty());
    let inner = inner.first().context("no interface in the pod")?;
    let veth = outer.iter().find(|one| text(one, "name").starts_with("veth")).context("no veth on the node")?;
    // The bridge is told first, where there is one.
    let gateway = outer.first().context("no interface on the node")?;
    let mut addresses = Vec::new();
    for ip in list("ips") {
        let address = text(&ip, "address");
        let address = address.split('/').next().unwrap_or_default();
        addresses.push(address.parse().with_context(|| format!("{address:?} is no address"))?);
    }
    ensure!(!addresses.is_empty(), "no address");
    Ok(Attachment {
        addresses,
        mac: text(inner, "mac").parse()?,
        gateway: text(gateway, "mac").parse()?,
        veth: text(veth, "name"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_tells_who_is_who() -> Result<()> {
        let answer = json!({
            "interfaces": [
                {"name": "cni0", "mac": "02:00:00:00:00:01"},
                {"name": "veth5", "mac": "02:00:00:00:00:02"},
                {"name": "eth0", "mac": "02:00:00:00:00:03", "sandbox": "/run/netns/pod"},
            ],
            "ips": [{"interface": 2, "address": "10.0.0.5/24"}, {"interface": 2, "address": "fd00::5/64"}],
        });
        let wired = attachment(&answer)?;
        assert_eq!(wired.addresses, ["10.0.0.5".parse::<IpAddr>()?, "fd00::5".parse()?]);
        assert_eq!((wired.gateway, wired.mac), (Mac([2, 0, 0, 0, 0, 1]), Mac([2, 0, 0, 0, 0, 3])));
        assert_eq!(wired.veth, "veth5");
        assert!(attachment(&json!({"interfaces": answer["interfaces"]})).is_err(), "a pod has an address");
        Ok(())
    }
}
