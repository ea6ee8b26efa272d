//! How nodes reach each other's pods.

use std::fmt::Write;
use std::net::IpAddr;

use super::host::{Mac, pod_addresses, uplink_addresses};
use super::wiring::{flags, host_prefix, network_prefix};
use super::{Families, tunnel};

/// How nodes reach each other's pods.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Between {
    /// A route to each node's pods by its uplink, as with Flannel's host-gw.
    #[default]
    Routes,
    /// A VXLAN device whose peers are written down, as with Flannel's vxlan. What it carries has the uplink's addresses.
    Vxlan,
    /// A `tun` device, as with Flannel's udp, between two nodes. Its packets have no link header.
    Tun,
}

impl Between {
    /// The device that packets to pods of other nodes leave by.
    pub const fn device(self) -> &'static str {
        match self {
            Self::Routes => "uplink",
            Self::Vxlan => "npflannel",
            Self::Tun => tunnel::DEVICE,
        }
    }
}

/// Lines of `ip` for a node's ways to the pods of others.
pub(super) fn routes(between: Between, node: u8, nodes: u8, families: Families) -> String {
    let others = (1..=nodes).filter(|other| *other != node);
    let mut lines = String::new();
    match between {
        Between::Routes => {
            for other in others {
                for (network, via) in
                    pod_addresses(other, 0, families).into_iter().zip(uplink_addresses(other, families))
                {
                    let _ = writeln!(lines, "route add {network}/{} via {via}", network_prefix(network));
                }
            }
        }
        Between::Vxlan => {
            lines += &device(node, families);
            others.for_each(|other| lines += &peer(other, families));
        }
        Between::Tun => {
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

/// Its address is that of the node's network of pods, as Flannel has it.
fn device(node: u8, families: Families) -> String {
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

fn peer(other: u8, families: Families) -> String {
    let mut lines = String::new();
    for address in pod_addresses(other, 0, families) {
        let (mac, prefix) = (Mac::of_overlay(other), network_prefix(address));
        let _ = writeln!(lines, "neigh add {address} lladdr {mac} dev npflannel nud permanent");
        let _ = writeln!(lines, "route add {address}/{prefix} via {address} dev npflannel onlink");
    }
    lines
}

/// Entries of the forwarding database are the business of `bridge`, not of `ip`.
pub(super) fn forwarding(between: Between, node: u8, nodes: u8, families: Families) -> String {
    let others = (1..=nodes).filter(|other| between == Between::Vxlan && *other != node);
    let line = |other| format!("fdb add {} dev npflannel dst {}\n", Mac::of_overlay(other), underlay(other, families));
    others.map(line).collect()
}

/// Both families' packets go in packets of one.
fn underlay(node: u8, families: Families) -> IpAddr {
    uplink_addresses(node, families)[0]
}
