//! IPv6 and its extension headers. RFC 8200.

use netpol_common::{Reason, protocol};

use super::link::{ETHERNET, ether_type};
use super::{Fragment, Packet, Parse, Transport, Window, transport};
use crate::Surroundings;

/// Length of the fixed header.
const HEADER: usize = 40;
/// A frame that holds all that is read of a plain packet.
const PLAIN: usize = ETHERNET + HEADER + transport::HEAD;
/// Extension headers that are walked.
const EXTENSIONS: usize = 8;

/// Extension headers, <https://www.iana.org/assignments/ipv6-parameters/>.
mod next_header {
    pub(super) const HOP_BY_HOP: u8 = 0;
    pub(super) const ROUTING: u8 = 43;
    pub(super) const FRAGMENT: u8 = 44;
    pub(super) const AUTHENTICATION: u8 = 51;
    pub(super) const DESTINATION: u8 = 60;
}

/// Reads a packet without VLAN tags and extension headers, as nearly all are; `None`: read it the long way.
#[inline(always)]
pub(super) fn parse_plain<S: Surroundings>(surroundings: &S) -> Option<Packet<[u8; 16]>> {
    let frame: Window<'_, PLAIN> = surroundings.window()?;
    let header: Window<'_, HEADER> = frame.part::<ETHERNET, HEADER>();
    let protocol = header.byte::<6>();
    if frame.number::<12>() != ether_type::IPV6
        || header.byte::<0>() >> 4 != 6
        || !(protocol::has_ports(protocol) || protocol == protocol::ICMPV6)
        || is_short(header, protocol)
    {
        return None;
    }
    Some(Packet {
        start: ETHERNET as u32,
        payload: (ETHERNET + HEADER) as u32,
        source: header.sixteen::<8>(),
        destination: header.sixteen::<24>(),
        protocol,
        hops: header.byte::<7>(),
        fragment: Fragment::Whole,
        transport: transport::read(protocol, frame.part::<{ ETHERNET + HEADER }, { transport::HEAD }>()),
        problem: None,
    })
}

impl Parse for [u8; 16] {
    #[inline(always)]
    fn parse<S: Surroundings>(surroundings: &S, start: u32, quoted: bool) -> Result<Packet<Self>, Reason> {
        let bytes: [u8; HEADER] = surroundings.load(start).ok_or(Reason::Malformed)?;
        let header = Window::of(&bytes);
        if header.byte::<0>() >> 4 != 6 {
            return Err(Reason::Malformed);
        }
        let mut packet = Packet {
            start,
            payload: start + HEADER as u32,
            source: header.sixteen::<8>(),
            destination: header.sixteen::<24>(),
            protocol: header.byte::<6>(),
            hops: header.byte::<7>(),
            fragment: Fragment::Whole,
            transport: Transport::default(),
            problem: None,
        };
        if let Err(reason) = walk(surroundings, &mut packet) {
            packet.problem = Some(reason);
        } else if let Fragment::Later { .. } = packet.fragment {
        } else if ends_before_transport(header, &packet) && !quoted {
            packet.problem = Some(Reason::Malformed);
        } else {
            match transport::load(surroundings, packet.payload, packet.protocol, quoted) {
                Ok(transport) => packet.transport = transport,
                Err(reason) => packet.problem = Some(reason),
            }
        }
        Ok(packet)
    }
}

/// Walks the extension headers up to the transport header. What cannot be looked into (ESP, no next header) counts as
/// transport.
#[inline(always)]
fn walk<S: Surroundings>(surroundings: &S, packet: &mut Packet<[u8; 16]>) -> Result<(), Reason> {
    let mut fragmented = false;
    for position in 0..=EXTENSIONS {
        let kind = packet.protocol;
        if !matches!(
            kind,
            next_header::HOP_BY_HOP
                | next_header::ROUTING
                | next_header::FRAGMENT
                | next_header::AUTHENTICATION
                | next_header::DESTINATION
        ) {
            return Ok(());
        }
        if position == EXTENSIONS {
            break;
        }
        let bytes: [u8; 8] = surroundings.load(packet.payload).ok_or(Reason::Malformed)?;
        let header = Window::of(&bytes);
        packet.protocol = header.byte::<0>();
        packet.payload += match kind {
            // RFC 8200, 4.1: only right after the IPv6 header.
            next_header::HOP_BY_HOP if position != 0 => return Err(Reason::Malformed),
            // With segments left, the destination is not where the packet goes.
            next_header::ROUTING if header.byte::<3>() != 0 => return Err(Reason::Malformed),
            next_header::AUTHENTICATION => (u32::from(header.byte::<1>()) + 2) * 4,
            next_header::FRAGMENT => {
                if fragmented {
                    return Err(Reason::Malformed);
                }
                fragmented = true;
                packet.fragment = fragment(header);
                if let Fragment::Later { .. } = packet.fragment {
                    // RFC 1858, 4.2, as for IPv4; here the offset's unit of 8 bytes is in the upper 13 bits.
                    let rewrites = packet.protocol == protocol::TCP && header.number::<2>() >> 3 == 1;
                    return if rewrites { Err(Reason::Malformed) } else { Ok(()) };
                }
                8
            }
            _ => (u32::from(header.byte::<1>()) + 1) * 8,
        };
    }
    Err(Reason::TooManyHeaders)
}

/// RFC 8200, 4.5. A fragment that is a whole datagram is treated as one (RFC 6946).
#[inline(always)]
fn fragment(header: Window<'_, 8>) -> Fragment {
    let field = header.number::<2>();
    let identification = u32::from_ne_bytes(header.quad::<4>());
    if field >> 3 != 0 {
        Fragment::Later { identification }
    } else if field & 1 != 0 {
        Fragment::First { identification }
    } else {
        Fragment::Whole
    }
}

/// Whether a plain packet says that it ends before its transport header does. Jumbo packets say 0 (RFC 2675).
#[inline(always)]
fn is_short(header: Window<'_, HEADER>, protocol: u8) -> bool {
    let length = u32::from(header.number::<4>());
    length != 0 && length < transport::needed(protocol)
}

/// The same behind extension headers.
#[inline(always)]
fn ends_before_transport(header: Window<'_, HEADER>, packet: &Packet<[u8; 16]>) -> bool {
    let length = u32::from(header.number::<4>());
    let walked = packet.payload.wrapping_sub(packet.start + HEADER as u32);
    length != 0 && length < walked + transport::needed(packet.protocol)
}
