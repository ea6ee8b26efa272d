//! TCP, UDP, SCTP and ICMP: the first bytes of each.

use netpol_common::{Reason, protocol};

use super::{TcpFlags, Transport, Window};
use crate::Surroundings;

/// Bytes of TCP up to its flags; more than the other protocols need.
pub(super) const HEAD: usize = 14;
/// Bytes of UDP and SCTP up to the ports, and of TCP that an ICMP error is sure to quote.
const PORTS: usize = 4;
/// Bytes of an ICMP header.
const ICMP: usize = 8;

/// How many bytes of the transport header must be there.
#[inline(always)]
pub(super) const fn needed(protocol: u8) -> u32 {
    match protocol {
        protocol::TCP => HEAD as u32,
        protocol::UDP | protocol::SCTP => PORTS as u32,
        protocol::ICMP | protocol::ICMPV6 => ICMP as u32,
        _ => 0,
    }
}

/// Reads a transport header of which enough for every protocol is at hand.
#[inline(always)]
pub(super) fn read(protocol: u8, head: Window<'_, HEAD>) -> Transport {
    match protocol {
        protocol::TCP => Transport { flags: TcpFlags(head.byte::<13>()), ..ports(head.part::<0, PORTS>()) },
        protocol::UDP | protocol::SCTP => ports(head.part::<0, PORTS>()),
        protocol::ICMP | protocol::ICMPV6 => icmp(head.part::<0, ICMP>()),
        _ => Transport::default(),
    }
}

/// Finds the transport header at an offset.
#[inline(always)]
pub(super) fn load<S: Surroundings>(
    surroundings: &S,
    offset: u32,
    protocol: u8,
    quoted: bool,
) -> Result<Transport, Reason> {
    match protocol {
        protocol::TCP if !quoted => {
            let head: [u8; HEAD] = surroundings.load(offset).ok_or(Reason::Malformed)?;
            Ok(read(protocol::TCP, Window::of(&head)))
        }
        protocol::TCP | protocol::UDP | protocol::SCTP => {
            Ok(ports(Window::of(&surroundings.load(offset).ok_or(Reason::Malformed)?)))
        }
        protocol::ICMP | protocol::ICMPV6 => Ok(icmp(Window::of(&surroundings.load(offset).ok_or(Reason::Malformed)?))),
        _ => Ok(Transport::default()),
    }
}

#[inline(always)]
fn ports(head: Window<'_, PORTS>) -> Transport {
    Transport { source_port: head.pair::<0>(), destination_port: head.pair::<2>(), flags: TcpFlags(0) }
}

#[inline(always)]
fn icmp(head: Window<'_, ICMP>) -> Transport {
    Transport { source_port: head.pair::<0>(), destination_port: head.pair::<4>(), flags: TcpFlags(0) }
}
