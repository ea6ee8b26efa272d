//! The interfaces and addresses of this network namespace (the node's). After a change, only what may have changed is
//! read again.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use netpol_common::IfIndex;

use super::monitor::Changed;
use super::netlink::Link;
use super::{Netlink, NetlinkError};

/// Caches the interfaces and addresses of this network namespace.
#[derive(Debug, Default)]
pub(super) struct LinkCache {
    /// All interfaces.
    pub(super) links: BTreeMap<IfIndex, Link>,
    /// The addresses of each interface, by interface index.
    pub(super) addresses: BTreeMap<u32, Vec<IpNet>>,
}

impl LinkCache {
    /// Reads everything.
    ///
    /// # Errors
    /// If links or addresses cannot be listed.
    pub(super) fn read_all(&mut self, netlink: &mut Netlink) -> Result<(), NetlinkError> {
        self.links = netlink.links()?;
        self.addresses = netlink.addresses(None)?;
        Ok(())
    }

    /// Reads what has changed.
    ///
    /// # Errors
    /// If a link or addresses cannot be read. Then call [`Self::read_all`].
    pub(super) fn read_changes(&mut self, netlink: &mut Netlink, changed: &Changed) -> Result<(), NetlinkError> {
        for ifindex in &changed.gone {
            self.links.remove(ifindex);
            self.addresses.remove(&ifindex.0);
        }
        // If the peer (the other end) of a veth moves to another namespace, the kernel reports that the peer was
        // removed, and nothing about the veth. So after a report about any interface, all veths with a peer in this
        // namespace are read again.
        let peer_may_have_moved = |link: &Link| link.has_local_peer && changed.interfaces_changed();
        let with_local_peer =
            self.links.iter().filter(|(_, link)| peer_may_have_moved(link)).map(|(ifindex, _)| *ifindex);
        let links: BTreeSet<IfIndex> = with_local_peer.chain(changed.links.iter().copied()).collect();
        for ifindex in links {
            match netlink.link(ifindex)? {
                Some(link) => self.links.insert(ifindex, link),
                None => self.links.remove(&ifindex),
            };
        }
        if changed.addresses {
            self.addresses = netlink.addresses(None)?;
        }
        Ok(())
    }
}
