//! Reads all veths, the addresses in their peers' namespaces, and this node's addresses, in one pass.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use netpol_common::IfIndex;

use super::is_link_local;
use super::{Device, Links, Netlink, NetlinkError, TunnelEndpoints, Veth};

/// The peer of a veth, in the pod's namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodEnd {
    /// The addresses of the peer.
    pub addresses: Vec<IpAddr>,
    /// Addresses of the namespace on interfaces that are not another veth's peer, except loopback and link-local
    /// addresses. A pod can move its address to `lo` and is still the same pod. If a namespace has several veths, only
    /// the first has them.
    pub other_addresses: Vec<IpAddr>,
    /// Its Ethernet address; `None` if unknown.
    pub mac: Option<[u8; 6]>,
}

impl PodEnd {
    /// Creates a peer with these addresses.
    pub const fn at(addresses: Vec<IpAddr>) -> Self {
        Self { addresses, other_addresses: Vec::new(), mac: None }
    }
}

/// The result of one pass.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InterfaceSnapshot {
    /// Veths with a peer in another namespace, and these peers.
    pub veths: BTreeMap<IfIndex, (Veth, PodEnd)>,
    /// All addresses of this namespace, without duplicates.
    pub own: Vec<IpAddr>,
    /// Interfaces that connect this node to a network, unlike a gateway of one pod. If the node is a container, its
    /// uplink is a veth too.
    pub uplinks: BTreeSet<IfIndex>,
    /// Interfaces of routes: the node's own devices, and veths of pods with a route.
    pub routed: BTreeMap<IfIndex, Device>,
    /// The tunnel endpoints of this node's devices.
    pub tunnels: TunnelEndpoints,
}

/// What the caller already has of the veths.
#[derive(Clone, Debug, Default)]
pub struct KnownVeths {
    /// Veths with cached addresses that need not be read again.
    pub settled: BTreeSet<IfIndex>,
    /// Veths for which the MAC address is to be read, because it is unknown or may change.
    pub without_mac: BTreeSet<IfIndex>,
}

/// Reads interfaces, and caches the addresses of the peers, so that a new link costs one request and not one per pod.
#[derive(Debug)]
pub struct InterfaceReader {
    netlink: Netlink,
    cache: BTreeMap<IfIndex, (Veth, PodEnd)>,
    routed: BTreeSet<IfIndex>,
}

impl InterfaceReader {
    /// Opens a netlink socket.
    ///
    /// # Errors
    /// If the kernel rejects the socket.
    pub fn open() -> Result<Self, NetlinkError> {
        Ok(Self { netlink: Netlink::open()?, cache: BTreeMap::new(), routed: BTreeSet::new() })
    }

    /// Removes deleted interfaces from the cache.
    pub fn remove(&mut self, gone: &BTreeSet<IfIndex>) {
        self.cache.retain(|ifindex, _| !gone.contains(ifindex));
    }

    /// Reads all links and this namespace's addresses. Reads the addresses in a peer's namespace if the veth is new,
    /// not `settled`, or `all` is set: addresses in other namespaces may change without a message. Reads routes if
    /// `all` is set; in between, [`Monitor`](super::Monitor) reports new ones, which are passed in `routed`.
    ///
    /// # Errors
    /// If links or local addresses cannot be listed. A namespace that cannot be read is treated as having no addresses:
    /// it may be in removal. It is read again in the next pass.
    pub fn read_all(
        &mut self,
        KnownVeths { settled, without_mac }: &KnownVeths,
        routed: BTreeSet<IfIndex>,
        all: bool,
    ) -> Result<InterfaceSnapshot, NetlinkError> {
        let Links { veths, devices, tunnels } = self.netlink.links()?;
        if all {
            self.routed = self.netlink.routed()?;
        }
        self.routed.extend(routed);
        self.routed.retain(|ifindex| devices.contains_key(ifindex));
        let mut ends: BTreeMap<i32, BTreeSet<u32>> = BTreeMap::new();
        for veth in &veths {
            ends.entry(veth.namespace).or_default().insert(veth.peer);
        }
        let mut by_namespace: BTreeMap<i32, BTreeMap<u32, Vec<IpNet>>> = BTreeMap::new();
        let mut seen_namespaces: BTreeSet<i32> = BTreeSet::new();
        let mut now = BTreeMap::new();
        for veth in veths {
            let first = seen_namespaces.insert(veth.namespace);
            let is_same = |before: &Veth| before.namespace == veth.namespace && before.peer == veth.peer;
            let known = self.cache.remove(&veth.ifindex).filter(|(before, _)| is_same(before));
            let side = match known {
                Some((_, side)) if !all && settled.contains(&veth.ifindex) => side,
                known => {
                    let namespace_addresses = by_namespace.entry(veth.namespace).or_insert_with(|| {
                        self.netlink.addresses(Some(veth.namespace)).unwrap_or_else(|error| {
                            tracing::debug!(veth = veth.name, %error, "cannot read the namespace of a veth's peer");
                            BTreeMap::new()
                        })
                    });
                    let ends = &ends[&veth.namespace];
                    let other_addresses =
                        namespace_addresses.iter().filter(|(index, _)| first && !ends.contains(index));
                    PodEnd {
                        addresses: namespace_addresses.get(&veth.peer).into_iter().flatten().map(IpNet::addr).collect(),
                        other_addresses: other_addresses
                            .flat_map(|(_, nets)| nets)
                            .map(IpNet::addr)
                            .filter(is_global)
                            .collect(),
                        mac: match known.and_then(|(_, side)| side.mac) {
                            // Each request takes rtnl_lock, so only read it for pods, and only after they are enforced.
                            mac if without_mac.contains(&veth.ifindex) && (all || mac.is_none()) => {
                                self.mac(&veth).or(mac)
                            }
                            mac => mac,
                        },
                    }
                }
            };
            now.insert(veth.ifindex, (veth, side));
        }
        self.cache.clone_from(&now);
        // Loopback addresses are those of any host. Link-local addresses stay: on a pod's link, they are its gateway.
        let interfaces = self.netlink.addresses(None)?;
        let uplinks =
            interfaces.iter().filter(|(_, nets)| nets.iter().any(is_network)).map(|(index, _)| IfIndex(*index));
        let uplinks = uplinks.collect();
        let addresses = interfaces.values().flatten().map(IpNet::addr);
        let mut own: Vec<IpAddr> = addresses.filter(|address| !address.is_loopback()).collect();
        own.sort_unstable();
        own.dedup();
        let routed = devices.into_iter().filter(|(ifindex, _)| self.routed.contains(ifindex)).collect();
        Ok(InterfaceSnapshot { veths: now, own, uplinks, routed, tunnels })
    }

    fn mac(&mut self, veth: &Veth) -> Option<[u8; 6]> {
        let mac = self.netlink.mac(veth.namespace, veth.peer);
        mac.unwrap_or_else(|error| {
            tracing::debug!(veth = veth.name, %error, "cannot read the MAC address of a veth's peer");
            None
        })
    }
}

/// Returns whether other hosts can be in this network. A pod's gateway has a network of its own (`/32`, `/128`) with
/// the ptp plugin, and every interface has a link-local address.
fn is_network(net: &IpNet) -> bool {
    let link_local = match net.addr() {
        IpAddr::V4(_) => false,
        IpAddr::V6(address) => is_link_local(&address),
    };
    net.prefix_len() < net.max_prefix_len() && !link_local
}

fn is_global(address: &IpAddr) -> bool {
    !address.is_loopback() && !matches!(address, IpAddr::V6(v6) if is_link_local(v6))
}
