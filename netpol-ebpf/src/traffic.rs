//! Counts the packets and bytes of flows, if this is enabled: see `COUNT_TRAFFIC` in `kernel/globals`.

use netpol_common::{Direction, Endpoint, FlowEntry, FlowKey, Traffic, flow_state};

use crate::context::{Context, Family, PacketAddress};
use crate::slot::{Slot, field};

/// Returns whether the packet is counted in its flow. A packet that is evaluated again post-DNAT was already counted
/// pre-DNAT.
#[inline(always)]
fn is_counted<S: Context>(context: &S) -> bool {
    context.counts_traffic() && !context.is_post_dnat()
}

/// Returns the numbers that the packet adds to the traffic of its flow. `ip_offset` is the offset of the packet's IP
/// header.
#[inline(always)]
fn traffic_of_packet<S: Context>(context: &S, ip_offset: u32) -> Traffic {
    let bytes = context.length().saturating_sub(ip_offset);
    Traffic { packets: u64::from(context.segments().max(1)), bytes: u64::from(bytes) }
}

/// Counts an allowed packet in its flow (`slot`), if traffic is counted. Reads the flow's initiator again, although the
/// caller has read it: if the caller kept the value for this call, it would take space on the stack.
#[inline(always)]
pub(crate) fn count<S: Context>(context: &S, slot: Slot<'_, FlowEntry>, direction: Direction, ip_offset: u32) {
    if is_counted(context) {
        let is_reply = slot.read(field!(FlowEntry, initiator)) != direction as u8;
        let traffic = if is_reply { slot.part(field!(FlowEntry, replies)) } else { slot.part(field!(FlowEntry, sent)) };
        add(context, traffic, traffic_of_packet(context, ip_offset));
    }
}

/// Returns the traffic of a new flow: this packet is its only one so far.
#[inline(always)]
pub(crate) fn of_first_packet<S: Context>(context: &S, ip_offset: u32) -> Traffic {
    if is_counted(context) { traffic_of_packet(context, ip_offset) } else { Traffic::default() }
}

/// Adds a packet's traffic to the traffic of its flow in one direction, if traffic is counted.
#[inline(always)]
pub(crate) fn add<S: Context>(context: &S, traffic: Slot<'_, Traffic>, packet: Traffic) {
    if is_counted(context) {
        traffic.add_unlocked(field!(Traffic, packets), packet.packets);
        traffic.add_unlocked(field!(Traffic, bytes), packet.bytes);
    }
}

/// Replaces the start time and the traffic of an existing flow by those of a new connection with the same addresses and
/// ports, if traffic is counted.
#[inline(always)]
pub(crate) fn restart<S: Context>(context: &S, slot: Slot<'_, FlowEntry>, entry: &FlowEntry) {
    if is_counted(context) {
        slot.write(field!(FlowEntry, started), entry.started);
        slot.write(field!(FlowEntry, sent), entry.sent);
        slot.write(field!(FlowEntry, replies), Traffic::default());
    }
}

/// Marks a flow as revoked (the current policies do not allow it), if traffic is counted. Does not change the other
/// bits of the flow's state, because a denied packet must not change the timeout of its flow.
#[inline(always)]
pub(crate) fn mark_revoked<A, S>(context: &S, endpoint: &Endpoint, key: &FlowKey<A>)
where
    A: PacketAddress,
    S: Context + Family<A>,
{
    if context.counts_traffic()
        && let Some(slot) = context.flow(endpoint, key)
    {
        let state = slot.read(field!(FlowEntry, state));
        slot.write(field!(FlowEntry, state), state | flow_state::REVOKED);
    }
}
