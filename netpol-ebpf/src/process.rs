//! The entry point at a pod's veth, and the fast path, which handles plain packets of known flows. A plain packet has
//! only an Ethernet, an IP and a TCP, UDP or SCTP header: no VLAN tags, IP options or extension headers, and no
//! fragmentation. Nearly all packets are plain packets of known flows.
//!
//! If the flow of a plain packet is unknown, [`admit`] evaluates the policies. If the flow is stale (evaluated before
//! the policies changed), [`is_still_allowed`] evaluates the policies again. All other packets take the slow path,
//! [`crate::slow_path`]. Each of these three cases is a separate function, so that the verifier checks it once and not
//! once for each caller.
//!
//! [`admit`]: verdict::admit
//! [`is_still_allowed`]: verdict::is_still_allowed

use netpol_common::{ANY_REMOTE, Direction, Endpoint, EndpointVersion, FlowKey, Reason, SourceCheck, endpoint_flags};

use crate::context::{Context, Family, PacketAddress};
use crate::flow::{self, KnownFlow};
use crate::guard;
use crate::packet::{self, Parse, Plain, TcpFlags};
use crate::packet_verdict::{FlowReport, PacketVerdict};
use crate::report::{ReportFunctions, report};
use crate::slow_path::{self, FrameFunctions};
use crate::stale::{Reevaluation, Stale};
use crate::traffic;
use crate::verdict::{self, FlowStart, VerdictFunctions, conclude};

/// Evaluates a packet at a pod's veth, counts it, and reports it or its flow.
#[inline(always)]
pub(crate) fn process<S: FrameFunctions + ReportFunctions>(context: S, direction: Direction) -> Reason {
    let verdict = match direction {
        Direction::Ingress => process_at::<false, S>(context),
        Direction::Egress => process_at::<true, S>(context),
    };
    report(context, direction, verdict)
}

/// Evaluates a packet at an endpoint. The direction is a const generic, so that building the flow key needs no branch.
#[inline(always)]
fn process_at<const EGRESS: bool, S: FrameFunctions>(context: S) -> PacketVerdict {
    if let Some(endpoint) = context.endpoint() {
        if EGRESS {
            // Overwrites any value that the pod has set.
            context.set_tc_index(endpoint.id);
        }
        let version = verdict::version(&context, endpoint);
        if let Some(packet) = packet::parse_plain_v4(&context) {
            if let Some(verdict) = process_plain::<EGRESS, _, S>(context, endpoint, version, &packet) {
                return verdict;
            }
        } else if let Some(verdict) = PacketVerdict::unpack(process_plain_v6::<EGRESS, S>(context, endpoint)) {
            return verdict;
        }
    }
    slow_path::evaluate_frame(context, direction_of::<EGRESS>())
}

/// Evaluates a plain IPv6 packet. The result is packed by [`PacketVerdict::pack`]; without a verdict, the packet takes
/// the slow path. This code is not inlined, because the stack of the calling function has no space for the flow key.
#[inline(never)]
fn process_plain_v6<const EGRESS: bool, S: VerdictFunctions<[u8; 16]>>(context: S, endpoint: &Endpoint) -> u32 {
    let version = verdict::version(&context, endpoint);
    let packet = packet::parse_plain_v6(&context);
    let verdict = packet.and_then(|packet| process_plain::<EGRESS, _, S>(context, endpoint, version, &packet));
    PacketVerdict::pack(verdict)
}

#[inline(always)]
const fn direction_of<const EGRESS: bool>() -> Direction {
    if EGRESS { Direction::Egress } else { Direction::Ingress }
}

/// Evaluates a plain packet. `None`: the packet takes the slow path.
#[inline(always)]
fn process_plain<const EGRESS: bool, A, S>(
    context: S,
    endpoint: &Endpoint,
    version: EndpointVersion,
    packet: &Plain<A>,
) -> Option<PacketVerdict>
where
    A: Parse,
    S: VerdictFunctions<A>,
{
    let direction = direction_of::<EGRESS>();
    let key = flow::plain_key::<EGRESS, A>(context.ifindex(), packet);
    if guard::is_spoofed(endpoint, direction, &packet.source) && !guard::is_dhcp_request(packet) {
        return Some(deny_spoofed::<S>(context, endpoint, Reason::SpoofedSource));
    }
    if EGRESS && guard::is_spoofed_mac(endpoint, packet.link_source) {
        return Some(deny_spoofed::<S>(context, endpoint, Reason::SpoofedNeighbor));
    }
    let new_connection = packet.flags.starts_connection();
    // The `bits` argument of `process_plain_new`.
    let mut bits = u32::from(packet.flags.0) | MAY_INITIATE;
    if !new_connection && let Some(slot) = context.flow(endpoint, &key) {
        // Rare: the local node initiated the flow, the flow is hairpin traffic, or the packet's source endpoint ID
        // differs from the ID in the flow entry. Only the last of these cases can be handled without the slow path.
        if !EGRESS && (flow::is_local_or_hairpin(slot) || flow::remote_endpoint(slot) != context.source_endpoint()) {
            let allowed = process_plain_with_new_remote(context, endpoint, version, &key, packet.flags.0);
            return allowed.then_some(PacketVerdict::of(Reason::Flow));
        }
        let (now, hz) = (context.now(), context.hz());
        let known = KnownFlow::read(slot);
        if known.is_alive(packet.protocol, now, hz) {
            if known.version == version {
                known.touch(slot, direction, packet.flags, now, hz);
                traffic::count(&context, slot, direction, packet::PLAIN_IP_OFFSET);
                verdict::mark_for_recheck(&context, endpoint, direction, known.needs_recheck());
                context.count(endpoint.id, direction, Reason::Flow);
                return Some(PacketVerdict::of(Reason::Flow));
            }
            // The entry is read again, because keeping the values from above would take space on the stack of the fast
            // path.
            let known = KnownFlow::read(slot);
            known.refresh_stale(slot, packet.protocol, now, hz);
            let stale = Stale { initiator: known.initiator, state: known.state_after(direction, packet.flags) };
            let reason = process_plain_stale::<EGRESS, A, S>(context, &key, stale.pack());
            if reason != Reason::Revoked || !known.may_belong_to_opposite_flow(direction, packet.protocol) {
                // If policies in shadow mode would deny a flow that is still allowed, the flow is reported.
                let report = if reason.allows() {
                    FlowReport::new(endpoint, stale.initiator, stale.state, false)
                } else {
                    FlowReport::NONE
                };
                return Some(PacketVerdict::with(conclude(&context, endpoint, direction, reason), report));
            }
            // The flow is revoked, but the packet may belong to a flow in the opposite direction.
            bits = u32::from(packet.flags.0)
                | MATCHES_REVOKED
                | if known.may_start_opposite_flow(now, hz) { MAY_INITIATE } else { 0 };
        }
    }
    Some(process_plain_new::<EGRESS, A, S>(context, endpoint, version, &key, bits))
}

/// Counts a packet that the pod sent with a spoofed source, and returns the verdict.
#[inline(always)]
fn deny_spoofed<S: Context>(context: S, endpoint: &Endpoint, reason: Reason) -> PacketVerdict {
    PacketVerdict::of(conclude(&context, endpoint, Direction::Egress, reason))
}

/// Evaluates a plain packet to a pod if the packet's source endpoint ID differs from the ID in the flow entry. Returns
/// true if the packet is allowed. Otherwise, for example if the flow is stale, the packet takes the slow path.
///
/// The IDs can differ because the sending pod became an endpoint, or got a new ID, while its flows were open. So the
/// packet is allowed if its source address belongs to the endpoint with the packet's ID. The packet is also allowed if
/// anti-spoofing is off for the sending endpoint, or if the flow accepts replies from any endpoint ([`ANY_REMOTE`]).
#[inline(never)]
fn process_plain_with_new_remote<A, S>(
    context: S,
    endpoint: &Endpoint,
    version: EndpointVersion,
    key: &FlowKey<A>,
    flags: u8,
) -> bool
where
    A: PacketAddress,
    S: Context + Family<A>,
{
    let Some(slot) = context.flow(endpoint, key) else { return false };
    let (known, source_endpoint) = (KnownFlow::read(slot), context.source_endpoint());
    let (now, hz) = (context.now(), context.hz());
    if known.version != version || flow::is_local_or_hairpin(slot) || !known.is_alive(key.protocol, now, hz) {
        return false;
    }
    if flow::remote_endpoint(slot) != u32::from(ANY_REMOTE) {
        let Some(remote) = context.endpoint_by_id(source_endpoint) else { return false };
        if key.remote_address.belongs_to(remote) || !remote.has(endpoint_flags::ANTI_SPOOFING) {
            flow::set_remote_endpoint(slot, source_endpoint);
        } else if known.accepts_any_remote(slot) {
            flow::set_remote_endpoint(slot, u32::from(ANY_REMOTE));
        } else {
            return false;
        }
    }
    known.touch(slot, Direction::Ingress, TcpFlags(flags), now, hz);
    traffic::count(&context, slot, Direction::Ingress, packet::PLAIN_IP_OFFSET);
    context.count(endpoint.id, Direction::Ingress, Reason::Flow);
    true
}

/// Bit of the `bits` argument of [`process_plain_new`]: the packet may initiate a flow. The low byte of `bits` has the
/// TCP flags.
const MAY_INITIATE: u32 = 1 << 8;
/// Bit of the same argument: the packet matches a revoked flow, but was not sent by the initiator of this flow.
const MATCHES_REVOKED: u32 = 1 << 9;

/// Evaluates a plain packet that belongs to no known flow, starts a connection, or matches a revoked flow.
#[inline(never)]
#[expect(clippy::cast_possible_truncation, reason = "the flags are the lower byte")]
fn process_plain_new<const EGRESS: bool, A, S>(
    context: S,
    endpoint: &Endpoint,
    version: EndpointVersion,
    key: &FlowKey<A>,
    bits: u32,
) -> PacketVerdict
where
    A: PacketAddress,
    S: Context + Family<A>,
{
    let direction = direction_of::<EGRESS>();
    if !EGRESS && guard::is_for_other_host(&context, endpoint) {
        return PacketVerdict::of(conclude(&context, endpoint, direction, Reason::OtherHost));
    }
    let flags = TcpFlags(bits as u8);
    let initiates = bits & MAY_INITIATE != 0;
    let new_connection = flags.starts_connection();
    let flow_start = FlowStart { initiates, new_connection, flags, ip_offset: packet::PLAIN_IP_OFFSET };
    let source = match direction {
        Direction::Ingress => verdict::check_source(&context, &key.remote_address),
        Direction::Egress => SourceCheck::NONE,
    };
    let source = SourceCheck(context.barrier_within::<3>(source.0));
    let attempt = verdict::attempt(&context, direction, key, source);
    let verdict = verdict::admit(&context, endpoint, version, &attempt, key, flow_start);
    verdict::conclude_new(&context, endpoint, direction, verdict, bits & MATCHES_REVOKED != 0)
}

/// Evaluates a plain packet of a stale flow. Returns `Flow` or `Revoked`.
#[inline(never)]
fn process_plain_stale<const EGRESS: bool, A, S>(context: S, key: &FlowKey<A>, stale: u32) -> Reason
where
    A: Parse,
    S: VerdictFunctions<A>,
{
    let direction = direction_of::<EGRESS>();
    let reevaluation =
        Reevaluation { direction, protocol: key.protocol, stale: Stale::unpack(stale), read_only: false };
    let ports = flow::ports(key.pod_port, key.remote_port);
    let allowed = VerdictFunctions::<A>::is_still_allowed(context, packet::PLAIN_IP_OFFSET, ports, reevaluation.pack());
    if allowed { Reason::Flow } else { Reason::Revoked }
}
