//! Reads a pod's connections from `nf_conntrack` (ctnetlink).
//!
//! Source: `include/uapi/linux/netfilter/nfnetlink_conntrack.h`, `nf_conntrack_common.h`, `nf_conntrack_tcp.h`.

use std::collections::HashSet;
use std::io;
use std::net::IpAddr;

use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};
use netpol_common::{flow_state, protocol};

/// `NFNL_SUBSYS_CTNETLINK`, `IPCTNL_MSG_CT_GET`.
const GET: u16 = 1 << 8 | 1;
/// `NLM_F_REQUEST | NLM_F_DUMP`.
const REQUEST_DUMP: u16 = 0x301;
/// `NLMSG_ERROR`, `NLMSG_DONE`.
const ERROR: u16 = 2;
const DONE: u16 = 3;
/// Flag of nested attributes.
const NESTED: u16 = 0x8000;
/// Mask of an attribute's type, without its two flag bits.
const TYPE: u16 = 0x3fff;

/// The numbers of attributes. The attributes inside each nested attribute have numbers of their own, from 1.
mod attribute {
    /// Attributes of a connection.
    pub(super) const TUPLE_ORIG: u16 = 1;
    pub(super) const TUPLE_REPLY: u16 = 2;
    pub(super) const STATUS: u16 = 3;
    pub(super) const PROTOINFO: u16 = 4;
    pub(super) const FILTER: u16 = 25;
    /// Attributes of a tuple.
    pub(super) const IP: u16 = 1;
    pub(super) const PROTO: u16 = 2;
    /// Attributes of `IP`.
    pub(super) const V4_SOURCE: u16 = 1;
    pub(super) const V4_DESTINATION: u16 = 2;
    pub(super) const V6_SOURCE: u16 = 3;
    pub(super) const V6_DESTINATION: u16 = 4;
    /// Attributes of `PROTO`.
    pub(super) const NUMBER: u16 = 1;
    pub(super) const SOURCE_PORT: u16 = 2;
    pub(super) const DESTINATION_PORT: u16 = 3;
    pub(super) const ICMP_ID: u16 = 4;
    pub(super) const ICMP_TYPE: u16 = 5;
    pub(super) const ICMPV6_ID: u16 = 7;
    pub(super) const ICMPV6_TYPE: u16 = 8;
    /// Attributes of `PROTOINFO`, and of `TCP` in it.
    pub(super) const TCP: u16 = 1;
    pub(super) const TCP_STATE: u16 = 1;
    /// Attributes of `FILTER`.
    pub(super) const ORIG_FLAGS: u16 = 1;
    pub(super) const REPLY_FLAGS: u16 = 2;
}

/// `CTA_FILTER_FLAG(CTA_IP_SRC)`. Source: `include/linux/netfilter/nf_conntrack_common.h` of Linux 5.8.
const FILTER_SOURCE: u32 = 1;
/// `IPS_SEEN_REPLY`, `IPS_DYING`.
const SEEN_REPLY: u32 = 1 << 1;
const DYING: u32 = 1 << 9;

/// One direction of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tuple {
    pub(super) source: IpAddr,
    pub(super) destination: IpAddr,
    pub(super) protocol: u8,
    /// Ports are in network byte order. For ICMP echo, both ports are the identifier.
    pub(super) source_port: [u8; 2],
    pub(super) destination_port: [u8; 2],
}

/// A connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Connection {
    /// The tuple of the first packet, before address translation.
    pub(super) original: Tuple,
    /// The tuple of replies, before they are translated back.
    pub(super) reply: Tuple,
    /// The flow state for this connection: see [`flow_state`].
    pub(super) state: u8,
}

/// A client of `nf_conntrack`.
pub(super) struct Conntrack {
    socket: Socket,
    sequence: u32,
    /// Whether the kernel can filter by address (Linux 5.8).
    can_filter: bool,
}

impl Conntrack {
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { socket, sequence: 0, can_filter: true })
    }

    /// Returns the connections that have one of these addresses as the source in either direction.
    pub(super) fn connections_of(&mut self, addresses: &[IpAddr]) -> io::Result<Vec<Connection>> {
        /// For more addresses than this, it is cheaper to read the whole table: with a filter, the kernel walks through
        /// its table twice for each address, once for each direction.
        const MAX_FILTERED: usize = 4;
        if self.can_filter && addresses.len() <= MAX_FILTERED {
            match self.filtered(addresses) {
                Err(error) if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EINVAL)) => {
                    self.can_filter = false;
                }
                result => return result,
            }
        }
        let mut found = Vec::new();
        for family in [libc::AF_INET, libc::AF_INET6] {
            if addresses.iter().any(|address| family_of(*address) == family) {
                self.dump(family, &[], &mut found)?;
            }
        }
        let addresses: HashSet<&IpAddr> = addresses.iter().collect();
        found.retain(|connection: &Connection| {
            addresses.contains(&connection.original.source) || addresses.contains(&connection.reply.source)
        });
        Ok(found)
    }

    /// Returns all connections.
    pub(super) fn all(&mut self) -> io::Result<Vec<Connection>> {
        let mut found = Vec::new();
        for family in [libc::AF_INET, libc::AF_INET6] {
            self.dump(family, &[], &mut found)?;
        }
        Ok(found)
    }

    /// Same as [`Self::connections_of`], but the kernel filters.
    fn filtered(&mut self, addresses: &[IpAddr]) -> io::Result<Vec<Connection>> {
        let mut found = Vec::new();
        for address in addresses {
            let directions =
                [(attribute::TUPLE_ORIG, attribute::ORIG_FLAGS), (attribute::TUPLE_REPLY, attribute::REPLY_FLAGS)];
            for (tuple, flags) in directions {
                let source = match address {
                    IpAddr::V4(v4) => encoded(attribute::V4_SOURCE, &v4.octets()),
                    IpAddr::V6(v6) => encoded(attribute::V6_SOURCE, &v6.octets()),
                };
                let tuple = encoded(tuple | NESTED, &encoded(attribute::IP | NESTED, &source));
                let filter = encoded(attribute::FILTER | NESTED, &encoded(flags, &FILTER_SOURCE.to_ne_bytes()));
                self.dump(family_of(*address), &[tuple, filter].concat(), &mut found)?;
            }
        }
        Ok(found)
    }

    /// Reads the connections of a family that match the filter in these attributes.
    fn dump(&mut self, family: libc::c_int, attributes: &[u8], found: &mut Vec<Connection>) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let length = u32::try_from(20 + attributes.len()).unwrap_or(u32::MAX);
        // `struct nlmsghdr`, then `struct nfgenmsg`: family, version, resource.
        let mut request = length.to_ne_bytes().to_vec();
        request.extend(GET.to_ne_bytes());
        request.extend(REQUEST_DUMP.to_ne_bytes());
        request.extend(self.sequence.to_ne_bytes());
        request.extend([0; 4]);
        request.extend([u8::try_from(family).unwrap_or(0), 0, 0, 0]);
        request.extend(attributes);
        self.socket.send(&request, 0)?;
        loop {
            let (datagram, _) = self.socket.recv_from_full()?;
            let mut rest = &datagram[..];
            while let Some((kind, sequence, body, next)) = message(rest) {
                rest = next;
                if sequence != self.sequence {
                    continue; // The rest of an earlier dump, which failed.
                }
                match kind {
                    DONE | ERROR => {
                        let code = body.get(..4).and_then(|code| code.try_into().ok()).map_or(0, i32::from_ne_bytes);
                        return if code < 0 { Err(io::Error::from_raw_os_error(-code)) } else { Ok(()) };
                    }
                    _ => found.extend(body.get(4..).and_then(connection)),
                }
            }
        }
    }
}

fn family_of(address: IpAddr) -> libc::c_int {
    if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 }
}

/// Splits off the first message of a datagram: returns its type, sequence number and body, and the rest.
fn message(bytes: &[u8]) -> Option<(u16, u32, &[u8], &[u8])> {
    let number = |at: usize| Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    let length = usize::try_from(number(0)?).ok()?;
    let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
    let body = bytes.get(16..length)?;
    Some((kind, number(8)?, body, bytes.get(length.next_multiple_of(4)..).unwrap_or_default()))
}

/// Encodes a netlink attribute.
fn encoded(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// Iterates over the attributes in these bytes.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?) & TYPE;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

fn attribute(bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(kind, _)| *kind == wanted).map(|(_, value)| value)
}

/// Parses a connection. Returns `None` if it is invalid or has ended, or if its packets create no flows (ICMP queries
/// other than echo).
fn connection(bytes: &[u8]) -> Option<Connection> {
    let original = tuple(attribute(bytes, attribute::TUPLE_ORIG)?)?;
    let reply = tuple(attribute(bytes, attribute::TUPLE_REPLY)?)?;
    let status = attribute(bytes, attribute::STATUS)?.try_into().ok().map(u32::from_be_bytes)?;
    if status & DYING != 0 {
        return None;
    }
    let mut state = if status & SEEN_REPLY != 0 { flow_state::REPLIED } else { 0 };
    if original.protocol == protocol::TCP {
        let tcp = attribute(bytes, attribute::PROTOINFO).and_then(|info| attribute(info, attribute::TCP));
        state |= match tcp.and_then(|tcp| attribute(tcp, attribute::TCP_STATE)) {
            // FIN_WAIT, CLOSE_WAIT: one side sent FIN. It is unknown which one, so the initiator is assumed.
            Some([4 | 5]) => flow_state::INITIATOR_FIN,
            // LAST_ACK, TIME_WAIT.
            Some([6 | 7]) => flow_state::INITIATOR_FIN | flow_state::RESPONDER_FIN,
            // CLOSE: reset.
            Some([8]) => return None,
            _ => 0,
        };
    }
    Some(Connection { original, reply, state })
}

fn tuple(bytes: &[u8]) -> Option<Tuple> {
    let ip = attribute(bytes, attribute::IP)?;
    let proto = attribute(bytes, attribute::PROTO)?;
    let v4 = |kind| Some(IpAddr::from(<[u8; 4]>::try_from(attribute(ip, kind)?).ok()?));
    let v6 = |kind| Some(IpAddr::from(<[u8; 16]>::try_from(attribute(ip, kind)?).ok()?));
    let port = |kind| attribute(proto, kind).and_then(|port| <[u8; 2]>::try_from(port).ok());
    let number = *attribute(proto, attribute::NUMBER)?.first()?;
    let (source_port, destination_port) = match number {
        protocol::ICMP | protocol::ICMPV6 => {
            let (id, kind) = if number == protocol::ICMP {
                (attribute::ICMP_ID, attribute::ICMP_TYPE)
            } else {
                (attribute::ICMPV6_ID, attribute::ICMPV6_TYPE)
            };
            // Echo requests and replies. Other ICMP queries create no flows.
            let is_echo = matches!(attribute(proto, kind), Some([0 | 8 | 128 | 129]));
            let id = is_echo.then(|| port(id)).flatten()?;
            (id, id)
        }
        protocol::TCP | protocol::UDP | protocol::SCTP => {
            (port(attribute::SOURCE_PORT)?, port(attribute::DESTINATION_PORT)?)
        }
        _ => ([0; 2], [0; 2]),
    };
    Some(Tuple {
        source: v4(attribute::V4_SOURCE).or_else(|| v6(attribute::V6_SOURCE))?,
        destination: v4(attribute::V4_DESTINATION).or_else(|| v6(attribute::V6_DESTINATION))?,
        protocol: number,
        source_port,
        destination_port,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tuple_of(kind: u16, source: [u8; 4], destination: [u8; 4], ports: [u16; 2]) -> Vec<u8> {
        let ip = [encoded(attribute::V4_SOURCE, &source), encoded(attribute::V4_DESTINATION, &destination)].concat();
        let proto = [
            encoded(attribute::NUMBER, &[protocol::TCP]),
            encoded(attribute::SOURCE_PORT, &ports[0].to_be_bytes()),
            encoded(attribute::DESTINATION_PORT, &ports[1].to_be_bytes()),
        ]
        .concat();
        let tuple = [encoded(attribute::IP | NESTED, &ip), encoded(attribute::PROTO | NESTED, &proto)].concat();
        encoded(kind | NESTED, &tuple)
    }

    /// Returns an entry of the table: a TCP connection to a Service. The node translated the Service's address.
    /// `tcp_state` is a value of `enum tcp_conntrack`: 1 is `SYN_SENT`, 3 `ESTABLISHED`, 5 `CLOSE_WAIT`, 7 `TIME_WAIT`,
    /// and 8 `CLOSE`.
    fn entry(status: u32, tcp_state: u8) -> Vec<u8> {
        let info = encoded(attribute::TCP | NESTED, &encoded(attribute::TCP_STATE, &[tcp_state]));
        [
            tuple_of(attribute::TUPLE_ORIG, [10, 0, 0, 5], [10, 96, 0, 1], [4000, 443]),
            tuple_of(attribute::TUPLE_REPLY, [10, 0, 0, 9], [10, 0, 0, 5], [6443, 4000]),
            encoded(attribute::STATUS, &status.to_be_bytes()),
            encoded(attribute::PROTOINFO | NESTED, &info),
        ]
        .concat()
    }

    #[test]
    fn an_entry_is_parsed_with_its_translation_and_state() {
        let found = connection(&entry(SEEN_REPLY, 3)).expect("no connection was parsed");
        assert_eq!(found.original.destination, IpAddr::from([10, 96, 0, 1]));
        assert_eq!(
            (found.reply.source, found.reply.source_port),
            (IpAddr::from([10, 0, 0, 9]), 6443_u16.to_be_bytes())
        );
        for (status, tcp_state, state) in [
            (0, 1, Some(0)),
            (SEEN_REPLY, 3, Some(flow_state::REPLIED)),
            (SEEN_REPLY, 5, Some(flow_state::REPLIED | flow_state::INITIATOR_FIN)),
            (SEEN_REPLY, 7, Some(flow_state::REPLIED | flow_state::INITIATOR_FIN | flow_state::RESPONDER_FIN)),
            (SEEN_REPLY, 8, None),
            (SEEN_REPLY | DYING, 3, None),
        ] {
            assert_eq!(connection(&entry(status, tcp_state)).map(|found| found.state), state, "{status} {tcp_state}");
        }
    }

    #[test]
    fn truncated_entries_are_not_connections() {
        let whole = entry(SEEN_REPLY, 3);
        // The last 16 bytes are the attribute `PROTOINFO`, which is not required.
        for length in 0..whole.len() - 16 {
            let found = connection(&whole[..length]);
            assert!(found.is_none(), "the first {length} bytes were parsed as {found:?}");
        }
        assert!(message(&[0; 8]).is_none() && message(&[255; 32]).is_none());
    }
}
