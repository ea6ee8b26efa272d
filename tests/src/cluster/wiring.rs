//! Wires nodes, pods and the external host: creates their network namespaces, links, addresses and routes.

use std::fmt::Write;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::host::{HostKind, Mac, OUTSIDE, gateway, node_name, pod_addresses, uplink_addresses};
use super::overlay::{self, Interconnect};
use super::{Families, Host, Topology};
use crate::netns::Netns;

/// Number of the external host on the network between nodes. The numbers of nodes start at 1.
const OUTSIDE_NUMBER: u8 = 100;

/// How long an interface may take to become operational on a busy machine.
const OPERATIONAL_TIMEOUT: Duration = Duration::from_secs(10);

/// Returns the prefix length of a single address.
pub(super) const fn host_prefix(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// Returns the prefix length of the networks in a cluster.
pub(super) const fn network_prefix(address: IpAddr) -> u8 {
    if address.is_ipv4() { 24 } else { 64 }
}

/// Returns the flags for an address in `ip addr add`. Duplicate address detection is not needed, and would delay the
/// use of the address.
pub(super) const fn flags(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "" } else { " nodad" }
}

/// Connects `netns` to the network between nodes, which is a bridge in the network namespace `fabric`. The link is a
/// veth, with the name `uplink` in `netns`. Adds these addresses to `uplink`.
fn wire_uplink(fabric: &Netns, netns: &Netns, number: u8, addresses: &[IpAddr]) -> Result<()> {
    fabric.ip(&format!(
        "link add port{number} type veth peer name uplink address {mac} netns {path}\n\
         link set port{number} master fabric up",
        mac = Mac::of_uplink(number),
        path = netns.path(),
    ))?;
    let mut lines = String::new();
    for &address in addresses {
        let _ = writeln!(lines, "addr add {address}/{} dev uplink{}", network_prefix(address), flags(address));
    }
    lines += "link set uplink up\n";
    netns.ip(&lines)
}

/// `forwarding`: `1` if the host forwards packets, otherwise `0`.
pub(super) fn set_sysctls(netns: &Netns, forwarding: &str) -> Result<()> {
    netns.sysctl(&[
        ("ipv6/conf/all/accept_dad", "0"),
        ("ipv6/conf/default/accept_dad", "0"),
        ("ipv6/conf/all/forwarding", forwarding),
        ("ipv6/conf/default/forwarding", forwarding),
        ("ipv4/ip_forward", forwarding),
        // Tests send spoofed packets. netpol must drop them, not the kernel.
        ("ipv4/conf/all/rp_filter", "0"),
        ("ipv4/conf/default/rp_filter", "0"),
    ])
}

/// Creates a node. `node`: its number; `nodes`: how many nodes the cluster has.
pub(super) fn wire_node(
    fabric: &Netns,
    node: u8,
    nodes: u8,
    (topology, interconnect): (Topology, Interconnect),
    families: Families,
) -> Result<Host> {
    let name = node_name(node);
    let netns = Netns::new(&name)?;
    set_sysctls(&netns, "1")?;
    let uplink = uplink_addresses(node, families);
    wire_uplink(fabric, &netns, node, &uplink)?;
    let mut lines = String::new();
    if topology == Topology::Bridge {
        let _ = writeln!(
            lines,
            "link add cni0 address {} type bridge forward_delay 0\nlink set cni0 up",
            Mac::of_bridge(node)
        );
        for address in gateway(node, families) {
            let _ = writeln!(lines, "addr add {address}/{} dev cni0{}", network_prefix(address), flags(address));
        }
    }
    lines += &overlay::routes(interconnect, node, nodes, families);
    // The external host is the default gateway.
    for via in uplink_addresses(OUTSIDE_NUMBER, families) {
        let _ = writeln!(lines, "route add default via {via}");
    }
    netns.ip(&lines)?;
    let fdb_entries = overlay::fdb_entries(interconnect, node, nodes, families);
    if !fdb_entries.is_empty() {
        netns.bridge(&fdb_entries)?;
    }
    Ok(Host {
        name,
        netns,
        addresses: uplink,
        interface: "uplink",
        mac: Mac::of_uplink(node),
        gateway: Mac::of_uplink(OUTSIDE_NUMBER),
        kind: HostKind::Node,
        node,
        veth: "uplink".into(),
    })
}

/// Creates the external host. Returns one [`Host`] for its uplink, and one for each extra address.
pub(super) fn wire_outside(
    fabric: &Netns,
    nodes: u8,
    extra_addresses: &[IpAddr],
    families: Families,
) -> Result<Vec<Host>> {
    let netns = Netns::new(OUTSIDE)?;
    set_sysctls(&netns, "0")?;
    let addresses = uplink_addresses(OUTSIDE_NUMBER, families);
    wire_uplink(fabric, &netns, OUTSIDE_NUMBER, &addresses)?;
    let mut lines = String::new();
    // Routes to the pod networks of all nodes.
    for node in 1..=nodes {
        for (address, via) in pod_addresses(node, 0, families).into_iter().zip(uplink_addresses(node, families)) {
            let _ = writeln!(lines, "route add {address}/{} via {via}", network_prefix(address));
        }
    }
    for &address in extra_addresses {
        let _ = writeln!(lines, "addr add {address}/{} dev lo{}", host_prefix(address), flags(address));
    }
    netns.ip(&lines)?;
    let host = |name: String, addresses: Vec<IpAddr>| Host {
        name,
        netns: netns.clone(),
        addresses,
        interface: "uplink",
        mac: Mac::of_uplink(OUTSIDE_NUMBER),
        gateway: Mac::of_uplink(1),
        kind: HostKind::Outside,
        node: OUTSIDE_NUMBER,
        veth: "uplink".into(),
    };
    let first = host(OUTSIDE.into(), addresses);
    Ok(std::iter::once(first)
        .chain(extra_addresses.iter().map(|address| host(address.to_string(), vec![*address])))
        .collect())
}

/// Creates a pod. `number` is the last part of its addresses; `link` makes the name of the veth unique.
pub(super) fn wire_pod(
    node_host: &Host,
    name: &str,
    node: u8,
    number: u8,
    link: u32,
    topology: Topology,
    families: Families,
) -> Result<Host> {
    let netns = Netns::new(name)?;
    set_sysctls(&netns, "0")?;
    // As with CNI plugins, the name of the veth does not identify the pod.
    let veth = format!("veth{:08x}", u32::from(node) << 24 | link);
    let addresses = pod_addresses(node, number, families);
    let gateways = gateway(node, families);
    let mut lines = format!(
        "link add {veth} address {outer} type veth peer name eth0 address {inner} netns {path}\n",
        outer = Mac::of_veth(node, number),
        inner = Mac::of_pod(node, number),
        path = netns.path(),
    );
    if topology.is_bridged() {
        let _ = writeln!(
            lines,
            "link set {veth} master cni0\nlink set {veth} type bridge_slave hairpin on\nlink set {veth} up"
        );
    } else {
        for &address in &gateways {
            let _ = writeln!(lines, "addr add {address}/{} dev {veth}{}", host_prefix(address), flags(address));
        }
        let _ = writeln!(lines, "link set {veth} up");
        for &address in &addresses {
            let _ = writeln!(lines, "route add {address}/{} dev {veth}", host_prefix(address));
        }
    }
    node_host.netns.ip(&lines)?;
    let mut lines = String::new();
    for &address in &addresses {
        let prefix = if topology.is_bridged() { network_prefix(address) } else { host_prefix(address) };
        let _ = writeln!(lines, "addr add {address}/{prefix} dev eth0{}", flags(address));
    }
    lines += "link set eth0 up\n";
    for &address in &gateways {
        if !topology.is_bridged() {
            let _ = writeln!(lines, "route add {address}/{} dev eth0", host_prefix(address));
        }
        let _ = writeln!(lines, "route add default via {address} dev eth0");
    }
    netns.ip(&lines)?;
    wait_until_operational(&node_host.netns, &veth, topology.is_bridged())?;
    wait_until_operational(&netns, "eth0", false)?;
    Ok(Host {
        name: name.to_owned(),
        netns,
        addresses,
        interface: "eth0",
        mac: Mac::of_pod(node, number),
        gateway: if topology.is_bridged() { Mac::of_bridge(node) } else { Mac::of_veth(node, number) },
        kind: HostKind::Pod,
        node,
        veth,
    })
}

/// Waits until an interface is operational, as the bridge plugin does. The kernel changes this state on a worker thread
/// (`net/core/link_watch.c`). Before the change, the kernel drops packets, for example the first SYN of a probe.
fn wait_until_operational(netns: &Netns, interface: &str, is_bridge_port: bool) -> Result<()> {
    let start = Instant::now();
    loop {
        let link = netns.ip_output(&["-d", "-o", "link", "show", "dev", interface])?;
        if link.contains(" state UP ") && (!is_bridge_port || link.contains(" state forwarding ")) {
            return Ok(());
        }
        ensure!(
            start.elapsed() < OPERATIONAL_TIMEOUT,
            "{interface} is not operational after {OPERATIONAL_TIMEOUT:?}: {link}"
        );
        std::thread::sleep(Duration::from_millis(2));
    }
}
