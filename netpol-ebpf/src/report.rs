//! Sends events to the agent: about denied packets, new flows that are allowed, and allowed flows that policies in
//! shadow mode (evaluated, but not enforced) would deny. Not every packet causes an event, see [`crate::event_limit`].
//! An event includes the number of suppressed packets: the flow's packets without an event since the flow's last event.

use netpol_common::{
    Direction, Endpoint, EventKind, FlowEvent, IfIndex, Reason, RuleSetId, charged_budget, event_flags, protocol,
};

use crate::context::Context;
use crate::event_limit::{REPORT, limit_event, mix, product};
use crate::flow;
use crate::packet::{self, Fragment, Parse, ParserFunctions, Plain, link};
use crate::packet_verdict::{FlowReport, PacketVerdict};
use crate::stale::{Reevaluation, Stale};
use crate::verdict::{VerdictFunctions, barrier_within};

/// The functions that are separate BPF functions in the kernel, so that the verifier checks them only once. The default
/// bodies are for tests in memory.
pub(crate) trait ReportFunctions:
    ParserFunctions + VerdictFunctions<[u8; 4]> + VerdictFunctions<[u8; 16]>
{
    /// Reports a denied packet, see [`report_denied`].
    #[inline(always)]
    fn report_denied(self, direction: Direction, reason: Reason) {
        report_denied(self, direction, reason);
    }
    /// Reports the flow of an allowed packet, see [`report_flow`].
    #[inline(always)]
    fn report_flow(self, direction: Direction, verdict: PacketVerdict) {
        report_flow(self, direction, verdict);
    }
    /// Decides whether a packet causes an event. [`REPORT`] describes the result.
    #[inline(always)]
    fn limit_event(self, hash: u64, budget: u32, kind: EventKind) -> u64 {
        limit_event(self, hash, budget, kind)
    }
}

/// Reports a denied packet, or the flow of an allowed packet if there is something to report. Returns the reason of the
/// verdict. Evaluating and reporting are separate steps, because the functions that evaluate have no stack space left
/// for an event.
#[inline(always)]
pub(crate) fn report<S: ReportFunctions>(context: S, direction: Direction, verdict: PacketVerdict) -> Reason {
    let reason = verdict.reason();
    if !reason.allows() {
        context.report_denied(direction, reason);
    } else if verdict.report().is_needed() {
        context.report_flow(direction, verdict);
    }
    reason
}

/// The fields of an event that are read from the packet.
#[derive(Clone, Copy)]
struct EventPacket<A> {
    family: u8,
    protocol: u8,
    /// Whether it is a later fragment, which has no ports.
    is_later_fragment: bool,
    source_port: [u8; 2],
    destination_port: [u8; 2],
    source: A,
    destination: A,
    /// The offset of the IP header in the frame.
    ip_offset: u32,
}

impl EventPacket<[u8; 4]> {
    /// The fields for a frame that is not IP, or that could not be parsed.
    const FRAME: Self = Self {
        family: 0,
        protocol: 0,
        is_later_fragment: false,
        source_port: [0; 2],
        destination_port: [0; 2],
        source: [0; 4],
        destination: [0; 4],
        ip_offset: packet::PLAIN_IP_OFFSET,
    };
}

impl<A: Parse> EventPacket<A> {
    /// Parses the packet. `ip_offset`: the offset of the IP header in the frame. The packet was already parsed when it
    /// was evaluated, but its fields were not kept: few packets cause an event, and the functions that evaluate have no
    /// stack space for these fields.
    #[inline(always)]
    fn read<S: ParserFunctions>(context: &S, endpoint: &Endpoint, ip_offset: u32) -> Option<Self> {
        let packet = A::parse(context, ip_offset, false)?;
        let (source, destination) = A::addresses(context, ip_offset)?;
        Some(Self {
            family: A::FAMILY,
            protocol: context.barrier_within::<255>(packet.protocol),
            is_later_fragment: packet.fragment == Fragment::LATER,
            source_port: packet.transport.source_port,
            destination_port: packet.transport.destination_port,
            source: Self::original_source(context, endpoint, source),
            destination,
            ip_offset,
        })
    }

    /// Reads the fields of a plain packet, which has only Ethernet, IP and transport headers.
    #[inline(always)]
    fn plain<S: Context>(context: &S, endpoint: &Endpoint, packet: &Plain<A>) -> Self {
        Self {
            family: A::FAMILY,
            protocol: packet.protocol,
            is_later_fragment: false,
            source_port: packet.source_port,
            destination_port: packet.destination_port,
            source: Self::original_source(context, endpoint, packet.source),
            destination: packet.destination,
            ip_offset: packet::PLAIN_IP_OFFSET,
        }
    }

    /// Returns the source address before masquerading. A packet that is evaluated post-DNAT comes from the endpoint's
    /// pod. If such a packet has another source address, it was masqueraded, so the result is the pod's address. In all
    /// other cases, the result is the source address in the packet.
    #[inline(always)]
    fn original_source<S: Context>(context: &S, endpoint: &Endpoint, source: A) -> A {
        if context.is_post_dnat() && !source.belongs_to(endpoint) { A::own(endpoint) } else { source }
    }

    /// Returns the ports as in the key of the packet's flow.
    #[inline(always)]
    fn flow_ports(&self, direction: Direction) -> u32 {
        let (pod, remote) = flow::pod_and_remote(direction, self.source_port, self.destination_port);
        flow::ports(pod, remote)
    }

    /// Exchanges source and destination, so that a reply is reported as a packet from the initiator of its flow.
    #[inline(always)]
    fn reverse(&mut self) {
        core::mem::swap(&mut self.source, &mut self.destination);
        core::mem::swap(&mut self.source_port, &mut self.destination_port);
    }

    /// Returns the ports that identify a flow for the event limit. For a denied packet, these are both ports. For an
    /// allowed flow, the source port is omitted, because clients use another one for each connection. For ICMP,
    /// `source_port` contains type and code, and `destination_port` contains the identifier. For an allowed ICMP flow,
    /// the identifier is omitted, because clients use another one for each run of `ping`.
    #[inline(always)]
    fn limit_ports(&self, kind: EventKind) -> u32 {
        let (source, destination) = (self.source_port, self.destination_port);
        let [a, b, c, d] = [source[0], source[1], destination[0], destination[1]];
        u32::from_ne_bytes(match kind {
            EventKind::Denied => [a, b, c, d],
            EventKind::Allowed | EventKind::Shadow if protocol::has_ports(self.protocol) => [0, 0, c, d],
            EventKind::Allowed | EventKind::Shadow => [a, b, 0, 0],
        })
    }

    /// Returns a keyed hash that identifies the flow for the event limit. The copies of a multicast or broadcast packet
    /// that several pods receive belong to the same flow.
    #[inline(always)]
    fn hash<S: Context>(&self, context: &S, details: &EventDetails<'_>) -> u64 {
        let group = details.group && matches!(details.direction, Direction::Ingress);
        let ifindex = if group { 0 } else { details.ifindex };
        let properties =
            u32::from_ne_bytes([details.direction as u8, details.reason as u8, self.family, self.protocol]);
        let flags = u32::from(group) | (details.kind as u32) << 1;
        let mut sum = product(context, 0, [ifindex, properties]).wrapping_add(product(
            context,
            2,
            [self.limit_ports(details.kind), flags],
        ));
        let (source, destination) = (self.source.words(), self.destination.words());
        let words = if size_of::<A>() == 4 { 1 } else { 4 };
        for word in 0..words {
            sum = sum.wrapping_add(product(context, 4 + 2 * word, [source[word], destination[word]]));
        }
        // A sum of products is linear in each word, so flows that differ by small numbers have similar sums. Two rounds
        // of mixing distribute the flows over all entries (`EventLimitSet`) of the event limit's maps.
        mix(mix(sum))
    }
}

/// The fields of an event that are not read from the packet's headers. They are read from the context only once: for a
/// second read, the compiler might keep a pointer to a field of the context, which the verifier rejects.
#[derive(Clone, Copy)]
struct EventDetails<'a> {
    endpoint: Option<&'a Endpoint>,
    ifindex: u32,
    /// The endpoint ID of the packet's sender. 0 if the sender is not a pod of this node, or is not known.
    source_endpoint: u32,
    /// Whether the frame is multicast or broadcast.
    group: bool,
    direction: Direction,
    reason: Reason,
    kind: EventKind,
}

/// Parses the packet, and returns from the enclosing function with the result of the body. The body is compiled once
/// for each way of parsing. If the packet cannot be parsed, the enclosing function continues.
macro_rules! with_packet {
    ($context:ident, $endpoint:ident, |$packet:ident| $body:expr) => {
        // Nearly all packets are plain (only Ethernet, IP and transport headers). The parser for plain packets takes a
        // third of the time of the general parser. It expects an Ethernet header, which packets with an `l3_type` lack.
        if $context.l3_type().is_none() {
            if let Some(packet) = packet::parse_plain_v4(&$context) {
                let $packet = EventPacket::plain(&$context, $endpoint, &packet);
                return $body;
            }
            if let Some(packet) = packet::parse_plain_v6(&$context) {
                let $packet = EventPacket::plain(&$context, $endpoint, &packet);
                return $body;
            }
        }
        match packet::find_payload(&$context) {
            Ok(link::LinkPayload::Ipv4(ip_offset)) => {
                if let Some($packet) = EventPacket::<[u8; 4]>::read(&$context, $endpoint, ip_offset) {
                    return $body;
                }
            }
            Ok(link::LinkPayload::Ipv6(ip_offset)) => {
                if let Some($packet) = EventPacket::<[u8; 16]>::read(&$context, $endpoint, ip_offset) {
                    return $body;
                }
            }
            Ok(link::LinkPayload::Arp(_)) | Err(_) => {}
        }
    };
}

/// Reports a denied packet, at most once a second for its flow, and within the budget from [`charged_budget`].
#[inline(always)]
pub(crate) fn report_denied<S: ReportFunctions>(context: S, direction: Direction, reason: Reason) {
    // A bridge floods a frame for a MAC address that it has not learned yet. Pods with another MAC address receive the
    // frame, too. Their programs drop it, but no policy denies it.
    if reason == Reason::OtherHost {
        return;
    }
    let (ifindex, source_endpoint, group) = (context.ifindex(), context.source_endpoint(), context.is_group());
    let endpoint = context.endpoint();
    let details =
        EventDetails { endpoint, ifindex, source_endpoint, group, direction, reason, kind: EventKind::Denied };
    let Some(endpoint) = endpoint else { return send(context, details, &EventPacket::FRAME) };
    with_packet!(context, endpoint, |packet| send(context, details, &packet));
    send(context, details, &EventPacket::FRAME);
}

/// Reports the flow of an allowed packet if policies in shadow mode would deny the flow, or if the flow is new. In the
/// first case, even if the flow is new, the event has the kind [`EventKind::Shadow`].
#[inline(always)]
pub(crate) fn report_flow<S: ReportFunctions>(context: S, direction: Direction, verdict: PacketVerdict) {
    let Some(endpoint) = context.endpoint() else { return };
    with_packet!(context, endpoint, |packet| report_flow_of(context, endpoint, direction, verdict, packet));
}

/// Does what [`report_flow`] describes. Even if the packet is a reply, the event has the direction of the flow's first
/// packet.
#[inline(always)]
fn report_flow_of<A, S>(
    context: S,
    endpoint: &Endpoint,
    direction: Direction,
    verdict: PacketVerdict,
    mut packet: EventPacket<A>,
) where
    A: Parse,
    S: ReportFunctions + VerdictFunctions<A>,
{
    let report = verdict.report();
    let shadow_reason = barrier_within(&context, evaluate_shadow(context, direction, report, &packet));
    if shadow_reason.allows() && !report.is_new() {
        return;
    }
    let source_endpoint = match report.initiator() {
        Direction::Egress => endpoint.id,
        Direction::Ingress if direction == Direction::Ingress => context.source_endpoint(),
        // The packet is a reply of this pod, and does not carry the ID of the initiator.
        Direction::Ingress => 0,
    };
    if report.initiator() != direction {
        packet.reverse();
    }
    let reason = barrier_within(&context, if shadow_reason.allows() { verdict.reason() } else { shadow_reason });
    let kind = if reason.allows() { EventKind::Allowed } else { EventKind::Shadow };
    let (ifindex, group, direction) = (context.ifindex(), context.is_group(), report.initiator());
    let details = EventDetails { endpoint: Some(endpoint), ifindex, source_endpoint, group, direction, reason, kind };
    send(context, details, &packet);
}

/// Evaluates the flow as if policies in shadow mode were enforced, and returns the reason. If there is nothing to
/// evaluate, returns a reason that allows the flow. A later fragment has no ports, so only the first fragment of its
/// datagram is evaluated.
#[inline(always)]
fn evaluate_shadow<A, S>(context: S, direction: Direction, report: FlowReport, packet: &EventPacket<A>) -> Reason
where
    A: Parse,
    S: VerdictFunctions<A>,
{
    if !report.needs_shadow() || packet.is_later_fragment {
        return Reason::NotIsolated;
    }
    // The flow is evaluated in the same way as a stale flow (a flow that was evaluated before a change of policies).
    let stale = Stale { initiator: report.initiator(), state: report.origin() };
    let reevaluation = Reevaluation { direction, protocol: packet.protocol, stale, read_only: true };
    VerdictFunctions::<A>::evaluate_shadow(context, packet.ip_offset, packet.flow_ports(direction), reevaluation.pack())
}

/// Sends an event within the limits.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "endpoint IDs are below 32,768; the low half of `limited`")]
fn send<A: Parse, S: ReportFunctions>(context: S, details: EventDetails<'_>, packet: &EventPacket<A>) {
    let EventDetails { endpoint, ifindex, source_endpoint, group, direction, reason, kind } = details;
    let id = endpoint.map_or(0, |endpoint| endpoint.id);
    let budget = charged_budget(id, source_endpoint, direction, kind);
    // The bit `REPORT`, and in the low half the number of suppressed packets.
    let limited = context.limit_event(packet.hash(&context, &details), budget, kind);
    if limited < REPORT {
        return;
    }
    let rule_set = endpoint.map_or(RuleSetId::NONE, |endpoint| match kind {
        EventKind::Denied | EventKind::Allowed => endpoint.policy(direction).rule_set,
        EventKind::Shadow => endpoint.shadow_policy(direction).rule_set,
    });
    let kind_flag = match kind {
        EventKind::Denied if context.observes() => event_flags::OBSERVED,
        EventKind::Denied | EventKind::Allowed => 0,
        EventKind::Shadow => event_flags::SHADOW,
    };
    context.emit(&FlowEvent {
        time_ns: context.boot_ns(),
        ifindex: IfIndex(ifindex),
        endpoint: id as u16,
        source_endpoint: source_endpoint as u16,
        rule_set,
        suppressed: limited as u32,
        length: context.length().saturating_sub(packet.ip_offset),
        flags: kind_flag | if group { event_flags::GROUP } else { 0 },
        zero: [0; 3],
        direction: direction as u8,
        reason: reason as u8,
        family: packet.family,
        protocol: packet.protocol,
        source_port: packet.source_port,
        destination_port: packet.destination_port,
        source: packet.source.widen(),
        destination: packet.destination.widen(),
    });
}
