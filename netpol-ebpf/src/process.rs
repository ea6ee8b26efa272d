//! The way of nearly all packets: plain, and of a known flow.
//!
//! It is as short as it can be. Where a plain packet's flow is not known or stale, [`admit`] and [`rejudge`] ask the policy;
//! all other packets go by [`crate::detour`]. Each of those is a function of its own, so that the verifier looks at it once
//! and not once for every way that leads there.
//!
//! [`admit`]: verdict::admit
//! [`rejudge`]: verdict::rejudge

use netpol_common::{ANY_REMOTE, Direction, Endpoint, FlowKey, Generation, Reason, SourceCheck, endpoint_flags};

use crate::flow::{self, Known};
use crate::packet::{self, Plain, TcpFlags};
use crate::surroundings::PacketAddress;
use crate::verdict::{self, Opening, Recheck, Stale};
use crate::{Family, Surroundings, detour, guard};

/// Judges a packet at a pod's veth, counts it, and reports it if it is denied.
#[inline(always)]
pub fn process<S: Surroundings>(surroundings: S, direction: Direction) -> Reason {
    let reason = match direction {
        Direction::Ingress => process_at::<false, S>(surroundings),
        Direction::Egress => process_at::<true, S>(surroundings),
    };
    reported(surroundings, direction, reason)
}

/// Checks the source address of a packet that left its pod, where it goes now. `None`: it may go on.
/// [`Surroundings::is_behind`] holds.
#[inline(always)]
pub fn process_source<S: Surroundings>(surroundings: S) -> Option<Reason> {
    // Denied where it is parsed in full, by the same check.
    surroundings
        .is_spoofed()
        .then(|| reported(surroundings, Direction::Egress, detour::judge_frame(surroundings, Direction::Egress)))
}

/// Judges a packet that carries its sender's number, where it goes now, by the sender's egress. [`Surroundings::is_behind`] holds.
#[inline(always)]
pub fn process_behind<S: Surroundings>(surroundings: S) -> Reason {
    let reason = match surroundings.endpoint() {
        Some(endpoint) if !endpoint.egress.isolated() => Reason::NotIsolated,
        _ if surroundings.bare_type().is_none() && surroundings.is_known() => Reason::Flow,
        _ => detour::judge_frame(surroundings, Direction::Egress),
    };
    reported(surroundings, Direction::Egress, reason)
}

/// Here and not where a verdict is made: the stack of those functions has no room for it.
#[inline(always)]
fn reported<S: Surroundings>(surroundings: S, direction: Direction, reason: Reason) -> Reason {
    if !reason.allows() {
        surroundings.report(direction, reason);
    }
    reason
}

/// See [`Surroundings::is_known`].
#[inline(always)]
pub(crate) fn is_known<S: Surroundings>(surroundings: S) -> bool {
    let Some(endpoint) = surroundings.endpoint() else { return false };
    if let Some(packet) = packet::parse_plain_v4(&surroundings) {
        return is_flow_behind(surroundings, endpoint, &packet);
    }
    packet::parse_plain_v6(&surroundings).is_some_and(|packet| is_flow_behind(surroundings, endpoint, &packet))
}

/// One that goes in its node's name has no flow, and one whose flow is judged behind is still where it was sent to.
#[inline(always)]
fn is_flow_behind<A, S>(surroundings: S, endpoint: &Endpoint, packet: &Plain<A>) -> bool
where
    A: PacketAddress,
    S: Surroundings + Family<A>,
{
    let generation = verdict::generation(endpoint);
    let key = key::<true, A>(endpoint.ifindex.0, packet);
    let Some(slot) = surroundings.flow(endpoint, &key).filter(|_| packet.source.belongs_to(endpoint)) else {
        return false;
    };
    let (now, hz) = (surroundings.now(), surroundings.hz());
    let known = Known::read(slot);
    let holds = known.generation == generation && !known.is_judged_behind() && known.is_alive(packet.protocol, now, hz);
    if holds {
        known.touch(slot, Direction::Egress, packet.flags, now, hz);
    }
    holds
}

/// The direction as a constant: a key is built from the packet without asking which end is the pod's.
#[inline(always)]
fn process_at<const EGRESS: bool, S: Surroundings>(surroundings: S) -> Reason {
    if let Some(endpoint) = surroundings.endpoint() {
        if EGRESS {
            // Whatever the pod itself made of it.
            surroundings.carry(endpoint.id);
        }
        let generation = verdict::generation(endpoint);
        if let Some(packet) = packet::parse_plain_v4(&surroundings) {
            if let Some(reason) = process_plain::<EGRESS, _, S>(surroundings, endpoint, generation, &packet) {
                return reason;
            }
        } else {
            let code = plain_v6::<EGRESS, S>(surroundings, endpoint);
            if code != NOT_PLAIN {
                return verdict::reason(code);
            }
        }
    }
    detour::judge_frame(surroundings, towards::<EGRESS>())
}

/// No reason's code: it goes by the detour.
const NOT_PLAIN: u32 = u32::MAX;

/// A function of its own, because the stack of the one before would have to hold its key too.
#[inline(never)]
fn plain_v6<const EGRESS: bool, S: Surroundings>(surroundings: S, endpoint: &Endpoint) -> u32 {
    let generation = verdict::generation(endpoint);
    let Some(packet) = packet::parse_plain_v6(&surroundings) else { return NOT_PLAIN };
    let reason = process_plain::<EGRESS, _, S>(surroundings, endpoint, generation, &packet);
    reason.map_or(NOT_PLAIN, |reason| reason as u32)
}

#[inline(always)]
const fn towards<const EGRESS: bool>() -> Direction {
    if EGRESS { Direction::Egress } else { Direction::Ingress }
}

/// `None`: it goes by the detour.
#[inline(always)]
fn process_plain<const EGRESS: bool, A, S>(
    surroundings: S,
    endpoint: &Endpoint,
    generation: Generation,
    packet: &Plain<A>,
) -> Option<Reason>
where
    A: PacketAddress,
    S: Surroundings + Family<A>,
{
    let direction = towards::<EGRESS>();
    let key = key::<EGRESS, A>(surroundings.ifindex(), packet);
    if guard::is_foreign(endpoint, direction, &packet.source) && !guard::is_dhcp_request(packet) {
        return Some(conclude(&surroundings, endpoint, Direction::Egress, Reason::ForeignSource));
    }
    if EGRESS && guard::is_foreign_mac(endpoint, packet.link_source) {
        return Some(conclude(&surroundings, endpoint, Direction::Egress, Reason::SpoofedNeighbor));
    }
    let fresh = packet.flags.opens();
    let mut bits = u32::from(packet.flags.0) | MAY_OPEN;
    if !fresh && let Some(slot) = surroundings.flow(endpoint, &key) {
        // Rare, and for the slow path but for a new source endpoint ID.
        if !EGRESS && (flow::is_from_here(slot) || flow::remote_endpoint(slot) != surroundings.sender()) {
            let code = plain_changed(surroundings, endpoint, generation, &key, packet.flags.0);
            return (code != NOT_PLAIN).then(|| verdict::reason(code));
        }
        let (now, hz) = (surroundings.now(), surroundings.hz());
        let known = Known::read(slot);
        if known.is_alive(packet.protocol, now, hz) {
            if known.generation == generation {
                known.touch(slot, direction, packet.flags, now, hz);
                verdict::follow(&surroundings, endpoint, direction, known.is_judged_behind());
                surroundings.count(endpoint.id, direction, Reason::Flow);
                return Some(Reason::Flow);
            }
            known.keep_stale(slot, packet.protocol, now, hz);
            let stale = Stale { opener: known.opener, state: known.after(direction, packet.flags) };
            let code = plain_stale::<EGRESS, A, S>(surroundings, &key, stale.pack());
            if code != Reason::Revoked as u32 || !known.may_be_reversed(direction, packet.protocol) {
                return Some(conclude(&surroundings, endpoint, direction, verdict::reason(code)));
            }
            bits = u32::from(packet.flags.0) | REVERSED | if known.reopens(now, hz) { MAY_OPEN } else { 0 };
        }
    }
    Some(plain_new::<EGRESS, A, S>(surroundings, endpoint, generation, &key, bits))
}

/// A plain packet towards a pod, of a known flow whose remote had another source endpoint ID before. It may: where the address is
/// that endpoint's, as pods come to be enforced, and get new IDs, while flows go on; and where the flow may have any. All else is
/// for the slow path, as is a stale flow.
#[inline(never)]
fn plain_changed<A, S>(surroundings: S, endpoint: &Endpoint, generation: Generation, key: &FlowKey<A>, flags: u8) -> u32
where
    A: PacketAddress,
    S: Surroundings + Family<A>,
{
    let Some(slot) = surroundings.flow(endpoint, key) else { return NOT_PLAIN };
    let (known, sender) = (Known::read(slot), surroundings.sender());
    let (now, hz) = (surroundings.now(), surroundings.hz());
    if known.generation != generation || flow::is_from_here(slot) || !known.is_alive(key.protocol, now, hz) {
        return NOT_PLAIN;
    }
    if flow::remote_endpoint(slot) != u32::from(ANY_REMOTE) {
        let Some(remote) = surroundings.endpoint_of(sender) else { return NOT_PLAIN };
        if key.remote_address.belongs_to(remote) || !remote.has(endpoint_flags::SOURCE_GUARD) {
            flow::learn(slot, sender);
        } else if known.may_have_any_remote(slot) {
            flow::learn(slot, u32::from(ANY_REMOTE));
        } else {
            return NOT_PLAIN;
        }
    }
    known.touch(slot, Direction::Ingress, TcpFlags(flags), now, hz);
    surroundings.count(endpoint.id, Direction::Ingress, Reason::Flow);
    Reason::Flow as u32
}

#[inline(always)]
fn key<const EGRESS: bool, A: PacketAddress>(ifindex: u32, packet: &Plain<A>) -> FlowKey<A> {
    let (pod_address, remote_address, pod_port, remote_port) = if EGRESS {
        (packet.source, packet.destination, packet.source_port, packet.destination_port)
    } else {
        (packet.destination, packet.source, packet.destination_port, packet.source_port)
    };
    A::flow_key(ifindex, pod_address, remote_address, flow::ports(pod_port, remote_port), packet.protocol)
}

/// Above the TCP flags that [`plain_new`] takes: the packet may start a flow.
const MAY_OPEN: u32 = 1 << 8;
/// There too: a revoked flow has its addresses and ports.
const REVERSED: u32 = 1 << 9;

/// A plain packet of no known flow.
#[inline(never)]
#[expect(clippy::cast_possible_truncation, reason = "the flags are the lower byte")]
fn plain_new<const EGRESS: bool, A, S>(
    surroundings: S,
    endpoint: &Endpoint,
    generation: Generation,
    key: &FlowKey<A>,
    bits: u32,
) -> Reason
where
    A: PacketAddress,
    S: Surroundings + Family<A>,
{
    let direction = towards::<EGRESS>();
    if !EGRESS && guard::is_for_another(&surroundings, endpoint) {
        return conclude(&surroundings, endpoint, direction, Reason::OtherHost);
    }
    let flags = TcpFlags(bits as u8);
    let opens = bits & MAY_OPEN != 0;
    let opening = Opening { opens, fresh: flags.opens(), flags };
    let source = match direction {
        Direction::Ingress => verdict::check_source(&surroundings, &key.remote_address),
        Direction::Egress => SourceCheck::NONE,
    };
    let source = SourceCheck(surroundings.blur::<3>(source.0));
    let attempt = verdict::attempt(&surroundings, direction, key, source);
    let found = verdict::admit(&surroundings, endpoint, generation, &attempt, key, opening);
    let found = verdict::unless_reversed(bits & REVERSED != 0, found);
    conclude(&surroundings, endpoint, direction, found)
}

/// A plain packet of a flow that was evaluated under another generation: the code of `Flow`, or of `Revoked`.
#[inline(never)]
fn plain_stale<const EGRESS: bool, A, S>(surroundings: S, key: &FlowKey<A>, stale: u32) -> u32
where
    A: PacketAddress,
    S: Surroundings + Family<A>,
{
    let direction = towards::<EGRESS>();
    let recheck = Recheck { direction, protocol: key.protocol, stale: Stale::unpack(stale) };
    let ports = flow::ports(key.pod_port, key.remote_port);
    let allowed = Family::<A>::is_still_allowed(surroundings, packet::PLAIN_START, ports, recheck.pack());
    (if allowed { Reason::Flow } else { Reason::Revoked }) as u32
}

/// Counts a packet.
#[inline(always)]
pub(crate) fn conclude<S: Surroundings>(
    surroundings: &S,
    endpoint: &Endpoint,
    direction: Direction,
    reason: Reason,
) -> Reason {
    let reason = verdict::blur(surroundings, reason);
    let reason = if surroundings.is_behind() && reason == Reason::NoRule { Reason::Backend } else { reason };
    // Behind, an allowed packet was counted before.
    if !reason.allows() || !surroundings.is_behind() {
        surroundings.count(endpoint.id, direction, reason);
    }
    reason
}
