//! Fragments: only the first has ports; the others use the ports of the first.

use netpol_common::{Direction, FragmentEntry, FragmentKey, IfIndex, Reason};

use crate::packet::{Fragment, Packet, Parse, TcpFlags, Transport};
use crate::surroundings::PacketAddress;
use crate::{Family, Surroundings};

/// Seconds that a receiver waits for all fragments of a datagram (Linux: `ipfrag_time`).
const TIMEOUT: u32 = 30;
/// The protocol of IPv6 fragments in [`FragmentKey`].
const IPV6_FRAGMENT: u8 = 44;

/// The protocol and transport header of a datagram, from its first fragment.
#[derive(Clone, Copy)]
pub(crate) struct Said {
    pub(crate) protocol: u8,
    pub(crate) transport: Transport,
}

impl Said {
    #[inline(always)]
    pub(crate) fn of<A>(packet: &Packet<A>) -> Self {
        Self { protocol: packet.protocol, transport: packet.transport }
    }

    /// Packs it into one word, which fits into a register: ports, flags and protocol.
    #[inline(always)]
    pub(crate) fn pack(self) -> u64 {
        let [a, b] = self.transport.source_port;
        let [c, d] = self.transport.destination_port;
        u64::from_le_bytes([a, b, c, d, self.transport.flags.0, self.protocol, 0, 0])
    }

    /// Unpacks the word.
    #[inline(always)]
    pub(crate) fn unpack(word: u64) -> Result<Self, Reason> {
        let [a, b, c, d, flags, protocol, ..] = word.to_le_bytes();
        if word & MALFORMED != 0 {
            return Err(Reason::Malformed);
        }
        Ok(Self {
            protocol,
            transport: Transport { source_port: [a, b], destination_port: [c, d], flags: TcpFlags(flags) },
        })
    }

    /// Returns the fields of a later fragment whose first was not seen: no ports, and no flags, which all other later
    /// fragments have.
    #[inline(always)]
    fn unknown(protocol: u8) -> Self {
        Self { protocol, transport: Transport::default() }
    }
}

/// Returns whether a packet is a later fragment whose first is not known: see [`Said::unknown`].
#[inline(always)]
pub(crate) fn is_orphan<A>(packet: &Packet<A>) -> bool {
    matches!(packet.fragment, Fragment::Later { .. }) && packet.transport.flags.0 == 0
}

/// Set in the result of [`resolve`] if the fragment is malformed.
const MALFORMED: u64 = 1 << 48;

/// Returns the fields of a fragment, packed by [`Said`]: for a later fragment those of its first, or [`Said::unknown`]
/// if that is not known. Returns [`MALFORMED`] if two first fragments contradict each other.
#[inline(always)]
pub(crate) fn resolve<A, S>(
    surroundings: S,
    direction: Direction,
    start: u32,
    identification: u32,
    said: u64,
    first: bool,
) -> u64
where
    A: PacketAddress + Parse,
    S: Surroundings + Family<A>,
{
    // Never happens: both were read before.
    let Ok(own) = Said::unpack(said) else { return MALFORMED };
    let Some(ends) = A::ends(&surroundings, start) else { return MALFORMED };
    let orphan = Said::unknown(own.protocol).pack();
    let known = surroundings.fragment(&key(surroundings.ifindex(), direction, ends, own.protocol, identification));
    let Some(entry) = known else { return if first { said } else { orphan } };
    let age = surroundings.now().wrapping_sub(entry.seen);
    if first {
        // An identification is not reused within a second, so two different first fragments belong to one datagram.
        // Later they belong to two.
        let contradicts = age < surroundings.hz() && differs(&entry, own);
        return if contradicts { MALFORMED } else { said };
    }
    if age >= TIMEOUT * surroundings.hz() {
        return orphan;
    }
    let transport = Transport {
        source_port: entry.source_port,
        destination_port: entry.destination_port,
        flags: TcpFlags(TcpFlags::ACK),
    };
    Said { protocol: entry.protocol, transport }.pack()
}

/// Records an allowed first fragment. If the first is denied, the others stay orphans.
#[inline(always)]
pub(crate) fn record<A, S>(surroundings: S, direction: Direction, start: u32, identification: u32, said: u64)
where
    A: PacketAddress + Parse,
    S: Surroundings + Family<A>,
{
    let Ok(Said { protocol, transport }) = Said::unpack(said) else { return };
    let Some(ends) = A::ends(&surroundings, start) else { return };
    let entry = FragmentEntry {
        source_port: transport.source_port,
        destination_port: transport.destination_port,
        seen: surroundings.now(),
        protocol,
        zero: [0; 3],
    };
    surroundings.insert_fragment(&key(surroundings.ifindex(), direction, ends, protocol, identification), &entry);
}

#[inline(always)]
fn differs(entry: &FragmentEntry, said: Said) -> bool {
    entry.source_port != said.transport.source_port
        || entry.destination_port != said.transport.destination_port
        || entry.protocol != said.protocol
}

#[inline(always)]
fn key<A: PacketAddress>(
    ifindex: u32,
    direction: Direction,
    (source, destination): (A, A),
    protocol: u8,
    identification: u32,
) -> FragmentKey<A> {
    FragmentKey {
        ifindex: IfIndex(ifindex),
        identification,
        source,
        destination,
        protocol: if A::FAMILY == 6 { IPV6_FRAGMENT } else { protocol },
        direction: direction as u8,
        zero: [0; 2],
    }
}
