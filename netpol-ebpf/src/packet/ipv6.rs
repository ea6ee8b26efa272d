//! IPv6 and its extension headers. RFC 8200.

use core::marker::PhantomData;

use netpol_common::{REASON_MASK, Reason, protocol};

use super::link::{ETHERNET, ether_type};
use super::{Bytes, Fragment, Packet, Parse, Plain, Transport, Window, transport};
use crate::Surroundings;

/// Length of the fixed header.
const HEADER: usize = 40;
/// What comes before the addresses.
const BEFORE_ENDS: usize = 8;
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

/// Reads a packet with ports and without VLAN tags and extension headers, as nearly all are; `None`: read it the long way.
#[inline(always)]
pub(crate) fn parse_plain<S: Surroundings>(surroundings: &S) -> Option<Plain<[u8; 16]>> {
    let frame: Window<'_, PLAIN> = surroundings.window()?;
    let header: Window<'_, HEADER> = frame.part::<ETHERNET, HEADER>();
    let protocol = header.byte::<6>();
    if frame.number::<12>() != ether_type::IPV6
        || header.byte::<0>() >> 4 != 6
        || !protocol::has_ports(protocol)
        || is_short(header, protocol)
    {
        return None;
    }
    let head = frame.part::<{ ETHERNET + HEADER }, { transport::HEAD }>();
    let link_source = (frame.quad::<6>(), frame.pair::<10>());
    Some(Plain::new(link_source, header.sixteen::<8>(), header.sixteen::<24>(), protocol, head))
}

impl Parse for [u8; 16] {
    #[inline(always)]
    fn is_readable<S: Surroundings>(surroundings: &S, start: u32) -> bool {
        surroundings.load::<HEADER>(start).is_some_and(|Bytes([first, ..])| first >> 4 == 6)
    }

    #[inline(always)]
    fn ends<S: Surroundings>(surroundings: &S, start: u32) -> Option<(Self, Self)> {
        let Bytes(bytes): &Bytes<32> = &surroundings.load(start + BEFORE_ENDS as u32)?;
        let ends = Window::of(bytes);
        Some((ends.sixteen::<0>(), ends.sixteen::<16>()))
    }

    #[inline(always)]
    fn parse<S: Surroundings>(surroundings: &S, start: u32, quoted: bool) -> Option<Packet<Self>> {
        let Bytes(bytes): &Bytes<BEFORE_ENDS> = &surroundings.load(start)?;
        let header = Window::of(bytes);
        if header.byte::<0>() >> 4 != 6 {
            return None;
        }
        let mut packet = Packet {
            start,
            payload: start + HEADER as u32,
            protocol: header.byte::<6>(),
            hops: header.byte::<7>(),
            fragment: Fragment::Whole,
            transport: Transport::default(),
            problem: None,
            family: PhantomData,
        };
        let walked = Walked::unpack(surroundings, surroundings.walk(packet.payload, packet.protocol));
        packet.protocol = walked.protocol;
        packet.payload += u32::from(walked.length);
        packet.problem = walked.problem;
        if walked.fragment_at != NOT_FRAGMENTED {
            let at = start + HEADER as u32 + u32::from(walked.fragment_at);
            let Bytes(bytes): &Bytes<8> = &surroundings.load(at)?;
            packet.fragment = fragment(Window::of(bytes));
        }
        if packet.problem.is_some() || matches!(packet.fragment, Fragment::Later { .. }) {
        } else if ends_before_transport(header, &packet) && !quoted {
            packet.problem = Some(Reason::Malformed);
        } else {
            match transport::load(surroundings, packet.payload, packet.protocol, quoted) {
                Ok(transport) => packet.transport = transport,
                Err(reason) => packet.problem = Some(reason),
            }
        }
        Some(packet)
    }
}

/// [`Walked::fragment_at`] of packets without a fragment header.
const NOT_FRAGMENTED: u16 = u16::MAX;

/// What the extension headers were.
#[derive(Clone, Copy)]
struct Walked {
    /// The transport protocol; of a later fragment, what its fragment header says.
    protocol: u8,
    problem: Option<Reason>,
    /// Where the fragment header starts, behind the IPv6 header.
    fragment_at: u16,
    /// Of all of them, in bytes.
    length: u16,
}

impl Walked {
    /// As one word, which a BPF function can return.
    #[inline(always)]
    fn pack(self) -> u64 {
        let problem = self.problem.map_or(0, |reason| reason as u8);
        u64::from(self.protocol)
            | u64::from(problem) << 8
            | u64::from(self.fragment_at) << 16
            | u64::from(self.length) << 32
    }

    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "fields of the word")]
    fn unpack<S: Surroundings>(surroundings: &S, word: u64) -> Self {
        Self {
            protocol: surroundings.blur::<255>(word as u8),
            problem: match surroundings.blur::<{ REASON_MASK as i32 }>((word >> 8) as u8) {
                0 => None,
                code if code == Reason::TooManyHeaders as u8 => Some(Reason::TooManyHeaders),
                _ => Some(Reason::Malformed),
            },
            fragment_at: (word >> 16) as u16,
            length: (word >> 32) as u16,
        }
    }
}

/// Walks the extension headers up to the transport header. What cannot be looked into (ESP, no next header) counts as
/// transport. What it finds is packed for [`Surroundings::walk`].
#[inline(always)]
pub(crate) fn walk<S: Surroundings>(surroundings: &S, start: u32, first: u8) -> u64 {
    let mut walked = Walked { protocol: first, problem: None, fragment_at: NOT_FRAGMENTED, length: 0 };
    for position in 0..=EXTENSIONS {
        match step(surroundings, start, position, &mut walked) {
            Ok(true) => {}
            Ok(false) => return walked.pack(),
            Err(reason) => return Walked { problem: Some(reason), ..walked }.pack(),
        }
    }
    Walked { problem: Some(Reason::TooManyHeaders), ..walked }.pack()
}

/// Steps over one header; whether there may be more.
#[inline(always)]
fn step<S: Surroundings>(surroundings: &S, start: u32, position: usize, walked: &mut Walked) -> Result<bool, Reason> {
    let kind = walked.protocol;
    if !matches!(
        kind,
        next_header::HOP_BY_HOP
            | next_header::ROUTING
            | next_header::FRAGMENT
            | next_header::AUTHENTICATION
            | next_header::DESTINATION
    ) {
        return Ok(false);
    }
    if position == EXTENSIONS {
        return Err(Reason::TooManyHeaders);
    }
    let Bytes(bytes): &Bytes<8> = &surroundings.load(start + u32::from(walked.length)).ok_or(Reason::Malformed)?;
    let header = Window::of(bytes);
    walked.protocol = header.byte::<0>();
    let length = u16::from(header.byte::<1>());
    walked.length += match kind {
        // RFC 8200, 4.1: only right after the IPv6 header.
        next_header::HOP_BY_HOP if position != 0 => return Err(Reason::Malformed),
        // With segments left, the destination is not where the packet goes.
        next_header::ROUTING if header.byte::<3>() != 0 => return Err(Reason::Malformed),
        next_header::AUTHENTICATION => (length + 2) * 4,
        next_header::FRAGMENT => {
            if walked.fragment_at != NOT_FRAGMENTED {
                return Err(Reason::Malformed);
            }
            walked.fragment_at = walked.length;
            let offset = header.number::<2>() >> 3;
            if offset != 0 {
                // RFC 1858, 4.2, as for IPv4.
                let rewrites = walked.protocol == protocol::TCP && offset == 1;
                return if rewrites { Err(Reason::Malformed) } else { Ok(false) };
            }
            8
        }
        _ => (length + 1) * 8,
    };
    Ok(true)
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
fn is_short<const N: usize>(header: Window<'_, N>, protocol: u8) -> bool {
    let length = u32::from(header.number::<4>());
    length != 0 && length < transport::needed(protocol)
}

/// The same behind extension headers.
#[inline(always)]
fn ends_before_transport(header: Window<'_, BEFORE_ENDS>, packet: &Packet<[u8; 16]>) -> bool {
    let length = u32::from(header.number::<4>());
    let walked = packet.payload.wrapping_sub(packet.start + HEADER as u32);
    length != 0 && length < walked + transport::needed(packet.protocol)
}
