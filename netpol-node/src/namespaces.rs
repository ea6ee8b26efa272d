//! The IDs of network namespaces.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use netlink_packet_core::{NLM_F_ACK, NLM_F_REQUEST};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::nsid::{NsidAttribute, NsidMessage};

use crate::netlink::{Netlink, NetlinkError};

impl Netlink {
    /// Returns the ID of a network namespace (the namespace of `file`), as seen from the namespace of this socket. The
    /// kernel assigns an ID when a veth between the two namespaces is created. Reading the ID, and reading the
    /// addresses of the namespace by this ID, does not need `CAP_SYS_ADMIN`. `setns` would need it.
    ///
    /// # Errors
    /// If the file is no network namespace, or no interface in the socket's namespace has a peer in the file's
    /// namespace.
    pub fn namespace_id(&mut self, file: impl AsFd) -> Result<i32, NetlinkError> {
        const REQUEST: &str = "read the ID of a network namespace";
        let mut request = NsidMessage::default();
        // A file descriptor is not negative.
        request.attributes.push(NsidAttribute::Fd(file.as_fd().as_raw_fd().cast_unsigned()));
        let mut id = None;
        let flags = NLM_F_REQUEST | NLM_F_ACK;
        self.send_request(REQUEST, flags, RouteNetlinkMessage::GetNsId(request), |message| {
            if let RouteNetlinkMessage::NewNsId(message) = message {
                id = message.attributes.iter().find_map(|attribute| match attribute {
                    // NETNSA_NSID_NOT_ASSIGNED is -1.
                    NsidAttribute::Id(id) if *id >= 0 => Some(*id),
                    _ => None,
                });
            }
        })?;
        let none = || io::Error::new(io::ErrorKind::NotFound, "no interface of this node has a peer in this namespace");
        id.ok_or_else(|| NetlinkError::Io { request: REQUEST, source: none() })
    }
}
