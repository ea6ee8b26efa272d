//! Connects the pods of different nodes, by routes, VXLAN or a `tun` device. `pod_addresses(node, 0, …)` are the
//! network addresses of a node's pod networks, one of each family.

use std::fmt::Write;
use std::net::IpAddr;

use super::host::{Mac, pod_addresses, uplink_addresses};
use super::wiring::{flags, host_prefix, network_prefix};
use super::{Families, tunnel};

/// How nodes reach each other's pods.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Interconnect {
    /// Each node has a route to the pods of each other node, by the other node's uplink address, as with Flannel's
    /// host-gw.
    #[default]
    Routes,
    /// A VXLAN device with static entries for the other nodes, as with Flannel's vxlan. Outer packets have the
    /// addresses of the nodes' uplinks.
    Vxlan,
    /// A `tun` device between two nodes, as with Flannel's udp. The packets on it have no link-layer header.
    Tun,
}

impl Interconnect {
    /// Returns the device for packets to pods of other nodes.
    pub const fn device(self) -> &'static str {
        match self {
            Self::Routes => "uplink",
            Self::Vxlan => "npflannel",
            Self::Tun => tunnel::DEVICE,
        }
    }
}

/// Returns lines for [`crate::Netns::ip`] that create a node's routes to the pods of other nodes.
pub(super) fn routes(interconnect: Interconnect, node: u8, nodes: u8, families: Families) -> String {
    let others = (1..=nodes).filter(|other| *other != node);
    let mut lines = String::new();
    match interconnect {
        Interconnect::Routes => {
            for other in others {
                for (network, via) in
                    pod_addresses(other, 0, families).into_iter().zip(uplink_addresses(other, families))
                {
                    let _ = writeln!(lines, "route add {network}/{} via {via}", network_prefix(network));
                }
            }
        }
        Interconnect::Vxlan => {
            lines += &vxlan_device(node, families);
            others.for_each(|other| lines += &vxlan_routes(other, families));
        }
        Interconnect::Tun => {
            let _ = writeln!(lines, "tuntap add dev {} mode tun\nlink set {} up", tunnel::DEVICE, tunnel::DEVICE);
            for address in pod_addresses(node, 0, families) {
                let _ = writeln!(
                    lines,
                    "addr add {address}/{} dev {}{}",
                    host_prefix(address),
                    tunnel::DEVICE,
                    flags(address)
                );
            }
            for network in others.flat_map(|other| pod_addresses(other, 0, families)) {
                let _ = writeln!(lines, "route add {network}/{} dev {}", network_prefix(network), tunnel::DEVICE);
            }
        }
    }
    lines
}

/// Returns lines for [`crate::Netns::ip`] that create the VXLAN device. As with Flannel, the address of the device is
/// the network address of the node's pod network.
fn vxlan_device(node: u8, families: Families) -> String {
    let local = underlay(node, families);
    let mut lines = format!(
        "link add npflannel address {} type vxlan id 1 dstport 8472 local {local} dev uplink nolearning\n",
        Mac::of_overlay(node)
    );
    for address in pod_addresses(node, 0, families) {
        let _ = writeln!(lines, "addr add {address}/{} dev npflannel{}", host_prefix(address), flags(address));
    }
    lines + "link set npflannel up\n"
}

/// Returns lines for [`crate::Netns::ip`] that create the routes to the pods of another node through the VXLAN device.
fn vxlan_routes(other: u8, families: Families) -> String {
    let mut lines = String::new();
    for address in pod_addresses(other, 0, families) {
        let (mac, prefix) = (Mac::of_overlay(other), network_prefix(address));
        let _ = writeln!(lines, "neigh add {address} lladdr {mac} dev npflannel nud permanent");
        let _ = writeln!(lines, "route add {address}/{prefix} via {address} dev npflannel onlink");
    }
    lines
}

/// Returns lines for [`crate::Netns::bridge`] that fill the forwarding database of the VXLAN device. `ip` cannot change
/// this database.
pub(super) fn fdb_entries(interconnect: Interconnect, node: u8, nodes: u8, families: Families) -> String {
    let others = (1..=nodes).filter(|other| interconnect == Interconnect::Vxlan && *other != node);
    let line = |other| format!("fdb add {} dev npflannel dst {}\n", Mac::of_overlay(other), underlay(other, families));
    others.map(line).collect()
}

/// Returns the node's address for the outer packets of VXLAN. Inner packets of both families are sent in outer packets
/// of one family.
fn underlay(node: u8, families: Families) -> IpAddr {
    uplink_addresses(node, families)[0]
}
