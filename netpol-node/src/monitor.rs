//! Reports changes of links (network interfaces), addresses, routes and TC filters of this network namespace.

use std::collections::BTreeSet;
use std::io;
use std::ops::RangeInclusive;
use std::os::fd::AsRawFd;

use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_ROUTE;
use netpol_common::IfIndex;
use tokio::io::unix::AsyncFd;

use super::NetlinkError;
use super::routes::devices_of;

/// Multicast groups of rtnetlink: `RTNLGRP_LINK`, `RTNLGRP_TC`, `RTNLGRP_IPV4_IFADDR`, `RTNLGRP_IPV4_ROUTE`,
/// `RTNLGRP_IPV6_IFADDR`, `RTNLGRP_IPV6_ROUTE`. Source: `include/uapi/linux/rtnetlink.h`.
const GROUPS: [u32; 6] = [1, 4, 5, 7, 9, 11];
/// `RTM_NEWLINK`, `RTM_DELLINK`.
const NEW_LINK: u16 = 16;
const DELETED_LINK: u16 = 17;
/// `RTM_NEWADDR`, `RTM_DELADDR`.
const ADDRESSES: RangeInclusive<u16> = 20..=21;
/// `RTM_NEWROUTE`, `RTM_DELROUTE`.
const ROUTES: RangeInclusive<u16> = 24..=25;
/// `RTM_NEWQDISC` is the first message type of traffic control, `RTM_GETCHAIN` the last.
const TRAFFIC_CONTROL: RangeInclusive<u16> = 36..=102;
/// `RTM_DELQDISC`, `RTM_DELTFILTER`: programs may have been detached.
const DETACHED: [u16; 2] = [37, 45];

/// What has changed since the last call of [`Monitor::changed`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changed {
    /// Addresses of this namespace were added or removed.
    pub addresses: bool,
    /// TC filters or qdiscs were removed, except those of removed interfaces.
    pub filters: bool,
    /// Interfaces that new routes use.
    pub routed: BTreeSet<IfIndex>,
    /// Interfaces that were removed.
    pub gone: BTreeSet<IfIndex>,
    /// Interfaces that appeared or changed.
    pub links: BTreeSet<IfIndex>,
    /// Anything may have changed: messages were lost, or a message is unknown.
    pub anything: bool,
}

impl Changed {
    /// Returns whether links or addresses changed.
    pub fn interfaces_changed(&self) -> bool {
        self.addresses || self.anything || !self.links.is_empty() || !self.gone.is_empty()
    }

    /// Adds later changes.
    pub(super) fn merge(&mut self, later: Self) {
        let Self { addresses, filters, routed, gone, links, anything } = later;
        self.addresses |= addresses;
        self.filters |= filters;
        self.routed.extend(routed);
        self.gone.extend(gone);
        self.links.extend(links);
        self.anything |= anything;
    }

    /// Adds the change that a datagram (one message) reports. If the message is unknown, anything may have changed.
    fn add(&mut self, datagram: &[u8]) {
        match datagram.get(4..6).map(|kind| u16::from_ne_bytes([kind[0], kind[1]])) {
            Some(kind) if DETACHED.contains(&kind) => self.filters = true,
            // Other changes of filters and qdiscs are not reported.
            Some(kind) if TRAFFIC_CONTROL.contains(&kind) => {}
            // Only new routes are used. The next full reading finds removed routes.
            Some(kind) if ROUTES.contains(&kind) => {
                let route = NetlinkMessage::<RouteNetlinkMessage>::deserialize(datagram);
                if let Ok(NetlinkMessage { payload: NetlinkPayload::InnerMessage(message), .. }) = route
                    && let RouteNetlinkMessage::NewRoute(route) = message
                {
                    self.routed.extend(devices_of(&route));
                }
            }
            Some(kind) if ADDRESSES.contains(&kind) => self.addresses = true,
            Some(kind @ (NEW_LINK | DELETED_LINK)) => match family_and_link(datagram) {
                Some((0, ifindex)) if kind == DELETED_LINK => drop(self.gone.insert(ifindex)),
                // Also `RTM_DELLINK` of family `AF_BRIDGE`: an interface left its bridge, but still exists.
                Some((_, ifindex)) => drop(self.links.insert(ifindex)),
                None => self.anything = true,
            },
            _ => self.anything = true,
        }
    }
}

/// Returns the address family and the interface of `RTM_NEWLINK` or `RTM_DELLINK`.
fn family_and_link(datagram: &[u8]) -> Option<(u8, IfIndex)> {
    // Source: `struct nlmsghdr` (16 bytes), then `struct ifinfomsg`: family, pad, type, index.
    let index: [u8; 4] = datagram.get(20..24)?.try_into().ok()?;
    Some((*datagram.get(16)?, IfIndex(u32::from_ne_bytes(index))))
}

/// Reports changes of links and addresses of this namespace, new routes, and removed filters. The caller then reads the
/// current state of what has changed, or of everything if messages were lost.
#[derive(Debug)]
pub struct Monitor {
    socket: AsyncFd<Socket>,
}

impl Monitor {
    /// Opens the socket and subscribes to messages.
    ///
    /// # Errors
    /// If the kernel rejects the socket.
    pub fn open() -> Result<Self, NetlinkError> {
        let mut socket = Socket::new(NETLINK_ROUTE).map_err(NetlinkError::Open)?;
        socket.bind_auto().map_err(NetlinkError::Open)?;
        for group in GROUPS {
            socket.add_membership(group).map_err(NetlinkError::Open)?;
        }
        socket.set_non_blocking(true).map_err(NetlinkError::Open)?;
        // SAFETY: the descriptor lives as long as the socket. `AsyncFd` owns the socket, and nothing replaces it.
        let socket = unsafe { AsyncFd::register(socket) };
        Ok(Self { socket: socket.map_err(|error| NetlinkError::Open(error.into()))? })
    }

    /// Waits for a change. Returns all changes so far, merged.
    ///
    /// # Errors
    /// If the socket fails permanently.
    pub async fn changed(&mut self) -> Result<Changed, NetlinkError> {
        let failed = |source| NetlinkError::Io { request: "watch links", source };
        let mut ready = self.socket.readable().await.map_err(failed)?;
        let fd = ready.get_inner().as_raw_fd();
        let mut buffer = [0_u8; 4096];
        let mut changed = Changed::default();
        loop {
            // SAFETY: the buffer is a local variable of the given length. The kernel truncates a longer message; the
            // rest is not needed.
            let read = unsafe { libc::recv(fd, buffer.as_mut_ptr().cast(), buffer.len(), libc::MSG_DONTWAIT) };
            if read < 0 {
                let error = io::Error::last_os_error();
                match error.raw_os_error() {
                    Some(libc::ENOBUFS) => (changed.filters, changed.anything) = (true, true),
                    Some(libc::EINTR) => {}
                    Some(libc::EAGAIN) => break,
                    _ => return Err(failed(error)),
                }
            } else {
                changed.add(&buffer[..read.unsigned_abs()]);
            }
        }
        ready.clear_ready();
        Ok(changed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_reports_a_change_of_the_object_that_it_names() {
        let datagram = |kind: u16, family: u8| {
            let mut bytes = vec![0; 32];
            bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
            bytes[16] = family;
            bytes[20..24].copy_from_slice(&7_u32.to_ne_bytes());
            bytes
        };
        let index = BTreeSet::from([IfIndex(7)]);
        let (link, gone) =
            (Changed { links: index.clone(), ..Changed::default() }, Changed { gone: index, ..Changed::default() });
        let anything = Changed { anything: true, ..Changed::default() };
        // Messages about links, addresses (21) and next hops (104, which the monitor does not parse). The address
        // families are AF_UNSPEC (0), AF_INET (2) and AF_BRIDGE (7).
        for (kind, family, expected) in [
            (NEW_LINK, 0, &link),
            (NEW_LINK, 7, &link),
            (DELETED_LINK, 0, &gone),
            // A port leaves a bridge.
            (DELETED_LINK, 7, &link),
            (21, 2, &Changed { addresses: true, ..Changed::default() }),
            (104, 0, &anything),
        ] {
            let mut changed = Changed::default();
            changed.add(&datagram(kind, family));
            assert_eq!(&changed, expected, "{kind} {family}");
            assert!(changed.interfaces_changed());
        }
        let mut changed = Changed::default();
        changed.add(&datagram(NEW_LINK, 0)[..20]);
        assert_eq!(changed, anything);
    }
}
