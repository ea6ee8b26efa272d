//! Parsers for IPv6 and its extension headers. RFC 8200.

use core::marker::PhantomData;

use netpol_common::{REASON_MASK, Reason, protocol};

use super::link::{ETHERNET, ether_type};
use super::{Fragment, Packet, Parse, ParserFunctions, Plain, Transport, transport};
use crate::context::Context;
use crate::window::{Bytes, Window};

/// Length of the fixed header.
const HEADER: usize = 40;
/// Length of the part before the addresses.
const BEFORE_ADDRESSES: usize = 8;
/// Length of the part of a plain packet's frame that is read (see [`parse_plain`]).
const PLAIN: usize = ETHERNET + HEADER + transport::PREFIX;
/// The maximum number of extension headers that are read.
const MAX_EXTENSIONS: usize = 8;

/// Extension headers, <https://www.iana.org/assignments/ipv6-parameters/>.
mod next_header {
    pub(super) const HOP_BY_HOP: u8 = 0;
    pub(super) const ROUTING: u8 = 43;
    pub(super) const FRAGMENT: u8 = 44;
    pub(super) const AUTHENTICATION: u8 = 51;
    pub(super) const DESTINATION: u8 = 60;
}

/// Parses a plain packet: its protocol has ports, and it has no VLAN tags and no extension headers. Nearly all packets
/// are plain. Returns `None` for any other packet, which is then parsed on the slow path.
#[inline(always)]
pub(crate) fn parse_plain<S: Context>(context: &S) -> Option<Plain<[u8; 16]>> {
    let frame: Window<'_, PLAIN> = context.window()?;
    let header: Window<'_, HEADER> = frame.part::<ETHERNET, HEADER>();
    let protocol = header.byte::<6>();
    if frame.u16_be::<12>() != ether_type::IPV6
        || header.byte::<0>() >> 4 != 6
        || !protocol::has_ports(protocol)
        || is_short(header, protocol)
    {
        return None;
    }
    let head = frame.part::<{ ETHERNET + HEADER }, { transport::PREFIX }>();
    let link_source = (frame.four_bytes::<6>(), frame.two_bytes::<10>());
    Some(Plain::new(link_source, header.sixteen_bytes::<8>(), header.sixteen_bytes::<24>(), protocol, head))
}

impl Parse for [u8; 16] {
    #[inline(always)]
    fn is_readable<S: Context>(context: &S, ip_offset: u32) -> bool {
        context.load::<HEADER>(ip_offset).is_some_and(|Bytes([first, ..])| first >> 4 == 6)
    }

    #[inline(always)]
    fn addresses<S: Context>(context: &S, ip_offset: u32) -> Option<(Self, Self)> {
        let Bytes(bytes): &Bytes<32> = &context.load(ip_offset + BEFORE_ADDRESSES as u32)?;
        let addresses = Window::of(bytes);
        Some((addresses.sixteen_bytes::<0>(), addresses.sixteen_bytes::<16>()))
    }

    #[inline(always)]
    fn parse<S: ParserFunctions>(context: &S, ip_offset: u32, quoted: bool) -> Option<Packet<Self>> {
        let Bytes(bytes): &Bytes<BEFORE_ADDRESSES> = &context.load(ip_offset)?;
        let header = Window::of(bytes);
        if header.byte::<0>() >> 4 != 6 {
            return None;
        }
        let mut packet = Packet {
            ip_offset,
            payload: ip_offset + HEADER as u32,
            protocol: header.byte::<6>(),
            hops: header.byte::<7>(),
            fragment: Fragment::WHOLE,
            identification: 0,
            transport: Transport::default(),
            error: None,
            family: PhantomData,
        };
        let extensions = Extensions::unpack(context, context.walk(packet.payload, packet.protocol));
        packet.protocol = extensions.protocol;
        packet.payload += u32::from(extensions.length);
        packet.error = extensions.error;
        if extensions.fragment_at != NOT_FRAGMENTED {
            let at = ip_offset + HEADER as u32 + u32::from(extensions.fragment_at);
            let Bytes(bytes): &Bytes<8> = &context.load(at)?;
            (packet.fragment, packet.identification) = fragment(Window::of(bytes));
        }
        if packet.error.is_some() || packet.fragment == Fragment::LATER {
            // The transport header cannot be read, or is in the first fragment only.
        } else if is_short_with_extensions(header, &packet) && !quoted {
            packet.error = Some(Reason::Malformed);
        } else {
            match transport::load(context, packet.payload, packet.protocol, quoted) {
                Ok(transport) => packet.transport = transport,
                Err(reason) => packet.error = Some(reason),
            }
        }
        Some(packet)
    }
}

/// The [`Extensions::fragment_at`] of packets without a fragment header.
const NOT_FRAGMENTED: u16 = u16::MAX;

/// A summary of the extension headers of a packet.
#[derive(Clone, Copy)]
struct Extensions {
    /// The transport protocol. For a later fragment: the value of Next Header in its fragment header, which can be the
    /// number of another extension header. While headers are read: the kind of the next header.
    protocol: u8,
    error: Option<Reason>,
    /// The offset of the fragment header, from the end of the IPv6 header.
    fragment_at: u16,
    /// The length of the extension headers that were read, in bytes.
    length: u16,
}

impl Extensions {
    /// Packs the summary into one word, which a BPF function can return.
    #[inline(always)]
    fn pack(self) -> u64 {
        let error = self.error.map_or(0, |reason| reason as u8);
        u64::from(self.protocol)
            | u64::from(error) << 8
            | u64::from(self.fragment_at) << 16
            | u64::from(self.length) << 32
    }

    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "each cast takes one field of the word")]
    fn unpack<S: Context>(context: &S, word: u64) -> Self {
        Self {
            protocol: context.barrier_within::<255>(word as u8),
            error: match context.barrier_within::<{ REASON_MASK as i32 }>((word >> 8) as u8) {
                0 => None,
                code if code == Reason::TooManyHeaders as u8 => Some(Reason::TooManyHeaders),
                _ => Some(Reason::Malformed),
            },
            fragment_at: (word >> 16) as u16,
            length: (word >> 32) as u16,
        }
    }
}

/// Reads the extension headers up to the transport header. `start`: the offset of the first header after the IPv6
/// header. `first`: its kind. Kinds that cannot be read (ESP, No Next Header) are treated as transport protocols. The
/// result is a packed [`Extensions`], because [`ParserFunctions::walk`] can only return a number.
#[inline(always)]
pub(crate) fn walk<S: Context>(context: &S, start: u32, first: u8) -> u64 {
    let mut extensions = Extensions { protocol: first, error: None, fragment_at: NOT_FRAGMENTED, length: 0 };
    for position in 0..=MAX_EXTENSIONS {
        match step(context, start, position, &mut extensions) {
            Ok(true) => {}
            Ok(false) => return extensions.pack(),
            Err(reason) => return Extensions { error: Some(reason), ..extensions }.pack(),
        }
    }
    Extensions { error: Some(Reason::TooManyHeaders), ..extensions }.pack()
}

/// Reads the header that follows those in `extensions`, if it is an extension header. Returns whether more extension
/// headers may follow. `position`: the number of extension headers before this header.
#[inline(always)]
fn step<S: Context>(context: &S, start: u32, position: usize, extensions: &mut Extensions) -> Result<bool, Reason> {
    let kind = extensions.protocol;
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
    if position == MAX_EXTENSIONS {
        return Err(Reason::TooManyHeaders);
    }
    let Bytes(bytes): &Bytes<8> = &context.load(start + u32::from(extensions.length)).ok_or(Reason::Malformed)?;
    let header = Window::of(bytes);
    extensions.protocol = header.byte::<0>();
    let length = u16::from(header.byte::<1>());
    extensions.length += match kind {
        // RFC 8200, 4.1: hop-by-hop options are allowed only directly after the IPv6 header.
        next_header::HOP_BY_HOP if position != 0 => return Err(Reason::Malformed),
        // If segments are left, the destination address in the IPv6 header is not the final destination.
        next_header::ROUTING if header.byte::<3>() != 0 => return Err(Reason::Malformed),
        next_header::AUTHENTICATION => (length + 2) * 4,
        next_header::FRAGMENT => {
            if extensions.fragment_at != NOT_FRAGMENTED {
                return Err(Reason::Malformed);
            }
            extensions.fragment_at = extensions.length;
            let offset = header.u16_be::<2>() >> 3;
            if offset != 0 {
                // A fragment at offset 1 (byte 8) could overwrite the TCP flags: RFC 1858, 4.2, as for IPv4.
                let overwrites_flags = extensions.protocol == protocol::TCP && offset == 1;
                return if overwrites_flags { Err(Reason::Malformed) } else { Ok(false) };
            }
            8
        }
        _ => (length + 1) * 8,
    };
    Ok(true)
}

/// Reads a fragment header: which part of a datagram the packet is, and the identification of the datagram (RFC 8200,
/// 4.5). A fragment that is a whole datagram is treated as unfragmented (RFC 6946).
#[inline(always)]
fn fragment(header: Window<'_, 8>) -> (Fragment, u32) {
    let field = header.u16_be::<2>();
    let part = if field >> 3 != 0 {
        Fragment::LATER
    } else if field & 1 != 0 {
        Fragment::FIRST
    } else {
        Fragment::WHOLE
    };
    (part, u32::from_ne_bytes(header.four_bytes::<4>()))
}

/// Returns whether a plain packet ends before the end of its transport header, according to the payload length in its
/// IPv6 header. In jumbograms, this length is 0 (RFC 2675).
#[inline(always)]
fn is_short<const N: usize>(header: Window<'_, N>, protocol: u8) -> bool {
    let length = u32::from(header.u16_be::<4>());
    length != 0 && length < transport::needed(protocol)
}

/// Does the same as [`is_short`], for a packet with extension headers.
#[inline(always)]
fn is_short_with_extensions(header: Window<'_, BEFORE_ADDRESSES>, packet: &Packet<[u8; 16]>) -> bool {
    let length = u32::from(header.u16_be::<4>());
    let extensions = packet.payload.wrapping_sub(packet.ip_offset + HEADER as u32);
    length != 0 && length < extensions + transport::needed(packet.protocol)
}
