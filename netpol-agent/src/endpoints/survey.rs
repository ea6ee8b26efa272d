//! One look at all veths, what is behind them, and this node's own addresses.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use netpol_common::IfIndex;

use super::{Netlink, NetlinkError, Veth};

/// What was seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Survey {
    /// Veths that lead to another namespace, and the addresses of their other end.
    pub veths: BTreeMap<IfIndex, (Veth, Vec<IpAddr>)>,
    /// Every address of this namespace, without duplicates.
    pub own: Vec<IpAddr>,
}

/// Looks, and remembers the addresses behind veths, so that a new link costs one question and not one per pod.
#[derive(Debug)]
pub struct Surveyor {
    netlink: Netlink,
    seen: BTreeMap<IfIndex, (Veth, Vec<IpAddr>)>,
}

impl Surveyor {
    /// Opens a netlink socket.
    ///
    /// # Errors
    /// Where the kernel refuses one.
    pub fn open() -> Result<Self, NetlinkError> {
        Ok(Self { netlink: Netlink::open()?, seen: BTreeMap::new() })
    }

    /// Looks at all links and this namespace's addresses; asks for the addresses behind a veth where it is new, not
    /// `settled`, or `all` are wanted. (Addresses in other namespaces change without a message here.)
    ///
    /// # Errors
    /// Where links or own addresses cannot be listed. A namespace that cannot be asked counts as without addresses: it
    /// may be going away, and is asked again.
    pub fn look(&mut self, settled: &BTreeSet<IfIndex>, all: bool) -> Result<Survey, NetlinkError> {
        let veths = self.netlink.veths()?;
        let mut by_namespace: BTreeMap<i32, BTreeMap<u32, Vec<IpAddr>>> = BTreeMap::new();
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
                behind.get(&veth.peer).cloned().unwrap_or_default()
            };
            now.insert(veth.ifindex, (veth, addresses));
        }
        self.seen.clone_from(&now);
        // Loopback names every host, not this one. Link-local addresses stay: on a pod's link they are its gateway.
        let mut own: Vec<IpAddr> =
            self.netlink.addresses(None)?.into_values().flatten().filter(|address| !address.is_loopback()).collect();
        own.sort_unstable();
        own.dedup();
        Ok(Survey { veths: now, own })
    }
}
