//! Fragments: only the first carries ports, the others follow it.

use netpol_common::{Direction, FragmentEntry, FragmentKey, Reason};

use crate::packet::{Fragment, Packet, TcpFlags, Transport};
use crate::surroundings::PacketAddress;
use crate::{Family, Surroundings};

/// Seconds that a receiver waits for the rest of a datagram (Linux: `ipfrag_time`).
const TIMEOUT: u32 = 30;
/// IPv6's protocol in [`FragmentKey`].
const IPV6_FRAGMENT: u8 = 44;

/// Gives a later fragment what its first fragment said; an error where that is not known, or where two first fragments
/// contradict each other.
#[inline(always)]
pub(crate) fn resolve<A: PacketAddress, S: Surroundings + Family<A>>(
    surroundings: &S,
    direction: Direction,
    packet: &mut Packet<A>,
) -> Result<(), Reason> {
    let (identification, first) = match packet.fragment {
        Fragment::Whole => return Ok(()),
        Fragment::First { identification } => (identification, true),
        Fragment::Later { identification } => (identification, false),
    };
    let known = surroundings.fragment(&key(surroundings.ifindex(), direction, packet, identification));
    let age = known.map_or(u32::MAX, |entry| surroundings.now().wrapping_sub(entry.seen));
    match known {
        // Within a second nobody reuses an identification: this is one datagram with two beginnings. Later it is another.
        Some(entry) if first && age < surroundings.hz() && differs(&entry, packet) => Err(Reason::Malformed),
        _ if first => Ok(()),
        Some(entry) if age < TIMEOUT * surroundings.hz() => {
            packet.protocol = entry.protocol;
            packet.transport = Transport {
                source_port: entry.source_port,
                destination_port: entry.destination_port,
                flags: TcpFlags(TcpFlags::ACK),
            };
            Ok(())
        }
        _ => Err(Reason::OrphanFragment),
    }
}

/// Remembers what an allowed first fragment said. A denied one leaves the others orphans.
#[inline(always)]
pub(crate) fn record<A: PacketAddress, S: Surroundings + Family<A>>(
    surroundings: &S,
    direction: Direction,
    packet: &Packet<A>,
) {
    if let Fragment::First { identification } = packet.fragment {
        let entry = FragmentEntry {
            source_port: packet.transport.source_port,
            destination_port: packet.transport.destination_port,
            seen: surroundings.now(),
            protocol: packet.protocol,
            zero: [0; 3],
        };
        surroundings.insert_fragment(&key(surroundings.ifindex(), direction, packet, identification), &entry);
    }
}

#[inline(always)]
fn differs<A>(entry: &FragmentEntry, packet: &Packet<A>) -> bool {
    entry.source_port != packet.transport.source_port
        || entry.destination_port != packet.transport.destination_port
        || entry.protocol != packet.protocol
}

#[inline(always)]
fn key<A: PacketAddress>(
    ifindex: u32,
    direction: Direction,
    packet: &Packet<A>,
    identification: u32,
) -> FragmentKey<A> {
    FragmentKey {
        ifindex: netpol_common::IfIndex(ifindex),
        identification,
        source: packet.source,
        destination: packet.destination,
        protocol: if A::FAMILY == 6 { IPV6_FRAGMENT } else { packet.protocol },
        direction: direction as u8,
        zero: [0; 2],
    }
}
