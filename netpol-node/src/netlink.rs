//! Reads links (network interfaces) and addresses by netlink: those of this network namespace, where the socket was
//! opened, and those of the pods' network namespaces, without entering them.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv6Addr};

use ipnet::IpNet;
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use netpol_common::IfIndex;
use thiserror::Error;

use super::tunnels::{TunnelEndpoints, opened_by};

/// Maximum number of attempts for a dump, if changes interrupt it.
const MAX_DUMP_ATTEMPTS: u32 = 8;

/// An error of rtnetlink.
#[derive(Debug, Error)]
pub enum NetlinkError {
    /// The socket could not be opened.
    #[error("cannot open a netlink socket: {0}; the agent needs the host's network namespace and CAP_NET_ADMIN")]
    Open(#[source] io::Error),
    /// Sending or receiving failed, or the kernel rejected the request.
    #[error("cannot {request} over netlink: {source}")]
    Io {
        /// The request.
        request: &'static str,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// Changes interrupted all attempts of a dump, so entries may be missing.
    #[error("cannot {request} over netlink: entries changed during every attempt")]
    Changing {
        /// The request.
        request: &'static str,
    },
    /// The reply could not be parsed.
    #[error("cannot {request} over netlink: invalid reply from the kernel: {message}")]
    Reply {
        /// The request.
        request: &'static str,
        /// The error.
        message: String,
    },
}

/// A veth with its other end (peer) in another namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Veth {
    /// The index of the veth in this namespace.
    pub ifindex: IfIndex,
    /// The name of the veth in this namespace.
    pub name: String,
    /// The ID (nsid) that the peer's namespace has in this namespace.
    pub namespace: i32,
    /// The index of the peer in its namespace.
    pub peer: u32,
    /// The bridge that the veth is connected to.
    pub bridge: Option<IfIndex>,
    /// Number of packets that the veth has received and sent, in total.
    pub packets: u64,
}

/// What is read about an interface of this namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// The interface as a veth; `None` if it is not a veth, or its peer is in this namespace.
    pub veth: Option<Veth>,
    /// Whether the interface is a veth with a peer in this namespace.
    pub has_local_peer: bool,
    /// The interface's name and link type; `None` for loopback.
    pub device: Option<Device>,
    /// The tunnel endpoints that the interface opens: ports or protocols at which the kernel decapsulates packets.
    pub tunnels: TunnelEndpoints,
}

/// The name and the link type of an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// The name.
    pub name: String,
    /// Whether the interface's packets have no link-layer header, as on most tunnels.
    pub has_no_link_header: bool,
}

/// Whether a dump is complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Completeness {
    /// The dump has all entries.
    Complete,
    /// Entries changed during the dump, so entries may be missing (`NLM_F_DUMP_INTR`).
    Interrupted,
}

/// A socket of rtnetlink: sends requests and waits for replies.
#[derive(Debug)]
pub struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    /// Opens a socket in the network namespace of the calling thread.
    ///
    /// # Errors
    /// If the kernel rejects the socket, or is older than 4.20 (no strict checking).
    pub fn open() -> Result<Self, NetlinkError> {
        let mut socket = Socket::new(NETLINK_ROUTE).map_err(NetlinkError::Open)?;
        socket.bind_auto().map_err(NetlinkError::Open)?;
        socket.connect(&SocketAddr::new(0, 0)).map_err(NetlinkError::Open)?;
        // Without strict checking, the kernel ignores IFA_TARGET_NETNSID and dumps this namespace.
        socket.set_netlink_get_strict_chk(true).map_err(NetlinkError::Open)?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Returns all interfaces of this namespace.
    ///
    /// # Errors
    /// If the dump fails.
    pub fn links(&mut self) -> Result<BTreeMap<IfIndex, Link>, NetlinkError> {
        let mut links = BTreeMap::new();
        self.dump("list links", &RouteNetlinkMessage::GetLink(LinkMessage::default()), |message| {
            if let RouteNetlinkMessage::NewLink(message) = message {
                links.insert(IfIndex(message.header.index), link(&message));
            }
        })?;
        Ok(links)
    }

    /// Returns one interface of this namespace, or `None` if it does not exist. This is cheaper than a dump of all
    /// interfaces: a dump takes 2 ms for 130 interfaces, and longer if `rtnl_lock` is contended, because the kernel
    /// takes this lock several times.
    ///
    /// # Errors
    /// If the request fails. It is not an error if the interface does not exist.
    pub fn link(&mut self, ifindex: IfIndex) -> Result<Option<Link>, NetlinkError> {
        let mut request = LinkMessage::default();
        request.header.index = ifindex.0;
        let mut found = None;
        let flags = NLM_F_REQUEST | NLM_F_ACK;
        let read = self.send_request("read a link", flags, RouteNetlinkMessage::GetLink(request), |message| {
            if let RouteNetlinkMessage::NewLink(message) = message {
                found = Some(link(&message));
            }
        });
        match read {
            Ok(_) => Ok(found),
            Err(NetlinkError::Io { source, .. }) if source.raw_os_error() == Some(libc::ENODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Returns the Ethernet address of an interface in the namespace with this ID (nsid). The request selects the
    /// namespace by `IFLA_TARGET_NETNSID` (Linux 4.19), so neither setns nor a path of the namespace is needed.
    ///
    /// # Errors
    /// If the kernel rejects the request, for example because the interface or its namespace was just removed.
    pub fn mac(&mut self, namespace: i32, index: u32) -> Result<Option<[u8; 6]>, NetlinkError> {
        let mut request = LinkMessage::default();
        request.header.index = index;
        request.attributes.push(LinkAttribute::IfNetnsId(namespace));
        let mut mac = None;
        // The kernel marks the end of a single reply only if an acknowledgment is requested.
        let flags = NLM_F_REQUEST | NLM_F_ACK;
        self.send_request("read a link-layer address", flags, RouteNetlinkMessage::GetLink(request), |message| {
            if let RouteNetlinkMessage::NewLink(link) = message {
                mac = link.attributes.iter().find_map(ethernet_address);
            }
        })?;
        Ok(mac)
    }

    /// Returns the number of packets that an interface of this namespace has received and sent.
    ///
    /// # Errors
    /// If the kernel rejects the request, for example because the interface was just removed.
    pub fn packets(&mut self, ifindex: IfIndex) -> Result<Option<u64>, NetlinkError> {
        let mut request = LinkMessage::default();
        request.header.index = ifindex.0;
        let mut packets = None;
        let flags = NLM_F_REQUEST | NLM_F_ACK;
        self.send_request("read packet counters", flags, RouteNetlinkMessage::GetLink(request), |message| {
            if let RouteNetlinkMessage::NewLink(link) = message {
                packets = link.attributes.iter().find_map(|attribute| match attribute {
                    LinkAttribute::Stats64(stats) => Some(stats.rx_packets + stats.tx_packets),
                    _ => None,
                });
            }
        })?;
        Ok(packets)
    }

    /// Returns the addresses of each interface, with prefix lengths, by interface index. `namespace` is the ID of a
    /// namespace (nsid); `None` is this namespace.
    ///
    /// # Errors
    /// If the dump fails, for example because the namespace was just removed.
    pub fn addresses(&mut self, namespace: Option<i32>) -> Result<BTreeMap<u32, Vec<IpNet>>, NetlinkError> {
        let mut request = AddressMessage::default();
        request.attributes.extend(namespace.map(AddressAttribute::TargetNetNsId));
        let mut addresses: BTreeMap<u32, Vec<IpNet>> = BTreeMap::new();
        self.dump("list addresses", &RouteNetlinkMessage::GetAddress(request), |message| {
            if let RouteNetlinkMessage::NewAddress(message) = message
                && let Some(address) = local_address(&message)
                && let Ok(address) = IpNet::new(address, message.header.prefix_len)
            {
                addresses.entry(message.header.index).or_default().push(address);
            }
        })?;
        Ok(addresses)
    }

    /// Sends a dump request, and passes all entries to `each` when a dump is complete.
    pub(super) fn dump(
        &mut self,
        request: &'static str,
        payload: &RouteNetlinkMessage,
        each: impl FnMut(RouteNetlinkMessage),
    ) -> Result<(), NetlinkError> {
        // An incomplete dump is repeated, because a veth that is missing from it would be treated as removed.
        for _ in 0..MAX_DUMP_ATTEMPTS {
            let mut replies = Vec::new();
            let completeness =
                self.send_request(request, NLM_F_DUMP | NLM_F_REQUEST, payload.clone(), |reply| replies.push(reply))?;
            if completeness == Completeness::Complete {
                replies.into_iter().for_each(each);
                return Ok(());
            }
        }
        Err(NetlinkError::Changing { request })
    }

    /// Sends a request, and passes each reply to `each` until the kernel has sent the last one. Returns whether the
    /// replies are complete: a dump may be interrupted.
    pub(super) fn send_request(
        &mut self,
        request: &'static str,
        flags: u16,
        payload: RouteNetlinkMessage,
        mut each: impl FnMut(RouteNetlinkMessage),
    ) -> Result<Completeness, NetlinkError> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut message = NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::from(payload));
        message.header.flags = flags;
        message.header.sequence_number = self.sequence;
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        let io_error = |source| NetlinkError::Io { request, source };
        self.socket.send(&bytes, 0).map_err(io_error)?;
        let mut completeness = Completeness::Complete;
        loop {
            let (datagram, _) = self.socket.recv_from_full().map_err(io_error)?;
            let mut rest = &datagram[..];
            while rest.len() >= 16 {
                let reply = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
                    .map_err(|error| NetlinkError::Reply { request, message: error.to_string() })?;
                let length = (reply.header.length as usize).next_multiple_of(4).max(16);
                rest = rest.get(length..).unwrap_or_default();
                if reply.header.sequence_number != self.sequence {
                    continue; // A late reply to an earlier request that failed.
                }
                if reply.header.flags & NLM_F_DUMP_INTR != 0 {
                    completeness = Completeness::Interrupted;
                }
                match reply.payload {
                    NetlinkPayload::InnerMessage(inner) => each(inner),
                    NetlinkPayload::Done(done) if done.code < 0 => {
                        return Err(io_error(io::Error::from_raw_os_error(-done.code)));
                    }
                    NetlinkPayload::Error(error) if error.code.is_some() => return Err(io_error(error.to_io())),
                    // Error code 0 is an acknowledgment.
                    NetlinkPayload::Done(_) | NetlinkPayload::Error(_) => return Ok(completeness),
                    _ => {}
                }
            }
        }
    }
}

/// Returns the Ethernet address in an attribute. `None`: the attribute is not a link-layer address, or does not have
/// the six bytes of an Ethernet address.
fn ethernet_address(attribute: &LinkAttribute) -> Option<[u8; 6]> {
    match attribute {
        LinkAttribute::Address(address) => address.as_slice().try_into().ok(),
        _ => None,
    }
}

fn link(message: &LinkMessage) -> Link {
    let (veth, is_veth) = (veth(message), is_veth(message));
    let has_local_peer = is_veth && veth.is_none();
    Link { veth, has_local_peer, device: device(message), tunnels: opened_by(message) }
}

fn device(link: &LinkMessage) -> Option<Device> {
    let name = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.clone()),
        _ => None,
    });
    let is_loopback = link.header.flags.contains(LinkFlags::Loopback);
    let has_no_link_header = matches!(
        link.header.link_layer_type,
        LinkLayerType::None
            | LinkLayerType::Tunnel
            | LinkLayerType::Tunnel6
            | LinkLayerType::Sit
            | LinkLayerType::Ipgre
            | LinkLayerType::Ip6gre
            | LinkLayerType::Ppp
            | LinkLayerType::Rawip
    );
    name.filter(|_| !is_loopback).map(|name| Device { name, has_no_link_header })
}

fn is_veth(link: &LinkMessage) -> bool {
    let is_veth = |attribute: &LinkAttribute| match attribute {
        LinkAttribute::LinkInfo(infos) => infos.contains(&LinkInfo::Kind(InfoKind::Veth)),
        _ => false,
    };
    link.attributes.iter().any(is_veth)
}

/// Returns the link as a veth; `None` if it is not a veth with a peer in another namespace.
fn veth(link: &LinkMessage) -> Option<Veth> {
    let (mut name, mut namespace, mut peer, mut bridge) = (None, None, None, None);
    let mut packets = 0;
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::IfName(value) => name = Some(value.clone()),
            LinkAttribute::LinkNetNsId(value) => namespace = Some(*value),
            LinkAttribute::Link(value) => peer = Some(*value),
            LinkAttribute::Controller(value) => bridge = Some(IfIndex(*value)),
            LinkAttribute::Stats64(stats) => packets = stats.rx_packets + stats.tx_packets,
            _ => {}
        }
    }
    let (name, namespace, peer) = (name?, namespace?, peer?);
    is_veth(link).then_some(Veth { ifindex: IfIndex(link.header.index), name, namespace, peer, bridge, packets })
}

/// Returns the interface's own address: `IFA_LOCAL`, or `IFA_ADDRESS` if there is no `IFA_LOCAL`. On point-to-point
/// links, `IFA_ADDRESS` is the address of the other end.
fn local_address(message: &AddressMessage) -> Option<IpAddr> {
    let mut address = None;
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(local) => return Some(*local),
            AddressAttribute::Address(other) => address = Some(*other),
            _ => {}
        }
    }
    address
}

/// Returns whether an address is in `fe80::/10`.
pub fn is_link_local(address: &Ipv6Addr) -> bool {
    address.segments()[0] & 0xffc0 == 0xfe80
}
