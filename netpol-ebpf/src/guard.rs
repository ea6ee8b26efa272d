//! The source guard: a pod sends from its own addresses only, so that nobody borrows a peer's identity.

use netpol_common::{Direction, Endpoint, endpoint_flags};

use crate::surroundings::PacketAddress;

/// Whether a packet has a source address that the pod may not use.
#[inline(always)]
pub(crate) fn is_foreign<A: PacketAddress>(endpoint: &Endpoint, direction: Direction, source: &A) -> bool {
    direction == Direction::Egress && endpoint.has(endpoint_flags::SOURCE_GUARD) && !source.belongs_to(endpoint)
}
