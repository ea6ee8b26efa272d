//! Looks up the flow of a packet that the fast path does not handle.

use netpol_common::{ANY_REMOTE, Direction, Endpoint, FlowEntry, FlowKey, SourceCheck, endpoint_flags};

use crate::case::role;
use crate::context::{Context, Family, PacketAddress};
use crate::flow::{self, KnownFlow};
use crate::packet::{Parse, TcpFlags};
use crate::slot::Slot;
use crate::stale::{Reevaluation, Stale};
use crate::traffic;
use crate::verdict;

/// The lookup for one address family. In the kernel, it is a separate BPF function, so that the verifier checks it only
/// once.
pub(crate) trait FlowFunctions<A: Parse>: Context + Family<A> {
    /// Returns the verdict of the packet's flow. If the packet has no flow, returns how to check its source address.
    /// `ip_offset` is the offset of the IP header, `ports` are as in the flow's key, and `bits` are from
    /// [`Case::flow_bits`](crate::case::Case::flow_bits). [`KNOWN`], [`STALE`] and the constants after them describe
    /// the result.
    #[inline(always)]
    fn lookup_flow(self, direction: Direction, ip_offset: u32, ports: u32, bits: u32) -> u64 {
        lookup_flow::<A, Self>(self, direction, ip_offset, ports, bits)
    }
}

/// The verdict of a known flow.
pub(crate) enum FlowVerdict {
    /// The flow is allowed.
    Allowed,
    /// The flow has another version than the endpoint: it was evaluated before the last change of policies, and has to
    /// be evaluated again. The number contains the bits [`MAY_BELONG_TO_OPPOSITE_FLOW`] and
    /// [`MAY_START_OPPOSITE_FLOW`].
    Stale(Reevaluation, u64),
}

/// The fields of a packet with which its flow is updated.
#[derive(Clone, Copy)]
pub(crate) struct FlowUpdate {
    pub(crate) flags: TcpFlags,
    /// The offset of the IP header.
    pub(crate) ip_offset: u32,
}

/// Looks up a flow, and updates the flow for the packet. Returns `None` if there is no flow with this key, or if the
/// packet does not belong to the flow. `update` is `None` for an ICMP error: the error quotes a packet of the flow, but
/// is not a packet of the flow itself, so the flow is not updated.
#[inline(always)]
pub(crate) fn find_flow<A, S>(
    context: &S,
    endpoint: &Endpoint,
    direction: Direction,
    key: &FlowKey<A>,
    update: Option<FlowUpdate>,
) -> Option<FlowVerdict>
where
    A: PacketAddress,
    S: Context + Family<A>,
{
    let version = verdict::version(context, endpoint);
    let slot = context.flow(endpoint, key)?;
    let (now, hz) = (context.now(), context.hz());
    let known = KnownFlow::read(slot);
    // A flow that needs a recheck (each packet is evaluated again post-DNAT) is stored with its pre-DNAT destination.
    // If a packet still has this destination post-DNAT, the destination was not translated, and the packet has to be
    // evaluated.
    if !known.is_alive(key.protocol, now, hz) || (context.is_post_dnat() && known.needs_recheck()) {
        return None;
    }
    if direction == Direction::Ingress
        && update.is_some()
        && verdict::is_other_sender(context, endpoint, key.protocol, known.state)
    {
        return None;
    }
    if known.version == version {
        if let Some(FlowUpdate { flags, ip_offset }) = update {
            known.touch(slot, direction, flags, now, hz);
            traffic::count(context, slot, direction, ip_offset);
            verdict::mark_for_recheck(context, endpoint, direction, known.needs_recheck());
        }
        return Some(FlowVerdict::Allowed);
    }
    let mut stale = Stale { initiator: known.initiator, state: known.state };
    let mut opposite_bits = 0;
    if let Some(FlowUpdate { flags, .. }) = update {
        known.refresh_stale(slot, key.protocol, now, hz);
        stale.state = known.state_after(direction, flags);
        opposite_bits =
            if known.may_belong_to_opposite_flow(direction, key.protocol) { MAY_BELONG_TO_OPPOSITE_FLOW } else { 0 }
                | if known.may_start_opposite_flow(now, hz) { MAY_START_OPPOSITE_FLOW } else { 0 };
    }
    let reevaluation = Reevaluation { direction, protocol: key.protocol, stale, read_only: update.is_none() };
    Some(FlowVerdict::Stale(reevaluation, opposite_bits))
}

/// Does what [`FlowFunctions::lookup_flow`] describes.
#[inline(always)]
pub(crate) fn lookup_flow<A, S>(context: S, direction: Direction, ip_offset: u32, ports: u32, bits: u32) -> u64
where
    A: Parse,
    S: Context + Family<A>,
{
    let [protocol, flags, role, _] = bits.to_le_bytes();
    let Some(endpoint) = context.endpoint() else { return 0 };
    let Some((source, destination)) = A::addresses(&context, ip_offset) else { return 0 };
    // A packet from the pod belongs to no flow if its source address is not the pod's, such as a masqueraded packet
    // post-DNAT. Pre-DNAT, the address is checked only if anti-spoofing is enabled.
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
    let source_check = u64::from(check.0);
    // Pre-DNAT, no flow is looked up for a packet that starts a new connection or cannot belong to a flow.
    if !context.is_post_dnat() && role & role::MEMBER == 0 {
        return source_check;
    }
    if direction == Direction::Ingress
        && let Some(slot) = context.flow(endpoint, &key)
        && !update_remote_endpoint(&context, slot, &key, check)
    {
        return source_check;
    }
    match find_flow(&context, endpoint, direction, &key, Some(FlowUpdate { flags: TcpFlags(flags), ip_offset })) {
        Some(FlowVerdict::Allowed) => KNOWN,
        Some(FlowVerdict::Stale(reevaluation, opposite_bits)) => {
            STALE | opposite_bits | source_check << STALE_SOURCE_CHECK_SHIFT | u64::from(reevaluation.pack())
        }
        None => source_check,
    }
}

/// Set in the result of [`lookup_flow`] if the packet belongs to a flow that is allowed. If neither this bit nor
/// [`STALE`] is set, the result is a [`SourceCheck`].
pub(crate) const KNOWN: u64 = 1 << 32;
/// Set if the packet belongs to a flow that has to be evaluated again. The low half of the result is the packed
/// [`Reevaluation`], the input for this evaluation.
pub(crate) const STALE: u64 = 1 << 33;
/// With `STALE`: if the flow is no longer allowed, the packet may belong to a flow in the opposite direction, see
/// [`KnownFlow::may_belong_to_opposite_flow`].
pub(crate) const MAY_BELONG_TO_OPPOSITE_FLOW: u64 = 1 << 34;
/// With `STALE`: see [`KnownFlow::may_start_opposite_flow`].
pub(crate) const MAY_START_OPPOSITE_FLOW: u64 = 1 << 35;
/// With `STALE`: the position of the [`SourceCheck`].
pub(crate) const STALE_SOURCE_CHECK_SHIFT: u32 = 36;

/// For a packet to a pod: compares two IDs, the packet's source endpoint ID and the flow's
/// [`remote_endpoint`](FlowEntry::remote_endpoint). If the IDs differ, and the packet's ID is valid for the flow,
/// updates `remote_endpoint`. If the packet's ID is not valid, returns false: the packet does not belong to the flow.
#[inline(always)]
fn update_remote_endpoint<A, S>(context: &S, slot: Slot<'_, FlowEntry>, key: &FlowKey<A>, check: SourceCheck) -> bool
where
    A: PacketAddress,
    S: Context + Family<A>,
{
    let (known, source_endpoint) = (KnownFlow::read(slot), context.source_endpoint());
    let remote = flow::remote_endpoint(slot);
    if remote == source_endpoint || remote == u32::from(ANY_REMOTE) {
        return true;
    }
    match check {
        SourceCheck::NONE => flow::set_remote_endpoint(slot, source_endpoint),
        // No pod of this node has the remote address.
        SourceCheck::NOT_LOCAL_ENDPOINT
            if context.exact_address(&key.remote_address).unwrap_or_default().endpoint == 0 =>
        {
            flow::set_remote_endpoint(slot, source_endpoint);
        }
        SourceCheck::TRANSLATED if known.accepts_any_remote(slot) => {
            flow::set_remote_endpoint(slot, u32::from(ANY_REMOTE));
        }
        _ => return false,
    }
    true
}
