//! One look at all veths, what is behind them, and this node's own addresses.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use netpol_common::IfIndex;

use super::is_link_local;
use super::{Device, Links, Netlink, NetlinkError, TunnelEndpoints, Veth};

/// What is at the other end of a veth.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodSide {
    /// The addresses of that end.
    pub addresses: Vec<IpAddr>,
    /// The addresses that its namespace has on interfaces that are no other veth's end, loopback and link-local ones aside: a
    /// pod can move its address to `lo`, and is still that pod. Of several veths of a namespace only the first has them.
    pub elsewhere: Vec<IpAddr>,
    /// Its Ethernet address; `None`: not known.
    pub mac: Option<[u8; 6]>,
}

impl PodSide {
    /// Of one that has these addresses.
    pub const fn at(addresses: Vec<IpAddr>) -> Self {
        Self { addresses, elsewhere: Vec::new(), mac: None }
    }
}

/// What was seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Survey {
    /// Veths that lead to another namespace, and what is at their other end.
    pub veths: BTreeMap<IfIndex, (Veth, PodSide)>,
    /// Every address of this namespace, without duplicates.
    pub own: Vec<IpAddr>,
    /// Interfaces by which this node is part of a network itself, rather than the gateway of a pod: where a node is a
    /// container, its uplink is a veth too.
    pub uplinks: BTreeSet<IfIndex>,
    /// Interfaces that routes lead to: this node's own devices, but veths of pods that are routed to too.
    pub routed: BTreeMap<IfIndex, Device>,
    /// The tunnel endpoints that this node's devices open.
    pub tunnels: TunnelEndpoints,
}

/// What is known of veths.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// Those that need no closer look.
    pub settled: BTreeSet<IfIndex>,
    /// Those whose MAC address is to be read: it is not known yet, or may still change.
    pub without_mac: BTreeSet<IfIndex>,
}

/// Looks, and remembers the addresses behind veths, so that a new link costs one question and not one per pod.
#[derive(Debug)]
pub struct Surveyor {
    netlink: Netlink,
    seen: BTreeMap<IfIndex, (Veth, PodSide)>,
    routed: BTreeSet<IfIndex>,
}

impl Surveyor {
    /// Opens a netlink socket.
    ///
    /// # Errors
    /// Where the kernel refuses one.
    pub fn open() -> Result<Self, NetlinkError> {
        Ok(Self { netlink: Netlink::open()?, seen: BTreeMap::new(), routed: BTreeSet::new() })
    }

    /// Forgets interfaces that were removed.
    pub fn forget(&mut self, gone: &BTreeSet<IfIndex>) {
        self.seen.retain(|ifindex, _| !gone.contains(ifindex));
    }

    /// Looks at all links and this namespace's addresses; asks for the addresses behind a veth where it is new, not
    /// `settled`, or `all` are wanted (addresses in other namespaces change without a message here), and for routes where
    /// `all` are wanted: what new ones lead to is told by [`Monitor`](super::Monitor), and `routed`
    /// here.
    ///
    /// # Errors
    /// Where links or own addresses cannot be listed. A namespace that cannot be asked counts as without addresses: it
    /// may be going away, and is asked again.
    pub fn look(
        &mut self,
        Known { settled, without_mac }: &Known,
        routed: BTreeSet<IfIndex>,
        all: bool,
    ) -> Result<Survey, NetlinkError> {
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
        let mut alone: BTreeSet<i32> = BTreeSet::new();
        let mut now = BTreeMap::new();
        for veth in veths {
            let first = alone.insert(veth.namespace);
            let same = |before: &Veth| before.namespace == veth.namespace && before.peer == veth.peer;
            let known = self.seen.remove(&veth.ifindex).filter(|(before, _)| same(before));
            let side = match known {
                Some((_, side)) if !all && settled.contains(&veth.ifindex) => side,
                known => {
                    let behind = by_namespace.entry(veth.namespace).or_insert_with(|| {
                        self.netlink.addresses(Some(veth.namespace)).unwrap_or_else(|error| {
                            tracing::debug!(veth = veth.name, %error, "the namespace behind a veth does not answer");
                            BTreeMap::new()
                        })
                    });
                    let ends = &ends[&veth.namespace];
                    let elsewhere = behind.iter().filter(|(index, _)| first && !ends.contains(index));
                    PodSide {
                        addresses: behind.get(&veth.peer).into_iter().flatten().map(IpNet::addr).collect(),
                        elsewhere: elsewhere.flat_map(|(_, nets)| nets).map(IpNet::addr).filter(is_global).collect(),
                        mac: match known.and_then(|(_, side)| side.mac) {
                            // Each question takes the kernel's lock of network devices: only for pods, and not before they
                            // are enforced.
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
        self.seen.clone_from(&now);
        // Loopback names every host, not this one. Link-local addresses stay: on a pod's link they are its gateway.
        let interfaces = self.netlink.addresses(None)?;
        let uplinks =
            interfaces.iter().filter(|(_, nets)| nets.iter().any(is_network)).map(|(index, _)| IfIndex(*index));
        let uplinks = uplinks.collect();
        let addresses = interfaces.values().flatten().map(IpNet::addr);
        let mut own: Vec<IpAddr> = addresses.filter(|address| !address.is_loopback()).collect();
        own.sort_unstable();
        own.dedup();
        let routed = devices.into_iter().filter(|(ifindex, _)| self.routed.contains(ifindex)).collect();
        Ok(Survey { veths: now, own, uplinks, routed, tunnels })
    }

    fn mac(&mut self, veth: &Veth) -> Option<[u8; 6]> {
        let mac = self.netlink.mac(veth.namespace, veth.peer);
        mac.unwrap_or_else(|error| {
            tracing::debug!(veth = veth.name, %error, "the other end of a veth does not answer");
            None
        })
    }
}

/// Whether others are in the same network. A pod's gateway is alone with it (`/32`, `/128`), as the ptp plugin makes it, and
/// every interface has a link-local address.
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
