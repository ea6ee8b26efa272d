//! The entry points for packets post-DNAT (after kube-proxy has translated the destination). At the veth of a local
//! pod, or on a device that leads out of the node, a packet from a pod is evaluated again, by its new destination.

use netpol_common::{Direction, Endpoint, Reason};

use crate::context::{Context, Family};
use crate::flow::{self, KnownFlow};
use crate::packet::{self, Parse, Plain};
use crate::packet_verdict::{FlowReport, PacketVerdict};
use crate::report::{ReportFunctions, report};
use crate::slow_path::{self, FrameFunctions};
use crate::verdict;

/// The function of this module that is a separate BPF function in the kernel. The supertraits have the separate BPF
/// functions of the modules that this module uses.
pub(crate) trait RecheckFunctions: FrameFunctions + ReportFunctions {
    /// Returns whether a post-DNAT packet belongs to a flow that was allowed post-DNAT, see [`is_known_flow`]. Returns
    /// false for each packet that is not plain (only Ethernet, IP and transport headers).
    #[inline(always)]
    fn is_known_flow(self) -> bool {
        is_known_flow(self)
    }
}

/// Checks, post-DNAT, the source address of a packet with a source endpoint ID (the sending pod's endpoint ID).
/// Returns `None` if the address is valid or need not be checked; otherwise the reason of the packet's verdict.
/// Requires [`Context::is_post_dnat`].
#[inline(always)]
pub(crate) fn process_source<S: RecheckFunctions>(context: S) -> Option<Reason> {
    // The slow path checks `is_unverified` again, and then denies and counts the packet.
    context.is_unverified().then(|| {
        let verdict = slow_path::evaluate_frame(context, Direction::Egress);
        report(context, Direction::Egress, verdict)
    })
}

/// Evaluates, post-DNAT, a packet with a source endpoint ID, by the egress policy of its source endpoint. Requires
/// [`Context::is_post_dnat`]. Packets are marked for this recheck if a policy isolates the pod for egress, or if a
/// policy in shadow mode (only evaluated and reported) would isolate it.
#[inline(always)]
pub(crate) fn process_post_dnat<S: RecheckFunctions>(context: S) -> Reason {
    let verdict = match context.endpoint() {
        // No enforced policy isolates the pod for egress. `report` evaluates the policies in shadow mode.
        Some(endpoint) if !endpoint.egress.isolated() => {
            PacketVerdict::with(Reason::NotIsolated, FlowReport::new(endpoint, Direction::Egress, 0, false))
        }
        // `is_known_flow` needs a link header. A packet on a tunnel device has none, but has an `l3_type`.
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

/// Returns whether the packet belongs to a flow that was allowed post-DNAT. For a masqueraded packet, returns false.
///
/// If the flow needs a recheck, returns false, too, because each of its packets is evaluated post-DNAT. The lookup
/// finds such a flow only if the packet's destination was not translated, because the flow is stored with the pre-DNAT
/// destination.
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
