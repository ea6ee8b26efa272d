//! Deny events: at most one per second for each flow, within a budget for each pod. An event includes the number of
//! denied packets without an event.

use netpol_common::{
    Direction, EVENT_BURST, EVENT_INTERVAL_NS, EVENT_LIMIT_WAYS, Endpoint, EventBudget, EventKind, EventLimit,
    EventLimitSet, FlowEvent, IfIndex, Reason, RuleSetId, event_budget, event_flags,
};

use crate::context::{Context, NodeContext};
use crate::packet::{self, Parse, ParserFunctions, Plain, link};
use crate::slot::field;

/// The functions that are separate BPF functions in the kernel.
pub(crate) trait ReportFunctions: ParserFunctions {
    /// Reports a denied packet, see [`report`].
    #[inline(always)]
    fn report(self, direction: Direction, reason: Reason) {
        report(self, direction, reason);
    }
    /// Decides whether a denied packet causes an event. The result is packed by [`limit_event`].
    #[inline(always)]
    fn limit_event(self, hash: u64, budget: u32) -> u64 {
        limit_event(self, hash, budget)
    }
}

/// The packet's part of a deny event.
struct DeniedPacket<A> {
    family: u8,
    protocol: u8,
    source_port: [u8; 2],
    destination_port: [u8; 2],
    source: A,
    destination: A,
    start: u32,
}

impl DeniedPacket<[u8; 4]> {
    /// A frame that is not IP, or that could not be parsed.
    const FRAME: Self = Self {
        family: 0,
        protocol: 0,
        source_port: [0; 2],
        destination_port: [0; 2],
        source: [0; 4],
        destination: [0; 4],
        start: packet::PLAIN_START,
    };
}

impl<A: Parse> DeniedPacket<A> {
    /// Parses the packet at an offset of the frame a second time. Few packets are denied, and this keeps the data for
    /// an event off the stack of the functions that evaluate.
    #[inline(always)]
    fn read<S: ParserFunctions>(context: &S, endpoint: &Endpoint, start: u32) -> Option<Self> {
        let packet = A::parse(context, start, false)?;
        let (source, destination) = A::addresses(context, start)?;
        Some(Self {
            family: A::FAMILY,
            protocol: context.barrier_within::<255>(packet.protocol),
            source_port: packet.transport.source_port,
            destination_port: packet.transport.destination_port,
            source: Self::original_source(context, endpoint, source),
            destination,
            start,
        })
    }

    #[inline(always)]
    fn plain<S: Context>(context: &S, endpoint: &Endpoint, packet: &Plain<A>) -> Self {
        Self {
            family: A::FAMILY,
            protocol: packet.protocol,
            source_port: packet.source_port,
            destination_port: packet.destination_port,
            source: Self::original_source(context, endpoint, packet.source),
            destination: packet.destination,
            start: packet::PLAIN_START,
        }
    }

    /// Returns the pod's address for a packet that was masqueraded.
    #[inline(always)]
    fn original_source<S: Context>(context: &S, endpoint: &Endpoint, source: A) -> A {
        if context.is_post_dnat() && !source.belongs_to(endpoint) { A::own(endpoint) } else { source }
    }

    /// Returns the flow's keyed hash. A multicast or broadcast packet is the same flow at all pods.
    #[inline(always)]
    fn hash<S: Context>(&self, context: &S, details: &ReportContext<'_>) -> u64 {
        let group = details.group && matches!(details.direction, Direction::Ingress);
        let ifindex = if group { 0 } else { details.ifindex };
        let [a, b] = self.source_port;
        let [c, d] = self.destination_port;
        let ports = u32::from_ne_bytes([a, b, c, d]);
        let kind = u32::from_ne_bytes([details.direction as u8, details.reason as u8, self.family, self.protocol]);
        let mut sum = product(context, 0, [ifindex, kind]).wrapping_add(product(context, 2, [ports, u32::from(group)]));
        let (source, destination) = (self.source.words(), self.destination.words());
        let words = if size_of::<A>() == 4 { 1 } else { 4 };
        for word in 0..words {
            sum = sum.wrapping_add(product(context, 4 + 2 * word, [source[word], destination[word]]));
        }
        // A sum of products is linear in each word, so flows that differ by small numbers have similar sums. Two rounds
        // of mixing distribute them over all sets.
        mix(mix(sum))
    }
}

/// Returns one product of the universal hash NH. Two given flows have the same hash for only one key in 2³². With an
/// unkeyed hash, or with a key that is only mixed in, a pod could send flows that take another flow's slot. Source: RFC
/// 4418, 5.2.2 (the sum of products of words to which the key's words are added).
#[inline(always)]
fn product<S: Context>(context: &S, at: usize, [a, b]: [u32; 2]) -> u64 {
    let a = a.wrapping_add(context.event_key(at));
    let b = b.wrapping_add(context.event_key(at + 1));
    u64::from(a).wrapping_mul(u64::from(b))
}

/// Computes one round of a multiplicative hash. The product spreads each bit to higher bits, and the shift copies the
/// upper half to the lower half.
#[inline(always)]
pub(crate) const fn mix(bits: u64) -> u64 {
    let spread = bits.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    spread ^ (spread >> 32)
}

/// Set in the result of [`limit_event`] if an event is to be sent. The bits below are the number of packets of the flow
/// without an event.
const REPORT: u64 = 1 << 32;

/// Decides whether a denied packet of the flow with this hash causes an event. If not, the packet is counted as
/// suppressed.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "halves of the hash")]
pub(crate) fn limit_event<N: NodeContext>(node: N, hash: u64, budget: u32) -> u64 {
    let Some(set) = node.denials((hash >> 32) as u32) else { return 0 };
    let Some(charged) = node.event_budget(budget) else { return 0 };
    // An unused slot has tag 0.
    let (tag, now) = (hash as u32 | 1, node.now());
    let mut own = None;
    let ways = set.part(field!(EventLimitSet, ways));
    let mut oldest = ways.element(0);
    let mut age = 0;
    for way in 0..EVENT_LIMIT_WAYS as usize {
        let slot = ways.element(way);
        let since = now.wrapping_sub(slot.read(field!(EventLimit, last_event)));
        if slot.read(field!(EventLimit, tag)) == tag {
            if since < node.hz() {
                slot.add_u32(field!(EventLimit, suppressed), 1);
                return 0;
            }
            own = Some(slot);
        }
        if since >= age {
            (oldest, age) = (slot, since);
        }
    }
    let now_ns = node.boot_ns();
    let paid_until = charged.read(field!(EventBudget, paid_until_ns));
    if paid_until > now_ns + EVENT_INTERVAL_NS * (EVENT_BURST - 1) {
        // A flow without a slot does not get one now: a flood must not take the slots of flows that are within their
        // budget.
        match own {
            Some(slot) => slot.add_u32(field!(EventLimit, suppressed), 1),
            None => charged.add_u64(field!(EventBudget, suppressed), 1),
        }
        return 0;
    }
    if paid_until < now_ns {
        charged.write(field!(EventBudget, paid_until_ns), now_ns);
    }
    charged.add_u64(field!(EventBudget, paid_until_ns), EVENT_INTERVAL_NS);
    let slot = own.unwrap_or(oldest);
    // Subtracted rather than set to 0, because another CPU may count at the same time.
    let suppressed = slot.read(field!(EventLimit, suppressed));
    slot.add_u32(field!(EventLimit, suppressed), suppressed.wrapping_neg());
    slot.write(field!(EventLimit, last_event), now);
    if own.is_some() {
        return REPORT | u64::from(suppressed);
    }
    if suppressed != 0
        && let Some(previous) = node.event_budget(slot.read(field!(EventLimit, budget)))
    {
        previous.add_u64(field!(EventBudget, suppressed), u64::from(suppressed));
    }
    slot.write(field!(EventLimit, tag), tag);
    slot.write(field!(EventLimit, budget), budget);
    REPORT
}

/// The part of a deny event that does not depend on the packet. It is read once: for a second read, the compiler might
/// keep an address inside the context, which the verifier rejects.
#[derive(Clone, Copy)]
struct ReportContext<'a> {
    endpoint: Option<&'a Endpoint>,
    ifindex: u32,
    /// The source endpoint ID.
    source: u32,
    group: bool,
    direction: Direction,
    reason: Reason,
}

/// Reports a denied packet, at most once a second for its flow, and within the budget of the pod that sent it.
#[inline(always)]
pub(crate) fn report<S: ReportFunctions>(context: S, direction: Direction, reason: Reason) {
    // A bridge floods frames for MAC addresses that it has not learned yet. If other pods drop such a frame, this is
    // not a policy denial.
    if reason == Reason::OtherHost {
        return;
    }
    let (ifindex, source, group) = (context.ifindex(), context.source_endpoint(), context.is_group());
    let endpoint = context.endpoint();
    let details = ReportContext { endpoint, ifindex, source, group, direction, reason };
    let Some(endpoint) = endpoint else { return report_as(context, details, &DeniedPacket::FRAME) };
    // Nearly all packets are plain, and parsing a plain packet takes a third of the time.
    if context.l3_type().is_none() {
        if let Some(packet) = packet::parse_plain_v4(&context) {
            return report_as(context, details, &DeniedPacket::plain(&context, endpoint, &packet));
        }
        if let Some(packet) = packet::parse_plain_v6(&context) {
            return report_as(context, details, &DeniedPacket::plain(&context, endpoint, &packet));
        }
    }
    match packet::find(&context) {
        Ok(link::LinkPayload::Ipv4(start)) => {
            if let Some(packet) = DeniedPacket::<[u8; 4]>::read(&context, endpoint, start) {
                return report_as(context, details, &packet);
            }
        }
        Ok(link::LinkPayload::Ipv6(start)) => {
            if let Some(packet) = DeniedPacket::<[u8; 16]>::read(&context, endpoint, start) {
                return report_as(context, details, &packet);
            }
        }
        Ok(link::LinkPayload::Arp(_)) | Err(_) => {}
    }
    report_as(context, details, &DeniedPacket::FRAME);
}

#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "endpoint IDs are below 32,768; the low half of the result")]
fn report_as<A: Parse, S: ReportFunctions>(context: S, details: ReportContext<'_>, packet: &DeniedPacket<A>) {
    let ReportContext { endpoint, ifindex, source, group, direction, reason } = details;
    let id = endpoint.map_or(0, |endpoint| endpoint.id);
    let budget = match direction {
        Direction::Ingress if source != 0 => event_budget(source, Direction::Egress, EventKind::Denied),
        Direction::Ingress | Direction::Egress => event_budget(id, direction, EventKind::Denied),
    };
    let limited = context.limit_event(packet.hash(&context, &details), budget);
    if limited < REPORT {
        return;
    }
    context.emit(&FlowEvent {
        time_ns: context.boot_ns(),
        ifindex: IfIndex(ifindex),
        endpoint: id as u16,
        source_endpoint: source as u16,
        rule_set: endpoint.map_or(RuleSetId::NONE, |endpoint| endpoint.policy(direction).rule_set),
        suppressed: limited as u32,
        length: context.length().saturating_sub(packet.start),
        flags: if group { event_flags::GROUP } else { 0 },
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

/// Reports a denied packet. This is a separate step, because the functions that evaluate have no stack space left.
#[inline(always)]
pub(crate) fn report_if_denied<S: ReportFunctions>(context: S, direction: Direction, reason: Reason) -> Reason {
    if !reason.allows() {
        context.report(direction, reason);
    }
    reason
}
