//! IPv4 headers. RFC 791.

use core::marker::PhantomData;

use netpol_common::{Reason, protocol};

use super::link::{ETHERNET, ether_type};
use super::{Fragment, Packet, Parse, ParserFunctions, Plain, Transport, transport};
use crate::context::Context;
use crate::window::{Bytes, Window};

/// Length of a header without options.
const HEADER: usize = 20;
/// Length of the part before the addresses.
const BEFORE_ADDRESSES: usize = 12;
/// `parse_plain` reads this number of bytes from the start of the frame.
const PLAIN: usize = ETHERNET + HEADER + transport::PREFIX;
/// The mask of the offset in the fragment field. The offset is in units of 8 bytes.
const OFFSET: u16 = 0x1fff;
/// The "more fragments" flag in the fragment field.
const MORE: u16 = 0x2000;

/// Parses a plain packet. A plain packet has a protocol with ports, and no VLAN tags, IP options or fragmentation.
/// Nearly all packets are plain. `None`: the slow path parses the packet.
#[inline(always)]
pub(crate) fn parse_plain<S: Context>(context: &S) -> Option<Plain<[u8; 4]>> {
    let frame: Window<'_, PLAIN> = context.window()?;
    let header: Window<'_, HEADER> = frame.part::<ETHERNET, HEADER>();
    let protocol = header.byte::<9>();
    if frame.u16_be::<12>() != ether_type::IPV4
        || header.byte::<0>() != 0x45
        || header.u16_be::<6>() & (OFFSET | MORE) != 0
        || !protocol::has_ports(protocol)
        || is_short(header, HEADER as u32, protocol)
    {
        return None;
    }
    let head = frame.part::<{ ETHERNET + HEADER }, { transport::PREFIX }>();
    let link_source = (frame.four_bytes::<6>(), frame.two_bytes::<10>());
    Some(Plain::new(link_source, header.four_bytes::<12>(), header.four_bytes::<16>(), protocol, head))
}

impl Parse for [u8; 4] {
    #[inline(always)]
    fn is_readable<S: Context>(context: &S, ip_offset: u32) -> bool {
        context.load::<HEADER>(ip_offset).is_some_and(|Bytes([first, ..])| first >> 4 == 4 && first & 0xf >= 5)
    }

    #[inline(always)]
    fn addresses<S: Context>(context: &S, ip_offset: u32) -> Option<(Self, Self)> {
        let Bytes(bytes): &Bytes<8> = &context.load(ip_offset + BEFORE_ADDRESSES as u32)?;
        let addresses = Window::of(bytes);
        Some((addresses.four_bytes::<0>(), addresses.four_bytes::<4>()))
    }

    #[inline(always)]
    fn parse<S: ParserFunctions>(context: &S, ip_offset: u32, quoted: bool) -> Option<Packet<Self>> {
        let Bytes(bytes): &Bytes<BEFORE_ADDRESSES> = &context.load(ip_offset)?;
        let header = Window::of(bytes);
        let length = u32::from(header.byte::<0>() & 0xf) * 4;
        if header.byte::<0>() >> 4 != 4 || length < HEADER as u32 {
            return None;
        }
        let mut packet = Packet {
            ip_offset,
            payload: ip_offset + length,
            protocol: header.byte::<9>(),
            hops: header.byte::<8>(),
            fragment: fragment(header),
            identification: u32::from(u16::from_ne_bytes(header.two_bytes::<4>())),
            transport: Transport::default(),
            error: None,
            family: PhantomData,
        };
        if packet.fragment == Fragment::LATER {
            // RFC 1858, 4.2: a fragment at offset 1 (byte 8) would overwrite the flags with which the first fragment
            // was evaluated.
            if packet.protocol == protocol::TCP && header.u16_be::<6>() & OFFSET == 1 {
                packet.error = Some(Reason::Malformed);
            }
        } else if is_short(header, length, packet.protocol) && !quoted {
            // Packets that ICMP errors quote are excepted, because they may be cut off.
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

/// Returns whether the packet ends before the end of its transport header, according to its length field. Packets of
/// more than 64 KiB, which segmentation offload splits later, have length 0 (BIG TCP).
#[inline(always)]
fn is_short<const N: usize>(header: Window<'_, N>, header_length: u32, protocol: u8) -> bool {
    let total = u32::from(header.u16_be::<2>());
    total != 0 && total < header_length + transport::needed(protocol)
}

#[inline(always)]
fn fragment(header: Window<'_, BEFORE_ADDRESSES>) -> Fragment {
    let field = header.u16_be::<6>();
    if field & OFFSET != 0 {
        Fragment::LATER
    } else if field & MORE != 0 {
        Fragment::FIRST
    } else {
        Fragment::WHOLE
    }
}
