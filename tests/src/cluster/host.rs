//! Hosts with addresses: pods, nodes, the external host, and extra addresses of the external host.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::Context;

use crate::netns::Netns;

/// Name of the external host.
pub const OUTSIDE: &str = "outside";

/// How pods are connected to their node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Topology {
    /// Veths are ports of one bridge, as with the bridge plugin or Flannel.
    Bridge,
    /// The node has a route to each pod, and the node's end of each veth has the gateway's address, as with the ptp
    /// plugin.
    Routed,
    /// The bridge plugin itself, with `ipMasq`: the node masquerades packets from pods to other networks.
    BridgePlugin,
    /// The ptp plugin itself, with `ipMasq`.
    PtpPlugin,
}

impl Topology {
    /// Returns whether veths are ports of a bridge, `cni0`.
    pub const fn is_bridged(self) -> bool {
        match self {
            Self::Bridge | Self::BridgePlugin => true,
            Self::Routed | Self::PtpPlugin => false,
        }
    }
}

/// Address families.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Families {
    /// IPv4 only.
    V4,
    /// IPv6 only.
    V6,
    /// IPv4 and IPv6.
    Dual,
}

impl Families {
    /// Returns `v4` if IPv4 is in use, and `v6` if IPv6 is in use.
    pub fn pick(self, v4: Ipv4Addr, v6: Ipv6Addr) -> Vec<IpAddr> {
        match self {
            Self::V4 => vec![v4.into()],
            Self::V6 => vec![v6.into()],
            Self::Dual => vec![v4.into(), v6.into()],
        }
    }

    /// Returns whether the family of `address` is in use.
    pub const fn has(self, address: IpAddr) -> bool {
        match self {
            Self::V4 => address.is_ipv4(),
            Self::V6 => address.is_ipv6(),
            Self::Dual => true,
        }
    }
}

/// An Ethernet address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// Returns the MAC address of the pod's end of a veth. It depends only on the pod's node and number (the last part
    /// of its IP addresses). So tests can send raw frames without neighbor discovery, and a reused IP address has the
    /// same MAC address again.
    pub const fn of_pod(node: u8, number: u8) -> Self {
        Self([2, 0x77, node, number, 0, 1])
    }

    /// Returns the MAC address of the node's end of a veth.
    pub const fn of_veth(node: u8, number: u8) -> Self {
        Self([2, 0x77, node, number, 0, 2])
    }

    /// Returns the MAC address of the node's bridge.
    pub const fn of_bridge(node: u8) -> Self {
        Self([2, 0x77, node, 0, 0, 3])
    }

    /// Returns the MAC address of a node's VXLAN device.
    pub const fn of_overlay(node: u8) -> Self {
        Self([2, 0x77, node, 0, 0, 5])
    }

    /// Returns the MAC address of an uplink (the interface on the network between nodes). `number` is the number of the
    /// node; 100 is the external host.
    pub const fn of_uplink(number: u8) -> Self {
        Self([2, 0x77, number, 0, 0, 4])
    }
}

impl std::fmt::Display for Mac {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let bytes: Vec<_> = self.0.iter().map(|byte| format!("{byte:02x}")).collect();
        f.write_str(&bytes.join(":"))
    }
}

impl std::str::FromStr for Mac {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let bytes: Result<Vec<_>, _> = text.split(':').map(|byte| u8::from_str_radix(byte, 16)).collect();
        let bytes = bytes.ok().and_then(|bytes| bytes.try_into().ok());
        bytes.map(Self).with_context(|| format!("{text:?} is not a MAC address"))
    }
}

/// Returns the name of a node.
pub fn node_name(node: u8) -> String {
    format!("node-{node}")
}

/// Returns the addresses of a node that are the gateway of its pods. They are on the bridge, or on each routed veth.
pub fn gateway(node: u8, families: Families) -> Vec<IpAddr> {
    families.pick(Ipv4Addr::new(10, 244, node, 1), pod_v6(node, 1))
}

/// Returns the addresses of a pod. With number 0, returns the network addresses of the node's pod CIDRs.
pub(super) fn pod_addresses(node: u8, number: u8, families: Families) -> Vec<IpAddr> {
    families.pick(Ipv4Addr::new(10, 244, node, number), pod_v6(node, number))
}

/// Returns the addresses of a node or of the external host on the network between nodes.
pub(super) fn uplink_addresses(number: u8, families: Families) -> Vec<IpAddr> {
    families.pick(Ipv4Addr::new(172, 31, 77, number), Ipv6Addr::new(0xfd31, 0x77, 0, 0, 0, 0, 0, u16::from(number)))
}

const fn pod_v6(node: u8, number: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd77, 0, 0, node as u16, 0, 0, 0, number as u16)
}

/// A pod, a node, the external host, or an extra address of the external host.
#[derive(Clone, Debug)]
pub struct Host {
    pub(super) name: String,
    pub(super) netns: Netns,
    pub(super) addresses: Vec<IpAddr>,
    /// The interface for raw frames.
    pub(super) interface: &'static str,
    /// The MAC address of this interface.
    pub(super) mac: Mac,
    /// The MAC address of the next hop to other networks.
    pub(super) gateway: Mac,
    pub(super) kind: HostKind,
    /// The number of the node, or of the pod's node. 100 for the external host.
    pub(super) node: u8,
    /// For a pod: the name of the node's end of its veth. Otherwise `uplink`.
    pub(super) veth: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HostKind {
    Pod,
    Node,
    /// The external host, or an extra address of it.
    Outside,
}

impl Host {
    /// Returns `namespace/name`, `node-1`, `outside`, or an address.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the network namespace of the host.
    pub const fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Returns its addresses, IPv4 first.
    pub fn addresses(&self) -> &[IpAddr] {
        &self.addresses
    }

    /// Returns its IPv4 address.
    ///
    /// # Panics
    /// Panics if it has none.
    pub fn v4(&self) -> Ipv4Addr {
        let address = self.addresses.iter().find_map(|address| match address {
            IpAddr::V4(v4) => Some(*v4),
            IpAddr::V6(_) => None,
        });
        address.unwrap_or_else(|| panic!("{} has no IPv4 address", self.name))
    }

    /// Returns its IPv6 address.
    ///
    /// # Panics
    /// Panics if it has none.
    pub fn v6(&self) -> Ipv6Addr {
        let address = self.addresses.iter().find_map(|address| match address {
            IpAddr::V6(v6) => Some(*v6),
            IpAddr::V4(_) => None,
        });
        address.unwrap_or_else(|| panic!("{} has no IPv6 address", self.name))
    }

    /// Returns the address of this host that has the same family as `other`.
    pub fn address_of_same_family(&self, other: IpAddr) -> Option<IpAddr> {
        self.addresses.iter().copied().find(|address| address.is_ipv4() == other.is_ipv4())
    }

    /// Returns the address to which sockets of this host bind. On a node, this is `None`: the kernel selects the
    /// address, as for host processes.
    pub fn source_for(&self, destination: IpAddr) -> Option<IpAddr> {
        match self.kind {
            HostKind::Node => None,
            HostKind::Pod | HostKind::Outside => self.address_of_same_family(destination),
        }
    }

    /// Returns whether this is the external host, or an extra address of it.
    pub fn is_outside(&self) -> bool {
        self.kind == HostKind::Outside
    }

    /// Returns its interface for raw frames.
    pub const fn interface(&self) -> &'static str {
        self.interface
    }

    /// Returns its MAC address.
    pub const fn mac(&self) -> Mac {
        self.mac
    }

    /// Returns the name of the node's end of this pod's veth.
    pub fn veth(&self) -> &str {
        &self.veth
    }

    /// Returns the destination MAC address of frames to `other`.
    pub fn next_hop(&self, other: &Self, topology: Topology) -> Mac {
        let on_same_bridge = topology.is_bridged()
            && self.kind == HostKind::Pod
            && other.kind == HostKind::Pod
            && self.node == other.node;
        if on_same_bridge || self.kind == HostKind::Outside && other.kind == HostKind::Outside {
            other.mac
        } else if self.kind == HostKind::Outside {
            // The external host has a route to each node's pods.
            Mac::of_uplink(other.node)
        } else {
            self.gateway
        }
    }
}
