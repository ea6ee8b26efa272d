//! One look at all veths, what is behind them, and this node's own addresses.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use netpol_common::IfIndex;

use super::is_link_local;
use super::{Device, Links, Netlink, NetlinkError, Veth};

/// What was seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Survey {
    /// Veths that lead to another namespace, and the addresses of their other end.
    pub veths: BTreeMap<IfIndex, (Veth, Vec<IpAddr>)>,
    /// Every address of this namespace, without duplicates.
    pub own: Vec<IpAddr>,
    /// Interfaces by which this node is part of a network itself, rather than the gateway of a pod: where a node is a
    /// container, its uplink is a veth too.
    pub uplinks: BTreeSet<IfIndex>,
    /// Interfaces that routes lead to: this node's own devices, but veths of pods that are routed to too.
    pub routed: BTreeMap<IfIndex, Device>,
}

/// Looks, and remembers the addresses behind veths, so that a new link costs one question and not one per pod.
#[derive(Debug)]
pub struct Surveyor {
    netlink: Netlink,
    seen: BTreeMap<IfIndex, (Veth, Vec<IpAddr>)>,
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
        settled: &BTreeSet<IfIndex>,
        routed: BTreeSet<IfIndex>,
        all: bool,
    ) -> Result<Survey, NetlinkError> {
        let Links { veths, devices } = self.netlink.links()?;
        if all {
            self.routed = self.netlink.routed()?;
        }
        self.routed.extend(routed);
        self.routed.retain(|ifindex| devices.contains_key(ifindex));
        let mut by_namespace: BTreeMap<i32, BTreeMap<u32, Vec<IpNet>>> = BTreeMap::new();
        let mut now = BTreeMap::new();
        for veth in veths {
            let known = self.seen.remove(&veth.ifindex).filter(|(before, _)| {
                !all && settled.contains(&veth.ifindex)
                    && before.namespace == veth.namespace
                    && before.peer == veth.peer
            });
            let addresses = if let Some((_, addresses)) = known {
                addresses
            } else {
                let behind = by_namespace.entry(veth.namespace).or_insert_with(|| {
                    self.netlink.addresses(Some(veth.namespace)).unwrap_or_else(|error| {
                        tracing::debug!(veth = veth.name, %error, "the namespace behind a veth does not answer");
                        BTreeMap::new()
                    })
                });
                behind.get(&veth.peer).into_iter().flatten().map(IpNet::addr).collect()
            };
            now.insert(veth.ifindex, (veth, addresses));
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
        Ok(Survey { veths: now, own, uplinks, routed })
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
