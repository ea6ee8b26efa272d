//! Transport headers: the first bytes of TCP, UDP, SCTP and ICMP. In this module, `quoted` means that an ICMP error
//! quotes the header, and may have cut it off after the ports.

use netpol_common::{Reason, protocol};

use super::{ParserFunctions, TcpFlags, Transport};
use crate::context::Context;
use crate::window::{Bytes, Window};

/// Length of a TCP header up to and including its flags. The other protocols need less.
pub(super) const PREFIX: usize = 14;
/// Length of the ports, which an ICMP error always quotes.
const PORTS: usize = 4;
/// The offset of the type of an SCTP packet's first chunk.
pub(super) const CHUNK_TYPE_OFFSET: usize = 12;
/// Length of an ICMP header.
const ICMP_HEADER: usize = 8;

/// Returns how many bytes of the transport header a packet must contain. A shorter packet is malformed.
#[inline(always)]
pub(super) const fn needed(protocol: u8) -> u32 {
    match protocol {
        protocol::TCP => PREFIX as u32,
        protocol::UDP | protocol::SCTP => PORTS as u32,
        protocol::ICMP | protocol::ICMPV6 => ICMP_HEADER as u32,
        _ => 0,
    }
}

/// Reads the transport header at an offset of the frame, through [`ParserFunctions::transport`]: in the kernel, this is
/// a separate BPF function, which calls [`read_packed`].
#[inline(always)]
pub(super) fn load<S: ParserFunctions>(
    context: &S,
    offset: u32,
    protocol: u8,
    quoted: bool,
) -> Result<Transport, Reason> {
    let word = context.transport(offset, protocol, quoted);
    let [a, b, c, d, flags, complete, ..] = word.to_ne_bytes();
    if complete == 0 {
        return Err(Reason::Malformed);
    }
    Ok(Transport { source_port: [a, b], destination_port: [c, d], flags: TcpFlags(flags) })
}

/// Reads the transport header and packs the result into the number that [`ParserFunctions::transport`] returns: ports,
/// flags, and whether the header is complete.
#[inline(always)]
pub(crate) fn read_packed<S: Context>(context: &S, offset: u32, protocol: u8, quoted: bool) -> u64 {
    let Some(Transport { source_port: [a, b], destination_port: [c, d], flags }) =
        read(context, offset, protocol, quoted)
    else {
        return 0;
    };
    u64::from_ne_bytes([a, b, c, d, flags.0, 1, 0, 0])
}

#[inline(always)]
fn read<S: Context>(context: &S, offset: u32, protocol: u8, quoted: bool) -> Option<Transport> {
    Some(match protocol {
        protocol::TCP if !quoted => {
            let Bytes(head): &Bytes<PREFIX> = &context.load(offset)?;
            let head = Window::of(head);
            Transport { flags: TcpFlags(head.byte::<13>()), ..ports(head.part::<0, PORTS>()) }
        }
        protocol::SCTP if !quoted => {
            let chunk = context.load::<1>(offset + CHUNK_TYPE_OFFSET as u32).map_or(0, |Bytes([kind])| kind);
            Transport { flags: TcpFlags::of_chunk(chunk), ..ports(Window::of(&context.load(offset)?.0)) }
        }
        protocol::TCP | protocol::UDP | protocol::SCTP => ports(Window::of(&context.load(offset)?.0)),
        protocol::ICMP | protocol::ICMPV6 => icmp(Window::of(&context.load(offset)?.0)),
        _ => Transport::default(),
    })
}

#[inline(always)]
fn ports(head: Window<'_, PORTS>) -> Transport {
    Transport { source_port: head.two_bytes::<0>(), destination_port: head.two_bytes::<2>(), flags: TcpFlags(0) }
}

/// `source_port` holds the type and code, and `destination_port` holds the identifier.
#[inline(always)]
fn icmp(head: Window<'_, ICMP_HEADER>) -> Transport {
    Transport { source_port: head.two_bytes::<0>(), destination_port: head.two_bytes::<4>(), flags: TcpFlags(0) }
}
