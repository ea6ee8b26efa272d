//! The entry points post-DNAT: packets from pods are rechecked with their new destination.

use netpol_common::{Direction, Endpoint, Reason};

use crate::context::{Context, Family};
use crate::flow::{self, KnownFlow};
use crate::packet::{self, Parse, Plain};
use crate::packet_verdict::{FlowReport, PacketVerdict};
use crate::report::{ReportFunctions, report};
use crate::slow_path::{self, FrameFunctions};
use crate::verdict;

/// The function that is a separate BPF function in the kernel, and the functions of lower modules.
pub(crate) trait RecheckFunctions: FrameFunctions + ReportFunctions {
    /// Returns whether a post-DNAT packet belongs to a flow that was allowed post-DNAT, see [`is_known_flow`]. Returns
    /// false for each packet that is not plain (only Ethernet, IP and transport headers).
    #[inline(always)]
    fn is_known_flow(self) -> bool {
        is_known_flow(self)
    }
}

/// Checks the source address of a packet that left its pod, post-DNAT. `None`: the address is valid, or need not be
/// checked. Requires [`Context::is_post_dnat`].
#[inline(always)]
pub(crate) fn process_source<S: RecheckFunctions>(context: S) -> Option<Reason> {
    // The slow path repeats this check, and denies and counts the packet.
    context.is_unverified().then(|| {
        let verdict = slow_path::evaluate_frame(context, Direction::Egress);
        report(context, Direction::Egress, verdict)
    })
}

/// Evaluates a packet with a source endpoint ID post-DNAT, by the egress policy of its source endpoint. Requires
/// [`Context::is_post_dnat`]. Packets are marked for this if a policy isolates egress, or if a policy in shadow mode
/// (only evaluated and reported) would isolate egress.
#[inline(always)]
pub(crate) fn process_post_dnat<S: RecheckFunctions>(context: S) -> Reason {
    let verdict = match context.endpoint() {
        Some(endpoint) if !endpoint.egress.isolated() => {
            PacketVerdict::with(Reason::NotIsolated, FlowReport::new(endpoint, Direction::Egress, 0, false))
        }
        _ if context.l3_type().is_none() && context.is_known_flow() => PacketVerdict::of(Reason::Flow),
        _ => slow_path::evaluate_frame(context, Direction::Egress),
    };
    report(context, Direction::Egress, verdict)
}

/// See [`RecheckFunctions::is_known_flow`].
#[inline(always)]
pub(crate) fn is_known_flow<S: Context>(context: S) -> bool {
    let Some(endpoint) = context.endpoint() else { return false };
    if let Some(packet) = packet::parse_plain_v4(&context) {
        return is_flow_post_dnat(context, endpoint, &packet);
    }
    packet::parse_plain_v6(&context).is_some_and(|packet| is_flow_post_dnat(context, endpoint, &packet))
}

/// Returns whether the packet belongs to a flow that was allowed post-DNAT. A masqueraded packet belongs to no flow. A
/// flow that needs a recheck is stored with its pre-DNAT destination. A packet that matches such a flow was not
/// translated, so its destination has to be evaluated.
#[inline(always)]
fn is_flow_post_dnat<A, S>(context: S, endpoint: &Endpoint, packet: &Plain<A>) -> bool
where
    A: Parse,
    S: Context + Family<A>,
{
    let version = verdict::version(&context, endpoint);
    let key = flow::plain_key::<true, A>(endpoint.ifindex.0, packet);
    let Some(slot) = context.flow(endpoint, &key).filter(|_| packet.source.belongs_to(endpoint)) else {
        return false;
    };
    let (now, hz) = (context.now(), context.hz());
    let known = KnownFlow::read(slot);
    let is_allowed = known.version == version && !known.needs_recheck() && known.is_alive(packet.protocol, now, hz);
    if is_allowed {
        known.touch(slot, Direction::Egress, packet.flags, now, hz);
    }
    is_allowed
}
