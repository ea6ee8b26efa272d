//! Fragments of IP datagrams. Only the first fragment has ports. These ports are recorded. Later fragments of the
//! datagram are evaluated with these ports.

use netpol_common::{Direction, FragmentEntry, FragmentKey, IfIndex, Reason};

use crate::context::{Context, Family, PacketAddress};
use crate::packet::{Fragment, Packet, Parse, TcpFlags, Transport};

/// The functions of one address family that are separate BPF functions in the kernel. `ip_offset` is the offset of the
/// IP header in the frame, `identification` is the IP identification, and `info` is a [`FragmentInfo`], packed into a
/// word.
pub(crate) trait FragmentFunctions<A: Parse>: Context + Family<A> {
    /// Returns the protocol and ports of a fragment, see [`resolve`].
    #[inline(always)]
    fn resolve_fragment(
        self,
        direction: Direction,
        ip_offset: u32,
        identification: u32,
        info: u64,
        first: bool,
    ) -> u64 {
        resolve::<A, Self>(self, direction, ip_offset, identification, info, first)
    }
    /// Records an allowed first fragment, see [`record`].
    #[inline(always)]
    fn record_fragment(self, direction: Direction, ip_offset: u32, identification: u32, info: u64) {
        record::<A, Self>(self, direction, ip_offset, identification, info);
    }
}

/// Seconds that a receiver waits for all fragments of a datagram (Linux: `ipfrag_time`).
const TIMEOUT: u32 = 30;
/// The protocol of all IPv6 fragments in [`FragmentKey`]: the number of the IPv6 Fragment header.
const IPV6_FRAGMENT: u8 = 44;

/// The protocol and transport header of a fragment. For later fragments, see [`resolve`].
#[derive(Clone, Copy)]
pub(crate) struct FragmentInfo {
    pub(crate) protocol: u8,
    pub(crate) transport: Transport,
}

impl FragmentInfo {
    #[inline(always)]
    pub(crate) fn of<A>(packet: &Packet<A>) -> Self {
        Self { protocol: packet.protocol, transport: packet.transport }
    }

    /// Packs ports, flags and protocol into one word, which fits into a register.
    #[inline(always)]
    pub(crate) fn pack(self) -> u64 {
        let [a, b] = self.transport.source_port;
        let [c, d] = self.transport.destination_port;
        u64::from_le_bytes([a, b, c, d, self.transport.flags.0, self.protocol, 0, 0])
    }

    /// Unpacks the word that [`FragmentInfo::pack`] or [`resolve`] returned.
    ///
    /// # Errors
    /// If [`resolve`] set [`MALFORMED`].
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

    /// Returns the fields of an orphan: a later fragment without a known first fragment. It has no ports and no
    /// flags. If the first fragment is known, [`resolve`] sets the ACK flag, so [`is_orphan`] can distinguish the two
    /// cases.
    #[inline(always)]
    fn of_orphan(protocol: u8) -> Self {
        Self { protocol, transport: Transport::default() }
    }
}

/// Returns whether a packet is an orphan: see [`FragmentInfo::of_orphan`].
#[inline(always)]
pub(crate) fn is_orphan<A>(packet: &Packet<A>) -> bool {
    packet.fragment == Fragment::LATER && packet.transport.flags.0 == 0
}

/// Set in the result of [`resolve`] if the fragment is malformed.
const MALFORMED: u64 = 1 << 48;

/// Returns the protocol, ports and flags of a fragment as a packed [`FragmentInfo`]. `info` is the packed
/// [`FragmentInfo`] from the fragment's own headers. For a later fragment, the result has the protocol and ports of the
/// first fragment of the datagram, or is [`FragmentInfo::of_orphan`] if the first fragment is not known. Returns
/// [`MALFORMED`] if the first fragment of a datagram arrives a second time, with other ports or another protocol.
#[inline(always)]
pub(crate) fn resolve<A, S>(
    context: S,
    direction: Direction,
    ip_offset: u32,
    identification: u32,
    info: u64,
    first: bool,
) -> u64
where
    A: Parse,
    S: Context + Family<A>,
{
    // Neither of these two returns happens: the caller packed `info` and has already read the addresses.
    let Ok(current) = FragmentInfo::unpack(info) else { return MALFORMED };
    let Some(addresses) = A::addresses(&context, ip_offset) else { return MALFORMED };
    let orphan = FragmentInfo::of_orphan(current.protocol).pack();
    let known = context.fragment(&key(context.ifindex(), direction, addresses, current.protocol, identification));
    let Some(entry) = known else { return if first { info } else { orphan } };
    let age = context.now().wrapping_sub(entry.seen);
    if first {
        // A sender does not reuse an identification within a second. So within this time, two different first fragments
        // belong to one datagram. After that, they belong to two datagrams.
        let contradicts = age < context.hz() && differs(&entry, current);
        return if contradicts { MALFORMED } else { info };
    }
    if age >= TIMEOUT * context.hz() {
        return orphan;
    }
    let transport = Transport {
        source_port: entry.source_port,
        destination_port: entry.destination_port,
        flags: TcpFlags(TcpFlags::ACK),
    };
    FragmentInfo { protocol: entry.protocol, transport }.pack()
}

/// Records an allowed first fragment. A denied first fragment is not recorded, so later fragments of its datagram are
/// evaluated without ports.
#[inline(always)]
pub(crate) fn record<A, S>(context: S, direction: Direction, ip_offset: u32, identification: u32, info: u64)
where
    A: Parse,
    S: Context + Family<A>,
{
    let Ok(FragmentInfo { protocol, transport }) = FragmentInfo::unpack(info) else { return };
    let Some(addresses) = A::addresses(&context, ip_offset) else { return };
    let entry = FragmentEntry {
        source_port: transport.source_port,
        destination_port: transport.destination_port,
        seen: context.now(),
        protocol,
        zero: [0; 3],
    };
    context.insert_fragment(&key(context.ifindex(), direction, addresses, protocol, identification), &entry);
}

/// Returns whether the first fragment with `info` has another protocol or other ports than the recorded one.
#[inline(always)]
fn differs(entry: &FragmentEntry, info: FragmentInfo) -> bool {
    entry.source_port != info.transport.source_port
        || entry.destination_port != info.transport.destination_port
        || entry.protocol != info.protocol
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
