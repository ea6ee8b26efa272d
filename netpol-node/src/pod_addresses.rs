//! Reports changes of IPv6 addresses in the network namespaces of pods (`NETLINK_LISTEN_ALL_NSID`, Linux 4.2).
//!
//! The kernel sends messages about other network namespaces only to a process with `CAP_NET_BROADCAST`
//! (`do_one_broadcast`, `net/netlink/af_netlink.c`). Without this capability there are no messages, and the next
//! periodic reading of interfaces finds the change.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_ROUTE;
use nix::errno::Errno;
use tokio::io::unix::AsyncFd;

use super::NetlinkError;

/// `RTNLGRP_IPV6_IFADDR`. Source: `include/uapi/linux/rtnetlink.h`.
const IPV6_ADDRESSES: u32 = 9;
/// Source: `include/linux/socket.h`, `include/uapi/linux/netlink.h`.
const SOL_NETLINK: libc::c_int = 270;
/// Minimum interval between two reports of one network namespace. Otherwise, a pod that changes its addresses all the
/// time would cause a report for each change.
const MIN_INTERVAL: Duration = Duration::from_secs(1);

/// Reports changed IPv6 addresses in network namespaces that have an ID (nsid) in the agent's network namespace. The
/// kernel gives an ID to the namespace at the other end of each veth.
#[derive(Debug)]
pub struct PodAddressMonitor {
    socket: AsyncFd<Socket>,
    rate_limit: RateLimit,
}

/// Limits how often a network namespace is reported.
#[derive(Debug, Default)]
struct RateLimit {
    /// When each namespace was last reported.
    last: BTreeMap<i32, Instant>,
    /// Changed namespaces that are not reported yet.
    delayed: BTreeSet<i32>,
}

impl RateLimit {
    /// Adds changes, and returns the namespaces to report now.
    fn due(&mut self, changed: impl IntoIterator<Item = i32>, now: Instant) -> BTreeSet<i32> {
        self.delayed.extend(changed);
        self.last.retain(|_, at| now.duration_since(*at) < MIN_INTERVAL);
        let due: BTreeSet<i32> = self.delayed.iter().filter(|id| !self.last.contains_key(id)).copied().collect();
        self.delayed.retain(|id| !due.contains(id));
        self.last.extend(due.iter().map(|id| (*id, now)));
        due
    }

    /// Returns when the next namespace is due.
    fn next(&self) -> Option<Instant> {
        self.delayed.iter().filter_map(|id| self.last.get(id)).min().map(|at| *at + MIN_INTERVAL)
    }
}

impl PodAddressMonitor {
    /// Opens the socket and subscribes to messages.
    ///
    /// # Errors
    /// If the kernel rejects the socket.
    pub fn open() -> Result<Self, NetlinkError> {
        let mut socket = Socket::new(NETLINK_ROUTE).map_err(NetlinkError::Open)?;
        socket.bind_auto().map_err(NetlinkError::Open)?;
        socket.set_listen_all_namespaces(true).map_err(NetlinkError::Open)?;
        socket.add_membership(IPV6_ADDRESSES).map_err(NetlinkError::Open)?;
        socket.set_non_blocking(true).map_err(NetlinkError::Open)?;
        // SAFETY: the descriptor lives as long as the socket. `AsyncFd` owns the socket, and nothing replaces it.
        let socket = unsafe { AsyncFd::register(socket) };
        Ok(Self { socket: socket.map_err(|error| NetlinkError::Open(error.into()))?, rate_limit: RateLimit::default() })
    }

    /// Waits until addresses have changed, and returns the IDs of the namespaces, each at most once a second. If
    /// messages are lost, the next periodic reading of interfaces finds the changes. Cancel safe.
    ///
    /// # Errors
    /// If the socket fails permanently.
    pub async fn changed(&mut self) -> Result<BTreeSet<i32>, NetlinkError> {
        loop {
            let next = self.rate_limit.next();
            let delay = tokio::time::sleep_until(next.unwrap_or_else(Instant::now).into());
            tokio::select! {
                ready = self.socket.readable() => {
                    let failed = |source| NetlinkError::Io { request: "watch addresses of pods", source };
                    let mut ready = ready.map_err(failed)?;
                    let mut changed = BTreeSet::new();
                    loop {
                        match receive(ready.get_inner().as_raw_fd()) {
                            Ok(namespace) => changed.extend(namespace),
                            Err(Errno::ENOBUFS | Errno::EINTR) => {}
                            Err(Errno::EAGAIN) => break,
                            Err(error) => return Err(failed(error.into())),
                        }
                    }
                    ready.clear_ready();
                    self.rate_limit.delayed.extend(changed);
                }
                () = delay, if next.is_some() => {}
            }
            let due = self.rate_limit.due([], Instant::now());
            if !due.is_empty() {
                return Ok(due);
            }
        }
    }
}

/// Receives one message, and returns the ID of the namespace that it is about. `None`: the agent's own namespace.
fn receive(fd: libc::c_int) -> Result<Option<i32>, Errno> {
    // The content of the message is not needed: addresses are read again.
    let mut head = [0_u8; 16];
    let mut control = [0_u64; 8];
    let mut part = libc::iovec { iov_base: head.as_mut_ptr().cast(), iov_len: head.len() };
    // SAFETY: zero is a valid value of all fields.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control) as _;
    // SAFETY: the pointers in `message` are valid for the lengths stored beside them, and the buffers outlive the call.
    if unsafe { libc::recvmsg(fd, &raw mut message, libc::MSG_DONTWAIT) } < 0 {
        return Err(Errno::from_raw(io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)));
    }
    // SAFETY: the kernel has filled in `message`, and `control` has the alignment of control messages.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    while !header.is_null() {
        // SAFETY: the header is not null, and within `control`.
        let (level, kind) = unsafe { ((*header).cmsg_level, (*header).cmsg_type) };
        if level == SOL_NETLINK && kind == libc::NETLINK_LISTEN_ALL_NSID {
            // SAFETY: the kernel writes an int there (`netlink_cmsg_listen_all_nsid`); it may be unaligned for the
            // type.
            return Ok(Some(unsafe { libc::CMSG_DATA(header).cast::<i32>().read_unaligned() }));
        }
        // SAFETY: as above.
        header = unsafe { libc::CMSG_NXTHDR(&raw const message, header) };
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_is_reported_at_once_and_then_once_a_second() {
        let mut rate_limit = RateLimit::default();
        let start = Instant::now();
        assert_eq!(rate_limit.due([1], start), [1].into());
        let soon = start + MIN_INTERVAL / 10;
        assert_eq!(rate_limit.due([1, 2], soon), [2].into(), "another namespace is not delayed");
        assert_eq!(rate_limit.next(), Some(start + MIN_INTERVAL));
        assert_eq!(rate_limit.due([], start + MIN_INTERVAL), [1].into(), "delayed changes are reported");
        assert!(rate_limit.due([], start + MIN_INTERVAL * 3).is_empty() && rate_limit.next().is_none());
    }
}
