//! The slow path, for all packets that are not plain: VLAN tags, options, extension headers, fragments, ICMP, and
//! frames that are not IP.

use netpol_common::{
    ANY_REMOTE, Attempt, Direction, Endpoint, FlowEntry, FlowKey, REASON_MASK, Reason, SourceCheck, endpoint_flags,
    protocol,
};

use crate::barrier::barrier;
use crate::case::{Case, ROLE, UNDECIDED, opaque, role};
use crate::context::PacketAddress;
use crate::flow::{self, KnownFlow, Role};
use crate::packet::{self, Fragment, Icmp, Packet, Parse, TcpFlags, link};
use crate::process::conclude;
use crate::slot::Slot;
use crate::verdict::{self, FlowStart, Recheck, Stale, barrier_within, deny_if_isolated};
use crate::{Context, Family, fragment, guard};

/// The kind of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameKind {
    /// The frame has a verdict already.
    Evaluated(Reason),
    /// An IPv4 header at this offset.
    V4(u32),
    /// An IPv6 header at this offset.
    V6(u32),
}

/// The state of the flow that an ICMP error quotes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quoted {
    /// Not looked up yet.
    NotChecked,
    /// The quoted packet belongs to no known flow.
    UnknownFlow,
    /// The verdict of its flow.
    Evaluated(Reason),
}

/// Evaluates a frame that is not a plain packet.
#[inline(always)]
pub(crate) fn evaluate_frame<S: Context>(context: S, direction: Direction) -> Reason {
    match context.find(direction) {
        FrameKind::Evaluated(reason) => reason,
        FrameKind::V4(start) => ip_packet::<[u8; 4], S>(context, direction, start),
        FrameKind::V6(start) => ip_packet::<[u8; 16], S>(context, direction, start),
    }
}

/// Evaluates an IP packet. For an ICMP error, the flow that it quotes is looked up; if it is not known, the error is
/// evaluated like any packet.
#[inline(always)]
fn ip_packet<A, S: Context + Family<A>>(context: S, direction: Direction, start: u32) -> Reason {
    if let Some(reason) = Family::<A>::evaluate_ip(context, direction, start, Quoted::NotChecked) {
        return reason;
    }
    let quoted = Family::<A>::evaluate_quoted(context, direction, start);
    Family::<A>::evaluate_ip(context, direction, start, quoted).unwrap_or(Reason::Malformed)
}

/// See [`Context::find`].
#[inline(always)]
pub(crate) fn find<S: Context>(context: S, direction: Direction) -> FrameKind {
    let Some(endpoint) = context.endpoint() else { return FrameKind::Evaluated(no_endpoint(context, direction)) };
    if direction == Direction::Ingress && guard::is_for_other_host(&context, endpoint) {
        return conclude_frame(context, endpoint, direction, Reason::OtherHost);
    }
    let from_pod = direction == Direction::Egress && !context.is_post_dnat();
    if from_pod && guard::has_spoofed_mac(&context, endpoint) {
        return conclude_frame(context, endpoint, direction, Reason::SpoofedNeighbor);
    }
    let reason = match packet::find(&context) {
        Ok(link::LinkPayload::Ipv4(start)) if <[u8; 4]>::is_readable(&context, start) => return FrameKind::V4(start),
        Ok(link::LinkPayload::Ipv6(start)) if <[u8; 16]>::is_readable(&context, start) => return FrameKind::V6(start),
        Ok(link::LinkPayload::Ipv4(_) | link::LinkPayload::Ipv6(_)) => {
            deny_if_isolated(endpoint, direction, Reason::Malformed)
        }
        Ok(link::LinkPayload::Arp(start)) if from_pod => verdict::reason(context.check_arp(start)),
        Ok(link::LinkPayload::Arp(_)) => Reason::NeighborDiscovery,
        Err(reason) => deny_if_isolated(endpoint, direction, reason),
    };
    conclude_frame(context, endpoint, direction, reason)
}

/// Returns the final verdict on a frame, without regard to its payload.
#[inline(always)]
fn conclude_frame<S: Context>(context: S, endpoint: &Endpoint, direction: Direction, reason: Reason) -> FrameKind {
    FrameKind::Evaluated(conclude(&context, endpoint, direction, reason))
}

#[inline(always)]
fn no_endpoint<S: Context>(context: S, direction: Direction) -> Reason {
    let reason = if context.is_post_dnat() { Reason::SourceEndpointGone } else { Reason::NoEndpoint };
    context.count(0, direction, reason);
    reason
}

/// See [`Family::evaluate_ip`].
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "parts of packed words")]
pub(crate) fn evaluate_ip<A, S>(context: S, direction: Direction, start: u32, quoted: Quoted) -> Option<Reason>
where
    A: PacketAddress + Parse,
    S: Context + Family<A>,
{
    let Some(endpoint) = context.endpoint() else { return Some(no_endpoint(context, direction)) };
    // Never happens: `find` checked this.
    let Some(mut packet) = A::parse(&context, start, false) else { return Some(Reason::Malformed) };
    hide_parse_path(&context, &mut packet);
    let decided = decide_without_policy(&context, endpoint, direction, &mut packet);
    let icmp = packet.icmp();
    let decided = match quoted {
        Quoted::NotChecked if decided.is_none() && icmp == Some(Icmp::Error) && packet.fragment == Fragment::Whole => {
            return None;
        }
        Quoted::Evaluated(reason) => decided.or(Some(reason)),
        Quoted::NotChecked | Quoted::UnknownFlow => decided,
    };
    let mut case = Case::new(direction, &packet, icmp, decided);
    if !case.is_decided() {
        let ports = (case.ports >> 32) as u32;
        let found = Family::<A>::lookup_flow(context, direction, start, ports, (case.bits >> 8) as u32);
        if found & STALE != 0 {
            // Not called in `lookup_flow`, because both together need more stack than there is.
            if Family::<A>::is_still_allowed(context, start, ports, found as u32) {
                case.decide(Reason::Flow);
            } else if found & REVERSIBLE == 0 {
                case.decide(Reason::Revoked);
            } else {
                case.check(found >> CHECK);
                case.bits |= u64::from(role::REVERSED) << ROLE;
                if found & MAY_RESTART == 0 {
                    case.bits &= !(u64::from(role::INITIATES) << ROLE);
                }
            }
        } else if found & KNOWN != 0 {
            case.decide(Reason::Flow);
        } else {
            case.check(found);
        }
    }
    let reason = Family::<A>::decide(context, direction, case);
    if let Fragment::First { identification } = packet.fragment
        && reason.allows()
    {
        Family::<A>::record(context, direction, start, identification, fragment::FragmentInfo::of(&packet).pack());
    }
    Some(reason)
}

/// Hides the parser's path from the verifier, as only its result matters: see [`Context::barrier_within`].
#[inline(always)]
fn hide_parse_path<A: PacketAddress, S: Context>(context: &S, packet: &mut Packet<A>) {
    let (kind, identification) = match packet.fragment {
        Fragment::Whole => (0, 0),
        Fragment::First { identification } => (1, identification),
        Fragment::Later { identification } => (2, identification),
    };
    packet.fragment = match context.barrier_within::<3>(kind) {
        0 => Fragment::Whole,
        1 => Fragment::First { identification },
        _ => Fragment::Later { identification },
    };
    let error = context.barrier_within::<{ REASON_MASK as i32 }>(packet.error.map_or(UNDECIDED, |reason| reason as u8));
    packet.error = (error != UNDECIDED).then(|| verdict::reason(u32::from(error)));
    packet.protocol = context.barrier_within::<255>(packet.protocol);
}

/// Returns the verdicts that do not depend on policy.
#[inline(always)]
fn decide_without_policy<A, S>(
    context: &S,
    endpoint: &Endpoint,
    direction: Direction,
    packet: &mut Packet<A>,
) -> Option<Reason>
where
    A: PacketAddress + Parse,
    S: Context + Family<A>,
{
    if context.is_post_dnat() && context.is_unverified() {
        return Some(Reason::UnverifiedSource);
    }
    let is_discovery = packet.icmp() == Some(Icmp::Discovery);
    let from_pod = direction == Direction::Egress && !context.is_post_dnat();
    // RFC 6980: neighbor discovery is never fragmented.
    if is_discovery && packet.error.is_none() && packet.fragment == Fragment::Whole {
        let allowed = Reason::NeighborDiscovery;
        return Some(if from_pod {
            verdict::reason(context.check_discovery(packet.start, packet.payload))
        } else {
            allowed
        });
    }
    if A::FAMILY == 4
        && packet.protocol == protocol::IGMP
        && packet.error.is_none()
        && packet.fragment == Fragment::Whole
        && let Some(reason) = guard::check_igmp(context, endpoint, from_pod, packet.start, packet.payload)
    {
        return Some(barrier_within(context, reason));
    }
    if is_discovery && from_pod && endpoint.has(endpoint_flags::ANTI_SPOOFING) {
        return Some(Reason::SpoofedNeighbor);
    }
    let error = packet.error.or_else(|| resolve_fragment(context, direction, packet).err())?;
    Some(deny_if_isolated(endpoint, direction, error))
}

/// Sets protocol and ports of a later fragment to those of its first fragment, or clears the ports.
#[inline(always)]
fn resolve_fragment<A, S>(context: &S, direction: Direction, packet: &mut Packet<A>) -> Result<(), Reason>
where
    A: PacketAddress,
    S: Context + Family<A>,
{
    let (identification, first) = match packet.fragment {
        Fragment::Whole => return Ok(()),
        Fragment::First { identification } => (identification, true),
        Fragment::Later { identification } => (identification, false),
    };
    let info = fragment::FragmentInfo::of(packet).pack();
    let word = Family::<A>::resolve(*context, direction, packet.start, identification, info, first);
    let info = fragment::FragmentInfo::unpack(word)?;
    packet.protocol = info.protocol;
    packet.transport = info.transport;
    Ok(())
}

/// See [`Family::decide`].
#[inline(always)]
pub(crate) fn decide<A, S>(context: S, direction: Direction, case: Case) -> Reason
where
    A: PacketAddress + Parse,
    S: Context + Family<A>,
{
    let [start, protocol, _, role, ..] = case.bits.to_le_bytes();
    // Never happens: the caller checked this.
    let Some(endpoint) = context.endpoint() else { return Reason::NoEndpoint };
    let Some((source, destination)) = A::ends(&context, u32::from(start)) else { return Reason::Malformed };
    let version = verdict::version(endpoint);
    let post_dnat = context.is_post_dnat();
    let is_own = source.belongs_to(endpoint);
    let from_unspecified = role & role::DISCOVERY != 0 && source.is_zero();
    let (pod, remote) = flow::pod_and_remote(direction, source, destination);
    let mut key = A::flow_key(endpoint.ifindex.0, pod, remote, (case.ports >> 32) as u32, protocol);
    // Post-DNAT, a packet may be masqueraded.
    let masqueraded = post_dnat && !is_own;
    if masqueraded {
        key.pod_address = A::own(barrier(endpoint));
    }
    let has_foreign_source = direction == Direction::Egress && endpoint.has(endpoint_flags::ANTI_SPOOFING) && !is_own;
    let found = if !post_dnat && !from_unspecified && has_foreign_source {
        Reason::SpoofedSource
    } else if case.is_decided() {
        verdict::reason((opaque(case.bits) >> 32) as u32 & 0xff)
    } else {
        let [_, _, flags, role, ..] = opaque(case.bits).to_le_bytes();
        let [_, _, c, d, ..] = opaque(case.ports).to_le_bytes();
        let source = SourceCheck(role >> role::CHECK & 3);
        // The port of a masqueraded packet is not the pod's.
        let flow_start = FlowStart {
            initiates: role & role::INITIATES != 0 && !masqueraded,
            new_connection: role & role::NEW_CONNECTION != 0,
            flags: TcpFlags(flags),
        };
        let attempt = Attempt { port: [c, d], ..verdict::attempt(&context, direction, &key, source) };
        let found = verdict::admit(&context, endpoint, version, &attempt, &key, flow_start);
        // An orphan's ports are zero, so it is only allowed if all ports are.
        if role & role::ORPHAN != 0 && found == Reason::NoRule {
            Reason::OrphanFragment
        } else {
            verdict::revoked_if_reversed(role & role::REVERSED != 0, found)
        }
    };
    conclude(&context, endpoint, direction, found)
}

/// The verdict of a known flow.
enum FlowVerdict {
    /// The flow is allowed.
    Allowed,
    /// The flow was evaluated under another version of the endpoint. See [`REVERSIBLE`] and [`MAY_RESTART`].
    Stale(Recheck, u64),
}

/// Looks up a flow. Without flags: for an ICMP error that quotes a packet of the flow and does not belong to it.
#[inline(always)]
fn find_flow<A, S>(
    context: &S,
    endpoint: &Endpoint,
    direction: Direction,
    key: &FlowKey<A>,
    flags: Option<TcpFlags>,
) -> Option<FlowVerdict>
where
    A: PacketAddress,
    S: Context + Family<A>,
{
    let version = verdict::version(endpoint);
    let slot = context.flow(endpoint, key)?;
    let (now, hz) = (context.now(), context.hz());
    let known = KnownFlow::read(slot);
    // Post-DNAT, a flow to be rechecked still has its pre-DNAT destination: it was not translated.
    if !known.is_alive(key.protocol, now, hz) || (context.is_post_dnat() && known.needs_recheck()) {
        return None;
    }
    if direction == Direction::Ingress
        && flags.is_some()
        && verdict::is_other_sender(context, endpoint, key.protocol, known.state)
    {
        return None;
    }
    if known.version == version {
        if let Some(flags) = flags {
            known.touch(slot, direction, flags, now, hz);
            verdict::mark_for_recheck(context, endpoint, direction, known.needs_recheck());
        }
        return Some(FlowVerdict::Allowed);
    }
    let mut stale = Stale { initiator: known.initiator, state: known.state };
    let mut reversal = 0;
    if let Some(flags) = flags {
        known.refresh_stale(slot, key.protocol, now, hz);
        stale.state = known.after(direction, flags);
        reversal = if known.may_be_reversed(direction, key.protocol) { REVERSIBLE } else { 0 }
            | if known.may_restart(now, hz) { MAY_RESTART } else { 0 };
    }
    Some(FlowVerdict::Stale(Recheck { direction, protocol: key.protocol, stale }, reversal))
}

/// See [`Family::lookup_flow`].
#[inline(always)]
pub(crate) fn lookup_flow<A, S>(context: S, direction: Direction, start: u32, ports: u32, bits: u32) -> u64
where
    A: PacketAddress + Parse,
    S: Context + Family<A>,
{
    let [protocol, flags, role, _] = bits.to_le_bytes();
    let Some(endpoint) = context.endpoint() else { return 0 };
    let Some((source, destination)) = A::ends(&context, start) else { return 0 };
    // A packet with another source address than the pod's belongs to no flow. Post-DNAT, masqueraded packets are not
    // found.
    if direction == Direction::Egress
        && !source.belongs_to(endpoint)
        && (context.is_post_dnat() || endpoint.has(endpoint_flags::ANTI_SPOOFING))
    {
        return 0;
    }
    let (pod, remote) = flow::pod_and_remote(direction, source, destination);
    let key = A::flow_key(endpoint.ifindex.0, pod, remote, ports, protocol);
    let check = match direction {
        Direction::Ingress => verdict::check_source(&context, &key.remote_address),
        Direction::Egress => SourceCheck::NONE,
    };
    let unknown = u64::from(check.0);
    if !context.is_post_dnat() && role & role::MEMBER == 0 {
        return unknown;
    }
    if direction == Direction::Ingress
        && let Some(slot) = context.flow(endpoint, &key)
        && is_from_other_endpoint(&context, slot, &key, check)
    {
        return unknown;
    }
    match find_flow(&context, endpoint, direction, &key, Some(TcpFlags(flags))) {
        Some(FlowVerdict::Allowed) => KNOWN,
        Some(FlowVerdict::Stale(recheck, reversal)) => STALE | reversal | unknown << CHECK | u64::from(recheck.pack()),
        None => unknown,
    }
}

/// Set in the result of [`Family::lookup_flow`] if the packet belongs to a flow that is allowed. Without this bit and
/// the next, the result is a [`SourceCheck`].
const KNOWN: u64 = 1 << 32;
/// Set if the packet belongs to a flow that has to be evaluated again, by the [`Recheck`] in the low half.
const STALE: u64 = 1 << 33;
/// With `STALE`: if the flow is no longer allowed, the packet may belong to a flow of the other side, see
/// [`KnownFlow::may_be_reversed`].
const REVERSIBLE: u64 = 1 << 34;
/// With `STALE`: see [`KnownFlow::may_restart`].
const MAY_RESTART: u64 = 1 << 35;
/// With `STALE`: the position of the [`SourceCheck`].
const CHECK: u32 = 36;

/// Returns whether a packet to a pod does not come from the flow's remote endpoint. If the remote's source endpoint ID
/// changed and the new one is valid, it is stored.
#[inline(always)]
fn is_from_other_endpoint<A, S>(context: &S, slot: Slot<'_, FlowEntry>, key: &FlowKey<A>, source: SourceCheck) -> bool
where
    A: PacketAddress,
    S: Context + Family<A>,
{
    let (known, source_endpoint) = (KnownFlow::read(slot), context.source_endpoint());
    let remote = flow::remote_endpoint(slot);
    if remote == source_endpoint || remote == u32::from(ANY_REMOTE) {
        return false;
    }
    match source {
        SourceCheck::NONE => flow::set_remote_endpoint(slot, source_endpoint),
        SourceCheck::NOT_LOCAL_ENDPOINT
            if context.exact_address(&key.remote_address).unwrap_or_default().endpoint == 0 =>
        {
            flow::set_remote_endpoint(slot, source_endpoint);
        }
        SourceCheck::TRANSLATED if known.accepts_any_remote(slot) => {
            flow::set_remote_endpoint(slot, u32::from(ANY_REMOTE));
        }
        _ => return true,
    }
    false
}

/// See [`Family::evaluate_quoted`]. The error is sent to the source of the quoted packet, so that packet had the opposite
/// direction. An error to another address belongs to no known flow.
#[inline(always)]
pub(crate) fn evaluate_quoted<A, S>(context: S, direction: Direction, start: u32) -> Quoted
where
    A: PacketAddress + Parse,
    S: Context + Family<A>,
{
    /// Length of the ICMP header, before the quoted packet.
    const ICMP: u32 = 8;
    let Some(endpoint) = context.endpoint() else { return Quoted::UnknownFlow };
    let Some(error) = A::parse(&context, start, false) else { return Quoted::UnknownFlow };
    let Some(quoted) = A::parse(&context, error.payload + ICMP, true) else { return Quoted::UnknownFlow };
    let has_ports = quoted.error.is_none() && !matches!(quoted.fragment, Fragment::Later { .. });
    let direction = direction.opposite();
    let (role, (pod_port, remote_port)) = flow::identify(direction, &quoted, quoted.icmp());
    if !has_ports || role == Role::NoFlow {
        return Quoted::UnknownFlow;
    }
    let Some((_, to)) = A::ends(&context, start) else { return Quoted::UnknownFlow };
    let Some((source, destination)) = A::ends(&context, quoted.start) else { return Quoted::UnknownFlow };
    if source != to {
        return Quoted::UnknownFlow;
    }
    let (pod, remote) = flow::pod_and_remote(direction, source, destination);
    let ports = flow::ports(pod_port, remote_port);
    let key = A::flow_key(context.ifindex(), pod, remote, ports, quoted.protocol);
    match find_flow(&context, endpoint, direction, &key, None) {
        Some(FlowVerdict::Allowed) => Quoted::Evaluated(Reason::IcmpError),
        Some(FlowVerdict::Stale(recheck, _)) => {
            let allowed = Family::<A>::is_still_allowed(context, quoted.start, ports, recheck.pack());
            Quoted::Evaluated(if allowed { Reason::IcmpError } else { Reason::Revoked })
        }
        None => Quoted::UnknownFlow,
    }
}
