//! The source guard: a pod sends from its own addresses only, so that nobody borrows a peer's identity.

use netpol_common::{Direction, Endpoint, endpoint_flags};

use crate::packet::{Icmp, Packet};
use crate::surroundings::PacketAddress;

/// Whether the packet carries a source address that the pod may not use. A pod that has no address yet may ask whether
/// one is free (RFC 4862, 5.4), and only that.
#[inline(always)]
pub(crate) fn is_foreign<A: PacketAddress>(
    endpoint: &Endpoint,
    direction: Direction,
    packet: &Packet<A>,
    icmp: Option<Icmp>,
) -> bool {
    if direction != Direction::Egress || !endpoint.has(endpoint_flags::SOURCE_GUARD) {
        return false;
    }
    if icmp == Some(Icmp::Discovery) && packet.source.is_zero() {
        return false;
    }
    !packet.source.belongs_to(endpoint)
}
