//! Parsers that read addresses, protocol and ports from a frame. One file for each header.

#![allow(clippy::cast_possible_truncation, reason = "lengths of headers, which are constants")]

mod ipv4;
mod ipv6;
pub(crate) mod link;
mod transport;

use core::marker::PhantomData;

use netpol_common::{Reason, protocol};

pub(crate) use ipv4::parse_plain as parse_plain_v4;
pub(crate) use ipv6::{parse_plain as parse_plain_v6, walk};
pub(crate) use link::{Mac, parse as find_payload};
pub(crate) use transport::read_packed;

use crate::context::{Context, PacketAddress};
use crate::window::Window;

/// The offset of the IP header of a [`Plain`] packet.
pub(crate) const PLAIN_IP_OFFSET: u32 = link::ETHERNET as u32;

/// A plain packet: its protocol has ports, and it has only Ethernet, IP and transport headers.
pub(crate) struct Plain<A> {
    /// The Ethernet source address.
    pub(crate) link_source: Mac,
    pub(crate) source: A,
    pub(crate) destination: A,
    pub(crate) source_port: [u8; 2],
    pub(crate) destination_port: [u8; 2],
    pub(crate) protocol: u8,
    pub(crate) flags: TcpFlags,
}

impl<A> Plain<A> {
    /// `head`: the first bytes of the transport header.
    #[inline(always)]
    fn new(link_source: Mac, source: A, destination: A, protocol: u8, head: Window<'_, { transport::PREFIX }>) -> Self {
        let flags = match protocol {
            protocol::TCP => TcpFlags(head.byte::<13>()),
            protocol::SCTP => TcpFlags::of_chunk(head.byte::<{ transport::CHUNK_TYPE_OFFSET }>()),
            _ => TcpFlags(0),
        };
        Self {
            link_source,
            source,
            destination,
            source_port: head.two_bytes::<0>(),
            destination_port: head.two_bytes::<2>(),
            protocol,
            flags,
        }
    }
}

/// The headers of an IP packet, as far as they could be parsed. The addresses are not included, because the stack is
/// small: [`Parse::addresses`] reads them where they are needed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Packet<A> {
    /// The offset of the IP header in the frame.
    pub(crate) ip_offset: u32,
    /// The offset of the transport header in the frame.
    pub(crate) payload: u32,
    /// The transport protocol.
    pub(crate) protocol: u8,
    /// The hop limit, or the time to live.
    pub(crate) hops: u8,
    pub(crate) fragment: Fragment,
    /// The IP identification of a fragment, in the packet's byte order.
    pub(crate) identification: u32,
    pub(crate) transport: Transport,
    /// The first error in the headers.
    pub(crate) error: Option<Reason>,
    pub(crate) family: PhantomData<A>,
}

/// The part of a datagram that a packet has. The type is a number and not an enum: for an enum, the compiler generates
/// a copy of the subsequent code for each variant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fragment(pub(crate) u8);

impl Fragment {
    /// The whole datagram.
    pub(crate) const WHOLE: Self = Self(0);
    /// The first fragment, which has the transport header.
    pub(crate) const FIRST: Self = Self(1);
    /// A later fragment, without the transport header.
    pub(crate) const LATER: Self = Self(2);
}

/// The fields of the transport header that verdicts depend on; zero if the protocol does not have them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Transport {
    /// The source port. ICMP: type and code.
    pub(crate) source_port: [u8; 2],
    /// The destination port. ICMP: the identifier.
    pub(crate) destination_port: [u8; 2],
    /// The TCP flags. SCTP: SYN for an INIT chunk.
    pub(crate) flags: TcpFlags,
}

/// The flags byte of a TCP header. RFC 9293, 3.1. SCTP's INIT counts as a SYN.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct TcpFlags(pub(crate) u8);

impl TcpFlags {
    pub(crate) const FIN: u8 = 0x01;
    pub(crate) const SYN: u8 = 0x02;
    pub(crate) const RST: u8 = 0x04;
    pub(crate) const ACK: u8 = 0x10;

    /// Returns the flags for an SCTP packet with this first chunk. INIT starts an association, and is the only chunk of
    /// its packet (RFC 9260, 6.10).
    #[inline(always)]
    pub(crate) const fn of_chunk(kind: u8) -> Self {
        /// RFC 9260, 3.2.
        const INIT: u8 = 1;
        Self(if kind == INIT { Self::SYN } else { 0 })
    }

    /// Returns whether a flag is set.
    #[inline(always)]
    pub(crate) const fn has(self, flag: u8) -> bool {
        self.0 & flag != 0
    }

    /// Returns whether the packet is a SYN without ACK, RST and FIN.
    #[inline(always)]
    pub(crate) const fn starts_connection(self) -> bool {
        self.0 & (Self::SYN | Self::ACK | Self::RST | Self::FIN) == Self::SYN
    }
}

/// The kind of an ICMP message, with respect to flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Icmp {
    /// An echo request.
    EchoRequest,
    /// An echo reply.
    EchoReply,
    /// An error, which quotes a packet.
    Error,
    /// Neighbor, router or multicast listener discovery, with the hop limit that the protocol requires.
    Discovery,
    /// Anything else.
    Other,
}

impl<A: PacketAddress> Packet<A> {
    /// Returns the kind of an ICMP message. `None` for other protocols, and for the ICMP version of the other IP
    /// family. The first byte of an ICMP message, its type, is in `source_port`.
    #[inline(always)]
    pub(crate) fn icmp(&self) -> Option<Icmp> {
        if A::FAMILY == 4 && self.protocol == protocol::ICMP {
            Some(match self.transport.source_port[0] {
                8 => Icmp::EchoRequest,
                0 => Icmp::EchoReply,
                3 | 11 | 12 => Icmp::Error,
                _ => Icmp::Other,
            })
        } else if A::FAMILY == 6 && self.protocol == protocol::ICMPV6 {
            Some(match self.transport.source_port[0] {
                128 => Icmp::EchoRequest,
                129 => Icmp::EchoReply,
                1..=4 => Icmp::Error,
                // RFC 4861, 6.1: a packet from outside the link cannot have hop limit 255.
                133..=137 if self.hops == 255 => Icmp::Discovery,
                // RFC 2710, 3, and RFC 3810, 5.
                130..=132 | 143 if self.hops == 1 => Icmp::Discovery,
                _ => Icmp::Other,
            })
        } else {
            None
        }
    }
}

/// The parsers that are separate BPF functions in the kernel. The verifier checks each of them once, and not once for
/// each caller. Arguments and results are numbers.
pub(crate) trait ParserFunctions: Context {
    /// Reads IPv6 extension headers, see [`walk`].
    #[inline(always)]
    fn walk(self, start: u32, first: u8) -> u64 {
        walk(&self, start, first)
    }
    /// Reads a transport header. `quoted`: the header is in an ICMP error and may be cut off. The result is packed by
    /// [`read_packed`].
    #[inline(always)]
    fn transport(self, offset: u32, protocol: u8, quoted: bool) -> u64 {
        read_packed(&self, offset, protocol, quoted)
    }
}

/// Parsers for the IP headers at an offset of a frame.
pub(crate) trait Parse: PacketAddress {
    /// Returns whether an IP header of this family is at an offset, and can be read.
    fn is_readable<S: Context>(context: &S, ip_offset: u32) -> bool;
    /// Returns source and destination of the packet with its IP header at an offset.
    fn addresses<S: Context>(context: &S, ip_offset: u32) -> Option<(Self, Self)>;
    /// Parses the packet with its IP header at an offset; `None` if no such header is there. `quoted`: an ICMP error
    /// quotes the packet, so the packet may be cut off.
    fn parse<S: ParserFunctions>(context: &S, ip_offset: u32, quoted: bool) -> Option<Packet<Self>>;
}
