//! The slow path, for all packets that are not plain: packets with VLAN tags, options or extension headers, fragments,
//! ICMP, and frames that are not IP.

use netpol_common::{Attempt, Direction, Endpoint, Reason, SourceCheck, endpoint_flags, protocol};

use crate::barrier::barrier;
use crate::case::{Case, opaque, role};
use crate::context::{Context, PacketAddress};
use crate::flow::{self, Role};
use crate::flow_lookup::{
    FlowFunctions, FlowVerdict, KNOWN, MAY_BELONG_TO_OPPOSITE_FLOW, MAY_START_OPPOSITE_FLOW, STALE,
    STALE_SOURCE_CHECK_SHIFT, find_flow,
};
use crate::fragment::{self, FragmentFunctions};
use crate::guard::{self, GuardFunctions};
use crate::packet::{self, Fragment, Icmp, Packet, Parse, ParserFunctions, TcpFlags, link};
use crate::packet_verdict::{FlowReport, PacketVerdict};
use crate::stale::Reevaluation;
use crate::verdict::{self, FlowStart, VerdictFunctions, barrier_within, conclude, deny_if_isolated};

/// The functions of one address family that are separate BPF functions in the kernel.
pub(crate) trait IpFunctions<A: Parse>:
    ParserFunctions + GuardFunctions + FragmentFunctions<A> + VerdictFunctions<A> + FlowFunctions<A>
{
    /// Evaluates the IP packet at an offset of the frame. `None`: the IP packet is an ICMP error, and the flow of the
    /// packet that the error quotes was not looked up yet.
    #[inline(always)]
    fn evaluate_ip(self, direction: Direction, ip_offset: u32, quoted: Quoted) -> Option<PacketVerdict> {
        evaluate_ip::<A, Self>(self, direction, ip_offset, quoted)
    }
    /// Evaluates the ICMP error in the IP packet at an offset of the frame, by the flow of the packet that it quotes.
    #[inline(always)]
    fn evaluate_quoted(self, direction: Direction, ip_offset: u32) -> Quoted {
        evaluate_quoted::<A, Self>(self, direction, ip_offset)
    }
    /// Returns the verdict on a packet that is summarized in a [`Case`], and counts the packet.
    #[inline(always)]
    fn decide(self, direction: Direction, case: Case) -> PacketVerdict {
        decide::<A, Self>(self, direction, case)
    }
}

/// The functions for frames that are separate BPF functions in the kernel.
pub(crate) trait FrameFunctions: IpFunctions<[u8; 4]> + IpFunctions<[u8; 16]> {
    /// Finds the IP header of a frame. If the verdict does not depend on the IP packet, counts the frame and returns
    /// the verdict.
    #[inline(always)]
    fn check_frame(self, direction: Direction) -> FrameResult {
        check_frame(self, direction)
    }
}

/// The offset of a frame's IP header, or the verdict if the frame already has a verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FrameResult {
    /// The frame already has a verdict.
    Evaluated(Reason),
    /// An IPv4 header at this offset.
    V4(u32),
    /// An IPv6 header at this offset.
    V6(u32),
}

/// The verdict on an ICMP error, by the flow of the packet that the error quotes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Quoted {
    /// Not looked up yet.
    NotChecked,
    /// The quoted packet belongs to no known flow.
    UnknownFlow,
    /// The quoted packet belongs to a known flow, and this is the verdict on the error.
    Evaluated(Reason),
}

/// Evaluates a frame on the slow path.
#[inline(always)]
pub(crate) fn evaluate_frame<S: FrameFunctions>(context: S, direction: Direction) -> PacketVerdict {
    match context.check_frame(direction) {
        FrameResult::Evaluated(reason) => PacketVerdict::of(reason),
        FrameResult::V4(ip_offset) => evaluate_ip_packet::<[u8; 4], S>(context, direction, ip_offset),
        FrameResult::V6(ip_offset) => evaluate_ip_packet::<[u8; 16], S>(context, direction, ip_offset),
    }
}

/// Evaluates an IP packet. For an ICMP error, the flow of the quoted packet is looked up. If there is no such flow, the
/// error is evaluated like any other packet.
#[inline(always)]
fn evaluate_ip_packet<A: Parse, S: IpFunctions<A>>(context: S, direction: Direction, ip_offset: u32) -> PacketVerdict {
    if let Some(verdict) = IpFunctions::<A>::evaluate_ip(context, direction, ip_offset, Quoted::NotChecked) {
        return verdict;
    }
    let quoted = IpFunctions::<A>::evaluate_quoted(context, direction, ip_offset);
    let verdict = IpFunctions::<A>::evaluate_ip(context, direction, ip_offset, quoted);
    verdict.unwrap_or(PacketVerdict::of(Reason::Malformed))
}

/// See [`FrameFunctions::check_frame`].
#[inline(always)]
pub(crate) fn check_frame<S: GuardFunctions>(context: S, direction: Direction) -> FrameResult {
    let Some(endpoint) = context.endpoint() else {
        return FrameResult::Evaluated(deny_without_endpoint(context, direction));
    };
    if direction == Direction::Ingress && guard::is_for_other_host(&context, endpoint) {
        return conclude_frame(context, endpoint, direction, Reason::OtherHost);
    }
    let from_pod = direction == Direction::Egress && !context.is_post_dnat();
    if from_pod && guard::has_spoofed_mac(&context, endpoint) {
        return conclude_frame(context, endpoint, direction, Reason::SpoofedNeighbor);
    }
    let reason = match packet::find_payload(&context) {
        Ok(link::LinkPayload::Ipv4(ip_offset)) if <[u8; 4]>::is_readable(&context, ip_offset) => {
            return FrameResult::V4(ip_offset);
        }
        Ok(link::LinkPayload::Ipv6(ip_offset)) if <[u8; 16]>::is_readable(&context, ip_offset) => {
            return FrameResult::V6(ip_offset);
        }
        Ok(link::LinkPayload::Ipv4(_) | link::LinkPayload::Ipv6(_)) => {
            deny_if_isolated(endpoint, direction, Reason::Malformed)
        }
        Ok(link::LinkPayload::Arp(start)) if from_pod => context.check_arp(start),
        Ok(link::LinkPayload::Arp(_)) => Reason::NeighborDiscovery,
        Err(reason) => deny_if_isolated(endpoint, direction, reason),
    };
    conclude_frame(context, endpoint, direction, reason)
}

/// Counts the frame and returns its verdict. The payload is not evaluated.
#[inline(always)]
fn conclude_frame<S: Context>(context: S, endpoint: &Endpoint, direction: Direction, reason: Reason) -> FrameResult {
    FrameResult::Evaluated(conclude(&context, endpoint, direction, reason))
}

/// Counts a packet at an interface without an endpoint, and returns the reason.
#[inline(always)]
fn deny_without_endpoint<S: Context>(context: S, direction: Direction) -> Reason {
    let reason = if context.is_post_dnat() { Reason::SourceEndpointGone } else { Reason::NoEndpoint };
    context.count(0, direction, reason);
    reason
}

/// See [`IpFunctions::evaluate_ip`].
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "parts of packed words")]
pub(crate) fn evaluate_ip<A, S>(
    context: S,
    direction: Direction,
    ip_offset: u32,
    quoted: Quoted,
) -> Option<PacketVerdict>
where
    A: Parse,
    S: IpFunctions<A>,
{
    let Some(endpoint) = context.endpoint() else {
        return Some(PacketVerdict::of(deny_without_endpoint(context, direction)));
    };
    // Never happens: `check_frame` has checked that the header can be read.
    let Some(mut packet) = A::parse(&context, ip_offset, false) else {
        return Some(PacketVerdict::of(Reason::Malformed));
    };
    hide_parse_path(&context, &mut packet);
    let decided = decide_without_policy(&context, endpoint, direction, &mut packet);
    let icmp = packet.icmp();
    let decided = match quoted {
        Quoted::NotChecked if decided.is_none() && icmp == Some(Icmp::Error) && packet.fragment == Fragment::WHOLE => {
            return None;
        }
        Quoted::Evaluated(reason) => decided.or(Some(reason)),
        Quoted::NotChecked | Quoted::UnknownFlow => decided,
    };
    let mut case = Case::new(direction, &packet, icmp, decided);
    let mut report = FlowReport::NONE;
    if !case.is_decided() {
        let ports = case.flow_ports();
        let found = FlowFunctions::<A>::lookup_flow(context, direction, ip_offset, ports, case.flow_bits());
        if found & STALE != 0 {
            // The flow was evaluated with earlier policies. `lookup_flow` does not call `is_still_allowed` itself,
            // because the two functions together need more stack than BPF has.
            let read_only = packet.fragment == Fragment::LATER;
            let reevaluation = Reevaluation { read_only, ..Reevaluation::unpack(found as u32) };
            if VerdictFunctions::<A>::is_still_allowed(context, ip_offset, ports, reevaluation.pack()) {
                case.decide(Reason::Flow);
                let stale = reevaluation.stale;
                report = FlowReport::new(endpoint, stale.initiator, stale.state, false);
            } else if found & MAY_BELONG_TO_OPPOSITE_FLOW == 0 {
                case.decide(Reason::Revoked);
            } else {
                // The packet is evaluated like a packet without a flow, by the policies for `direction`.
                case.set_source_check(found >> STALE_SOURCE_CHECK_SHIFT);
                case.set_matches_revoked();
                if found & MAY_START_OPPOSITE_FLOW == 0 {
                    case.clear_initiates();
                }
            }
        } else if found & KNOWN != 0 {
            case.decide(Reason::Flow);
        } else {
            case.set_source_check(found);
        }
    }
    let mut verdict = IpFunctions::<A>::decide(context, direction, case);
    if report.is_needed() {
        // If `decide` denies the packet (spoofed source), the report is not used.
        verdict = PacketVerdict::with(verdict.reason(), report);
    }
    if packet.fragment == Fragment::FIRST && (verdict.reason().allows() || context.observes()) {
        FragmentFunctions::<A>::record_fragment(
            context,
            direction,
            ip_offset,
            packet.identification,
            fragment::FragmentInfo::of(&packet).pack(),
        );
    }
    Some(verdict)
}

/// Hides from the verifier how the packet was parsed. Otherwise, the verifier would check the code that follows once
/// for each way of parsing: see [`Context::barrier_within`].
#[inline(always)]
fn hide_parse_path<A: PacketAddress, S: Context>(context: &S, packet: &mut Packet<A>) {
    packet.fragment = Fragment(context.barrier_within::<3>(packet.fragment.0));
    packet.error = verdict::barrier_within_option(context, packet.error);
    packet.protocol = context.barrier_within::<255>(packet.protocol);
}

/// Returns the verdict if it does not depend on the rules of policies. Otherwise, returns `None`, and sets the protocol
/// and ports of a later fragment to those of its first fragment.
#[inline(always)]
fn decide_without_policy<A, S>(
    context: &S,
    endpoint: &Endpoint,
    direction: Direction,
    packet: &mut Packet<A>,
) -> Option<Reason>
where
    A: Parse,
    S: IpFunctions<A>,
{
    if context.is_post_dnat() && context.is_unverified() {
        return Some(Reason::UnverifiedSource);
    }
    let is_discovery = packet.icmp() == Some(Icmp::Discovery);
    let from_pod = direction == Direction::Egress && !context.is_post_dnat();
    // RFC 6980: neighbor discovery is never fragmented.
    if is_discovery && packet.error.is_none() && packet.fragment == Fragment::WHOLE {
        let allowed = Reason::NeighborDiscovery;
        return Some(if from_pod { context.check_discovery(packet.ip_offset, packet.payload) } else { allowed });
    }
    if A::FAMILY == 4
        && packet.protocol == protocol::IGMP
        && packet.error.is_none()
        && packet.fragment == Fragment::WHOLE
        && let Some(reason) = guard::check_igmp(context, endpoint, from_pod, packet.ip_offset, packet.payload)
    {
        return Some(barrier_within(context, reason));
    }
    // A neighbor discovery message that gets here is fragmented or cannot be parsed.
    if is_discovery && from_pod && endpoint.has(endpoint_flags::ANTI_SPOOFING) {
        return Some(Reason::SpoofedNeighbor);
    }
    let error = packet.error.or_else(|| complete_fragment(context, direction, packet).err())?;
    Some(deny_if_isolated(endpoint, direction, error))
}

/// Sets protocol and ports of a later fragment to those of its first fragment. If the first fragment is not known, sets
/// the ports to zero. `Err`: two first fragments contradict each other.
#[inline(always)]
fn complete_fragment<A, S>(context: &S, direction: Direction, packet: &mut Packet<A>) -> Result<(), Reason>
where
    A: Parse,
    S: FragmentFunctions<A>,
{
    if packet.fragment == Fragment::WHOLE {
        return Ok(());
    }
    let (identification, first) = (packet.identification, packet.fragment == Fragment::FIRST);
    let info = fragment::FragmentInfo::of(packet).pack();
    let word =
        FragmentFunctions::<A>::resolve_fragment(*context, direction, packet.ip_offset, identification, info, first);
    let info = fragment::FragmentInfo::unpack(word)?;
    packet.protocol = info.protocol;
    packet.transport = info.transport;
    Ok(())
}

/// See [`IpFunctions::decide`].
#[inline(always)]
pub(crate) fn decide<A, S>(context: S, direction: Direction, case: Case) -> PacketVerdict
where
    A: Parse,
    S: IpFunctions<A>,
{
    let (bits, ports) = case.words();
    let [ip_offset, protocol, _, role_bits, ..] = bits.to_le_bytes();
    // Never happens: the caller checked this.
    let Some(endpoint) = context.endpoint() else { return PacketVerdict::of(Reason::NoEndpoint) };
    let Some((source, destination)) = A::addresses(&context, u32::from(ip_offset)) else {
        return PacketVerdict::of(Reason::Malformed);
    };
    let version = verdict::version(&context, endpoint);
    let post_dnat = context.is_post_dnat();
    let is_own = source.belongs_to(endpoint);
    let from_unspecified = role_bits & role::DISCOVERY != 0 && source.is_zero();
    let (pod, remote) = flow::pod_and_remote(direction, source, destination);
    let mut key = A::flow_key(endpoint.ifindex.0, pod, remote, case.flow_ports(), protocol);
    // Post-DNAT, a source address other than the pod's is the result of masquerading.
    let masqueraded = post_dnat && !is_own;
    if masqueraded {
        key.pod_address = A::own(barrier(endpoint));
    }
    let has_spoofed_source = direction == Direction::Egress && endpoint.has(endpoint_flags::ANTI_SPOOFING) && !is_own;
    let verdict = if !post_dnat && !from_unspecified && has_spoofed_source {
        PacketVerdict::of(Reason::SpoofedSource)
    } else if let Some(reason) = case.decided() {
        PacketVerdict::of(reason)
    } else {
        let [_, _, flags, role_bits, ..] = opaque(bits).to_le_bytes();
        let [_, _, port_high, port_low, ..] = opaque(ports).to_le_bytes();
        let source_check = SourceCheck(role_bits >> role::SOURCE_CHECK_SHIFT & 3);
        // A masqueraded packet initiates no flow, because its source port is not the pod's.
        let flow_start = FlowStart {
            initiates: role_bits & role::INITIATES != 0 && !masqueraded,
            new_connection: role_bits & role::NEW_CONNECTION != 0,
            flags: TcpFlags(flags),
            ip_offset: u32::from(ip_offset),
        };
        let attempt =
            Attempt { port: [port_high, port_low], ..verdict::attempt(&context, direction, &key, source_check) };
        let verdict = verdict::admit(&context, endpoint, version, &attempt, &key, flow_start);
        // `ORPHAN` means that the first fragment is not known, so the ports are zero. Such a packet is only allowed if
        // all ports are allowed.
        if role_bits & role::ORPHAN != 0 && verdict.reason() == Reason::NoRule {
            PacketVerdict::of(Reason::OrphanFragment)
        } else {
            verdict
        }
    };
    let [_, _, _, role_bits, ..] = opaque(bits).to_le_bytes();
    verdict::conclude_new(&context, endpoint, direction, verdict, role_bits & role::MATCHES_REVOKED != 0)
}

/// See [`IpFunctions::evaluate_quoted`]. An ICMP error is sent to the source of the quoted packet, so the quoted packet
/// had the opposite direction. If the error is sent to another address, it belongs to no known flow.
#[inline(always)]
pub(crate) fn evaluate_quoted<A, S>(context: S, direction: Direction, ip_offset: u32) -> Quoted
where
    A: Parse,
    S: IpFunctions<A>,
{
    /// Length of the ICMP header, which precedes the quoted packet.
    const ICMP_HEADER: u32 = 8;
    let Some(endpoint) = context.endpoint() else { return Quoted::UnknownFlow };
    let Some(outer) = A::parse(&context, ip_offset, false) else { return Quoted::UnknownFlow };
    let Some(quoted) = A::parse(&context, outer.payload + ICMP_HEADER, true) else { return Quoted::UnknownFlow };
    let has_ports = quoted.error.is_none() && quoted.fragment != Fragment::LATER;
    let direction = direction.opposite();
    let (role, (pod_port, remote_port)) = flow::identify(direction, &quoted, quoted.icmp());
    if !has_ports || role == Role::NoFlow {
        return Quoted::UnknownFlow;
    }
    let Some((_, to)) = A::addresses(&context, ip_offset) else { return Quoted::UnknownFlow };
    let Some((source, destination)) = A::addresses(&context, quoted.ip_offset) else { return Quoted::UnknownFlow };
    if source != to {
        return Quoted::UnknownFlow;
    }
    let (pod, remote) = flow::pod_and_remote(direction, source, destination);
    let ports = flow::ports(pod_port, remote_port);
    let key = A::flow_key(context.ifindex(), pod, remote, ports, quoted.protocol);
    match find_flow(&context, endpoint, direction, &key, None) {
        Some(FlowVerdict::Allowed) => Quoted::Evaluated(Reason::IcmpError),
        Some(FlowVerdict::Stale(reevaluation, _)) => {
            let allowed =
                VerdictFunctions::<A>::is_still_allowed(context, quoted.ip_offset, ports, reevaluation.pack());
            Quoted::Evaluated(if allowed { Reason::IcmpError } else { Reason::Revoked })
        }
        None => Quoted::UnknownFlow,
    }
}
