//! From a frame to what policies speak of. One file per header.

#![allow(clippy::cast_possible_truncation, reason = "lengths of headers, which are constants")]

mod ipv4;
mod ipv6;
pub(crate) mod link;
mod transport;
mod window;

use core::marker::PhantomData;

use netpol_common::{Reason, protocol};

pub(crate) use ipv4::parse_plain as parse_plain_v4;
pub(crate) use ipv6::{parse_plain as parse_plain_v6, walk};
pub(crate) use link::parse as find;
pub(crate) use transport::read_packed;
pub use window::{Bytes, Window};

use crate::Surroundings;
use crate::guard::Mac;
use crate::surroundings::PacketAddress;

/// Where the IP header of a [`Plain`] packet starts.
pub(crate) const PLAIN_START: u32 = link::ETHERNET as u32;

/// A packet of a protocol with ports whose headers are just Ethernet, IP and transport.
pub(crate) struct Plain<A> {
    /// The Ethernet source.
    pub(crate) link_source: Mac,
    pub(crate) source: A,
    pub(crate) destination: A,
    pub(crate) source_port: [u8; 2],
    pub(crate) destination_port: [u8; 2],
    pub(crate) protocol: u8,
    pub(crate) flags: TcpFlags,
}

impl<A> Plain<A> {
    #[inline(always)]
    fn new(link_source: Mac, source: A, destination: A, protocol: u8, head: Window<'_, { transport::HEAD }>) -> Self {
        let flags = match protocol {
            protocol::TCP => TcpFlags(head.byte::<13>()),
            protocol::SCTP => TcpFlags::of_chunk(head.byte::<{ transport::CHUNK }>()),
            _ => TcpFlags(0),
        };
        Self {
            link_source,
            source,
            destination,
            source_port: head.pair::<0>(),
            destination_port: head.pair::<2>(),
            protocol,
            flags,
        }
    }
}

/// An IP packet, as far as it could be read. Its addresses are read where they are needed ([`Parse::ends`]): the stack is
/// small.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Packet<A> {
    /// Where its IP header starts in the frame.
    pub(crate) start: u32,
    /// Where its transport header starts.
    pub(crate) payload: u32,
    /// The transport protocol.
    pub(crate) protocol: u8,
    /// Hop limit or time to live.
    pub(crate) hops: u8,
    pub(crate) fragment: Fragment,
    pub(crate) transport: Transport,
    /// What was wrong from the transport header on, or with the headers before it.
    pub(crate) problem: Option<Reason>,
    pub(crate) family: PhantomData<A>,
}

/// What a packet is of its datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fragment {
    /// All of it.
    Whole,
    /// The fragment that has the transport header.
    First {
        /// In the packet's byte order.
        identification: u32,
    },
    /// One without.
    Later {
        /// In the packet's byte order.
        identification: u32,
    },
}

/// The transport header, as far as verdicts need it; zeros where the protocol has nothing of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Transport {
    /// ICMP: type and code.
    pub(crate) source_port: [u8; 2],
    /// ICMP: the identifier.
    pub(crate) destination_port: [u8; 2],
    /// TCP, and SCTP's INIT.
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

    /// The flags that an SCTP packet with this first chunk counts as having: INIT starts an association, and is alone in its packet
    /// (RFC 9260, 6.10).
    #[inline(always)]
    pub(crate) const fn of_chunk(kind: u8) -> Self {
        /// RFC 9260, 3.2.
        const INIT: u8 = 1;
        Self(if kind == INIT { Self::SYN } else { 0 })
    }

    /// Whether a bit is set.
    #[inline(always)]
    pub(crate) const fn has(self, flag: u8) -> bool {
        self.0 & flag != 0
    }

    /// Whether it opens a connection and answers nothing.
    #[inline(always)]
    pub(crate) const fn opens(self) -> bool {
        self.0 & (Self::SYN | Self::ACK | Self::RST | Self::FIN) == Self::SYN
    }
}

/// What an ICMP message is to flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Icmp {
    /// An echo request.
    Question,
    /// An echo reply.
    Answer,
    /// It quotes the packet that it is about.
    Error,
    /// Neighbour, router and multicast listener discovery, if it comes from the link.
    Discovery,
    /// Anything else.
    Other,
}

impl<A: PacketAddress> Packet<A> {
    /// What the ICMP message is; `None` for other protocols, and for IPv4's ICMP over IPv6 and the other way round.
    #[inline(always)]
    pub(crate) fn icmp(&self) -> Option<Icmp> {
        if A::FAMILY == 4 && self.protocol == protocol::ICMP {
            Some(match self.transport.source_port[0] {
                8 => Icmp::Question,
                0 => Icmp::Answer,
                3 | 11 | 12 => Icmp::Error,
                _ => Icmp::Other,
            })
        } else if A::FAMILY == 6 && self.protocol == protocol::ICMPV6 {
            Some(match self.transport.source_port[0] {
                128 => Icmp::Question,
                129 => Icmp::Answer,
                1..=4 => Icmp::Error,
                // RFC 4861, 6.1: whoever is further away than the link cannot send 255.
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

/// IP headers that can be found anywhere in a frame.
pub(crate) trait Parse: PacketAddress {
    /// Whether an IP header of this family is at an offset.
    fn is_readable<S: Surroundings>(surroundings: &S, start: u32) -> bool;
    /// Source and destination of the packet whose IP header starts at an offset.
    fn ends<S: Surroundings>(surroundings: &S, start: u32) -> Option<(Self, Self)>;
    /// Reads the packet whose IP header starts at an offset; `None` where none is readable. Of a packet that an ICMP error
    /// quotes, less is there.
    fn parse<S: Surroundings>(surroundings: &S, start: u32, quoted: bool) -> Option<Packet<Self>>;
}
