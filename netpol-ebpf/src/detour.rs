//! The way of all packets that are not plain: tags, options, extension headers, fragments, ICMP, and what is not IP.

use netpol_common::{
    ANY_REMOTE, Attempt, Direction, Endpoint, FlowEntry, FlowKey, REASON_MASK, Reason, SourceCheck, endpoint_flags,
    protocol,
};

use crate::barrier::barrier;
use crate::case::{Case, ROLE, UNDECIDED, role, unfold};
use crate::flow::{self, Known, Role};
use crate::packet::{self, Fragment, Icmp, Packet, Parse, TcpFlags, link};
use crate::process::conclude;
use crate::slot::Slot;
use crate::surroundings::PacketAddress;
use crate::verdict::{self, Opening, Recheck, Stale, blur, unless_open};
use crate::{Family, Surroundings, fragment, guard};

/// What a frame turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// It is judged already.
    Judged(Reason),
    /// An IPv4 header at this offset.
    V4(u32),
    /// An IPv6 header at this offset.
    V6(u32),
}

/// What is known of the packet that an ICMP error quotes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quoted {
    /// Not asked yet.
    NotAsked,
    /// It belongs to no known flow.
    Nothing,
    /// The verdict of its flow.
    Judged(Reason),
}

/// Judges a frame that is not a plain packet.
#[inline(always)]
pub(crate) fn judge_frame<S: Surroundings>(surroundings: S, direction: Direction) -> Reason {
    match surroundings.find(direction) {
        Content::Judged(reason) => reason,
        Content::V4(start) => ip::<[u8; 4], S>(surroundings, direction, start),
        Content::V6(start) => ip::<[u8; 16], S>(surroundings, direction, start),
    }
}

/// An ICMP error is asked what it quotes, and if that is nothing known, judged like any packet.
#[inline(always)]
fn ip<A, S: Surroundings + Family<A>>(surroundings: S, direction: Direction, start: u32) -> Reason {
    if let Some(reason) = Family::<A>::judge_ip(surroundings, direction, start, Quoted::NotAsked) {
        return reason;
    }
    let quoted = Family::<A>::judge_quoted(surroundings, direction, start);
    Family::<A>::judge_ip(surroundings, direction, start, quoted).unwrap_or(Reason::Malformed)
}

/// See [`Surroundings::find`].
#[inline(always)]
pub(crate) fn find<S: Surroundings>(surroundings: S, direction: Direction) -> Content {
    let Some(endpoint) = surroundings.endpoint() else { return Content::Judged(no_endpoint(surroundings, direction)) };
    if direction == Direction::Ingress && guard::is_for_another(&surroundings, endpoint) {
        return frame(surroundings, endpoint, direction, Reason::OtherHost);
    }
    let from_pod = direction == Direction::Egress && !surroundings.is_behind();
    if from_pod && guard::has_foreign_mac(&surroundings, endpoint) {
        return frame(surroundings, endpoint, direction, Reason::SpoofedNeighbor);
    }
    let reason = match packet::find(&surroundings) {
        Ok(link::Content::Ipv4(start)) if <[u8; 4]>::is_readable(&surroundings, start) => return Content::V4(start),
        Ok(link::Content::Ipv6(start)) if <[u8; 16]>::is_readable(&surroundings, start) => return Content::V6(start),
        Ok(link::Content::Ipv4(_) | link::Content::Ipv6(_)) => unless_open(endpoint, direction, Reason::Malformed),
        Ok(link::Content::Arp(start)) if from_pod => verdict::reason(surroundings.check_arp(start)),
        Ok(link::Content::Arp(_)) => Reason::LinkControl,
        Err(reason) => unless_open(endpoint, direction, reason),
    };
    frame(surroundings, endpoint, direction, reason)
}

/// Concludes on a frame, whatever is in it.
#[inline(always)]
fn frame<S: Surroundings>(surroundings: S, endpoint: &Endpoint, direction: Direction, reason: Reason) -> Content {
    Content::Judged(conclude(&surroundings, endpoint, direction, reason))
}

#[inline(always)]
fn no_endpoint<S: Surroundings>(surroundings: S, direction: Direction) -> Reason {
    let reason = if surroundings.is_behind() { Reason::SenderGone } else { Reason::NoEndpoint };
    surroundings.count(0, direction, reason);
    reason
}

/// See [`Family::judge_ip`].
#[inline(always)]
pub(crate) fn judge_ip<A, S>(surroundings: S, direction: Direction, start: u32, quoted: Quoted) -> Option<Reason>
where
    A: PacketAddress + Parse,
    S: Surroundings + Family<A>,
{
    let Some(endpoint) = surroundings.endpoint() else { return Some(no_endpoint(surroundings, direction)) };
    // Never: `find` asked before.
    let Some(mut packet) = A::parse(&surroundings, start, false) else { return Some(Reason::Malformed) };
    forget_how(&surroundings, &mut packet);
    let decided = without_policy(&surroundings, endpoint, direction, &mut packet);
    let icmp = packet.icmp();
    let decided = match quoted {
        Quoted::NotAsked if decided.is_none() && icmp == Some(Icmp::Error) && packet.fragment == Fragment::Whole => {
            return None;
        }
        Quoted::Judged(reason) => decided.or(Some(reason)),
        Quoted::NotAsked | Quoted::Nothing => decided,
    };
    let mut case = Case::new(direction, &packet, icmp, decided);
    if !case.is_decided() {
        let ports = (case.ports >> 32) as u32;
        let found = Family::<A>::recall(surroundings, direction, start, ports, (case.bits >> 8) as u32);
        if found & STALE != 0 {
            // Not in there: both together need more stack than there is.
            if Family::<A>::is_still_allowed(surroundings, start, ports, found as u32) {
                case.decide(Reason::Flow);
            } else if found & REVERSIBLE == 0 {
                case.decide(Reason::Revoked);
            } else {
                case.check(found >> CHECK);
                case.bits |= u64::from(role::REVERSED) << ROLE;
                if found & REOPENS == 0 {
                    case.bits &= !(u64::from(role::OPENS) << ROLE);
                }
            }
        } else if found & KNOWN != 0 {
            case.decide(Reason::Flow);
        } else {
            case.check(found);
        }
    }
    let reason = Family::<A>::settle(surroundings, direction, case);
    if let Fragment::First { identification } = packet.fragment
        && reason.allows()
    {
        Family::<A>::record(surroundings, direction, start, identification, fragment::Said::of(&packet).pack());
    }
    Some(reason)
}

/// Lets the verifier forget which way the parser went, where only what it found matters: see [`Surroundings::blur`].
#[inline(always)]
fn forget_how<A: PacketAddress, S: Surroundings>(surroundings: &S, packet: &mut Packet<A>) {
    let (kind, identification) = match packet.fragment {
        Fragment::Whole => (0, 0),
        Fragment::First { identification } => (1, identification),
        Fragment::Later { identification } => (2, identification),
    };
    packet.fragment = match surroundings.blur::<3>(kind) {
        0 => Fragment::Whole,
        1 => Fragment::First { identification },
        _ => Fragment::Later { identification },
    };
    let problem = surroundings.blur::<{ REASON_MASK as i32 }>(packet.problem.map_or(UNDECIDED, |reason| reason as u8));
    packet.problem = (problem != UNDECIDED).then(|| verdict::reason(u32::from(problem)));
    packet.protocol = surroundings.blur::<255>(packet.protocol);
}

/// What is decided before any policy is asked.
#[inline(always)]
fn without_policy<A, S>(
    surroundings: &S,
    endpoint: &Endpoint,
    direction: Direction,
    packet: &mut Packet<A>,
) -> Option<Reason>
where
    A: PacketAddress + Parse,
    S: Surroundings + Family<A>,
{
    if surroundings.is_behind() && surroundings.is_spoofed() {
        return Some(Reason::SpoofedSource);
    }
    let discovers = packet.icmp() == Some(Icmp::Discovery);
    let from_pod = direction == Direction::Egress && !surroundings.is_behind();
    // RFC 6980: discovery is never fragmented.
    if discovers && packet.problem.is_none() && packet.fragment == Fragment::Whole {
        let allowed = Reason::LinkControl;
        return Some(if from_pod {
            verdict::reason(surroundings.check_discovery(packet.start, packet.payload))
        } else {
            allowed
        });
    }
    if A::FAMILY == 4
        && packet.protocol == protocol::IGMP
        && packet.problem.is_none()
        && packet.fragment == Fragment::Whole
        && let Some(reason) = guard::membership(surroundings, endpoint, from_pod, packet.start, packet.payload)
    {
        return Some(blur(surroundings, reason));
    }
    if discovers && from_pod && endpoint.has(endpoint_flags::SOURCE_GUARD) {
        return Some(Reason::SpoofedNeighbor);
    }
    let problem = packet.problem.or_else(|| follow(surroundings, direction, packet).err())?;
    Some(unless_open(endpoint, direction, problem))
}

/// Gives a later fragment what its first fragment said, or no ports.
#[inline(always)]
fn follow<A, S>(surroundings: &S, direction: Direction, packet: &mut Packet<A>) -> Result<(), Reason>
where
    A: PacketAddress,
    S: Surroundings + Family<A>,
{
    let (identification, first) = match packet.fragment {
        Fragment::Whole => return Ok(()),
        Fragment::First { identification } => (identification, true),
        Fragment::Later { identification } => (identification, false),
    };
    let said = fragment::Said::of(packet).pack();
    let word = Family::<A>::resolve(*surroundings, direction, packet.start, identification, said, first);
    let said = fragment::Said::unpack(word)?;
    packet.protocol = said.protocol;
    packet.transport = said.transport;
    Ok(())
}

/// See [`Family::settle`].
#[inline(always)]
pub(crate) fn settle<A, S>(surroundings: S, direction: Direction, case: Case) -> Reason
where
    A: PacketAddress + Parse,
    S: Surroundings + Family<A>,
{
    let [start, protocol, _, role, ..] = case.bits.to_le_bytes();
    // Never: who made the case asked before.
    let Some(endpoint) = surroundings.endpoint() else { return Reason::NoEndpoint };
    let Some((source, destination)) = A::ends(&surroundings, u32::from(start)) else { return Reason::Malformed };
    let generation = verdict::generation(endpoint);
    let behind = surroundings.is_behind();
    let is_own = source.belongs_to(endpoint);
    let from_nobody = role & role::DISCOVERS != 0 && source.is_zero();
    let (pod, remote) = flow::pod_and_remote(direction, source, destination);
    let mut key = A::flow_key(endpoint.ifindex.0, pod, remote, (case.ports >> 32) as u32, protocol);
    // Behind, it may go in its node's name.
    let masqueraded = behind && !is_own;
    if masqueraded {
        key.pod_address = A::own(barrier(endpoint));
    }
    let is_foreign = direction == Direction::Egress && endpoint.has(endpoint_flags::SOURCE_GUARD) && !is_own;
    let found = if !behind && !from_nobody && is_foreign {
        Reason::ForeignSource
    } else if case.is_decided() {
        verdict::reason((unfold(case.bits) >> 32) as u32 & 0xff)
    } else {
        let [_, _, flags, role, ..] = unfold(case.bits).to_le_bytes();
        let [_, _, c, d, ..] = unfold(case.ports).to_le_bytes();
        let source = SourceCheck(role >> role::CHECK & 3);
        // The port of one that goes in its node's name is not the pod's.
        let opening = Opening {
            opens: role & role::OPENS != 0 && !masqueraded,
            fresh: role & role::FRESH != 0,
            flags: TcpFlags(flags),
        };
        let attempt = Attempt { port: [c, d], ..verdict::attempt(&surroundings, direction, &key, source) };
        let found = verdict::admit(&surroundings, endpoint, generation, &attempt, &key, opening);
        // Its ports are zeros: what is allowed then is allowed at all ports.
        if role & role::ORPHAN != 0 && found == Reason::NoRule {
            Reason::OrphanFragment
        } else {
            verdict::unless_reversed(role & role::REVERSED != 0, found)
        }
    };
    conclude(&surroundings, endpoint, direction, found)
}

/// What is known of a flow.
enum Found {
    /// It is allowed.
    Allowed,
    /// It was evaluated under another generation; see [`REVERSIBLE`] and [`REOPENS`].
    Stale(Recheck, u64),
}

/// What is known of a flow. Without flags: for an error that quotes a packet of it, which is none itself.
#[inline(always)]
fn find_known<A, S>(
    surroundings: &S,
    endpoint: &Endpoint,
    direction: Direction,
    key: &FlowKey<A>,
    flags: Option<TcpFlags>,
) -> Option<Found>
where
    A: PacketAddress,
    S: Surroundings + Family<A>,
{
    let generation = verdict::generation(endpoint);
    let slot = surroundings.flow(endpoint, key)?;
    let (now, hz) = (surroundings.now(), surroundings.hz());
    let known = Known::read(slot);
    // Behind, a flow that is judged there is still where it was sent to: nobody has sent it on.
    if !known.is_alive(key.protocol, now, hz) || (surroundings.is_behind() && known.is_judged_behind()) {
        return None;
    }
    if direction == Direction::Ingress
        && flags.is_some()
        && verdict::is_another(surroundings, endpoint, key.protocol, known.state)
    {
        return None;
    }
    if known.generation == generation {
        if let Some(flags) = flags {
            known.touch(slot, direction, flags, now, hz);
            verdict::follow(surroundings, endpoint, direction, known.is_judged_behind());
        }
        return Some(Found::Allowed);
    }
    let mut stale = Stale { opener: known.opener, state: known.state };
    let mut reversal = 0;
    if let Some(flags) = flags {
        known.keep_stale(slot, key.protocol, now, hz);
        stale.state = known.after(direction, flags);
        reversal = if known.may_be_reversed(direction, key.protocol) { REVERSIBLE } else { 0 }
            | if known.reopens(now, hz) { REOPENS } else { 0 };
    }
    Some(Found::Stale(Recheck { direction, protocol: key.protocol, stale }, reversal))
}

/// See [`Family::recall`].
#[inline(always)]
pub(crate) fn recall<A, S>(surroundings: S, direction: Direction, start: u32, ports: u32, bits: u32) -> u64
where
    A: PacketAddress + Parse,
    S: Surroundings + Family<A>,
{
    let [protocol, flags, role, _] = bits.to_le_bytes();
    let Some(endpoint) = surroundings.endpoint() else { return 0 };
    let Some((source, destination)) = A::ends(&surroundings, start) else { return 0 };
    // What a pod sends from another's address is of no flow; after translation, what has the node's is not found.
    if direction == Direction::Egress
        && !source.belongs_to(endpoint)
        && (surroundings.is_behind() || endpoint.has(endpoint_flags::SOURCE_GUARD))
    {
        return 0;
    }
    let (pod, remote) = flow::pod_and_remote(direction, source, destination);
    let key = A::flow_key(endpoint.ifindex.0, pod, remote, ports, protocol);
    let check = match direction {
        Direction::Ingress => verdict::check_source(&surroundings, &key.remote_address),
        Direction::Egress => SourceCheck::NONE,
    };
    let unknown = u64::from(check.0);
    if !surroundings.is_behind() && role & role::MEMBER == 0 {
        return unknown;
    }
    if direction == Direction::Ingress
        && let Some(slot) = surroundings.flow(endpoint, &key)
        && is_from_another(&surroundings, slot, &key, check)
    {
        return unknown;
    }
    match find_known(&surroundings, endpoint, direction, &key, Some(TcpFlags(flags))) {
        Some(Found::Allowed) => KNOWN,
        Some(Found::Stale(recheck, reversal)) => STALE | reversal | unknown << CHECK | u64::from(recheck.pack()),
        None => unknown,
    }
}

/// In what [`Family::recall`] returns: it belongs to a flow that is allowed. Without this and the next, it is the number of a
/// [`SourceCheck`].
const KNOWN: u64 = 1 << 32;
/// It belongs to a flow that has to be evaluated again, by the [`Recheck`] in the low half.
const STALE: u64 = 1 << 33;
/// With that: where the flow is no longer allowed, the packet may be the other side's own, see [`Known::may_be_reversed`].
const REVERSIBLE: u64 = 1 << 34;
/// With that: see [`Known::reopens`].
const REOPENS: u64 = 1 << 35;
/// With that: where the number of the [`SourceCheck`] starts.
const CHECK: u32 = 36;

/// Whether a packet towards a pod does not come from where the flow's remote sends. If it does with another source endpoint ID, that
/// is noted.
#[inline(always)]
fn is_from_another<A, S>(surroundings: &S, slot: Slot<'_, FlowEntry>, key: &FlowKey<A>, source: SourceCheck) -> bool
where
    A: PacketAddress,
    S: Surroundings + Family<A>,
{
    let (known, sender) = (Known::read(slot), surroundings.sender());
    let remote = flow::remote_endpoint(slot);
    if remote == sender || remote == u32::from(ANY_REMOTE) {
        return false;
    }
    match source {
        SourceCheck::NONE => flow::learn(slot, sender),
        SourceCheck::FROM_ELSEWHERE
            if surroundings.exact_address(&key.remote_address).unwrap_or_default().endpoint == 0 =>
        {
            flow::learn(slot, sender);
        }
        SourceCheck::TRANSLATED if known.may_have_any_remote(slot) => flow::learn(slot, u32::from(ANY_REMOTE)),
        _ => return true,
    }
    false
}

/// See [`Family::judge_quoted`]. The error goes to who sent the quoted packet, so that packet went the other way; an error
/// that is sent elsewhere is about nothing known here.
#[inline(always)]
pub(crate) fn judge_quoted<A, S>(surroundings: S, direction: Direction, start: u32) -> Quoted
where
    A: PacketAddress + Parse,
    S: Surroundings + Family<A>,
{
    /// Length of the ICMP header before the quoted packet.
    const ICMP: u32 = 8;
    let Some(endpoint) = surroundings.endpoint() else { return Quoted::Nothing };
    let Some(error) = A::parse(&surroundings, start, false) else { return Quoted::Nothing };
    let Some(quoted) = A::parse(&surroundings, error.payload + ICMP, true) else { return Quoted::Nothing };
    let told = quoted.problem.is_none() && !matches!(quoted.fragment, Fragment::Later { .. });
    let direction = direction.opposite();
    let (role, (pod_port, remote_port)) = flow::identify(direction, &quoted, quoted.icmp());
    if !told || role == Role::Stranger {
        return Quoted::Nothing;
    }
    let Some((_, to)) = A::ends(&surroundings, start) else { return Quoted::Nothing };
    let Some((source, destination)) = A::ends(&surroundings, quoted.start) else { return Quoted::Nothing };
    if source != to {
        return Quoted::Nothing;
    }
    let (pod, remote) = flow::pod_and_remote(direction, source, destination);
    let ports = flow::ports(pod_port, remote_port);
    let key = A::flow_key(surroundings.ifindex(), pod, remote, ports, quoted.protocol);
    match find_known(&surroundings, endpoint, direction, &key, None) {
        Some(Found::Allowed) => Quoted::Judged(Reason::IcmpError),
        Some(Found::Stale(recheck, _)) => {
            let allowed = Family::<A>::is_still_allowed(surroundings, quoted.start, ports, recheck.pack());
            Quoted::Judged(if allowed { Reason::IcmpError } else { Reason::Revoked })
        }
        None => Quoted::Nothing,
    }
}
