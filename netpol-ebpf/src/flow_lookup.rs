//! Looks up the flow of a packet on the slow path.

use netpol_common::{ANY_REMOTE, Direction, Endpoint, FlowEntry, FlowKey, SourceCheck, endpoint_flags};

use crate::case::role;
use crate::context::{Context, Family, PacketAddress};
use crate::flow::{self, KnownFlow};
use crate::packet::{Parse, TcpFlags};
use crate::slot::Slot;
use crate::verdict::{self, Recheck, Stale};

/// The function of one address family that is a separate BPF function in the kernel.
pub(crate) trait FlowFunctions<A: Parse>: Context + Family<A> {
    /// Returns the verdict of the packet's flow, or how to check its source address if it has none. `ports` are as in
    /// the flow's key, and `bits` are those of the case from the protocol on. The result is packed by [`lookup_flow`].
    #[inline(always)]
    fn lookup_flow(self, direction: Direction, start: u32, ports: u32, bits: u32) -> u64 {
        lookup_flow::<A, Self>(self, direction, start, ports, bits)
    }
}

/// The verdict of a known flow.
pub(crate) enum FlowVerdict {
    /// The flow is allowed.
    Allowed,
    /// The flow was evaluated under another version. See [`REVERSIBLE`] and [`MAY_RESTART`].
    Stale(Recheck, u64),
}

/// Looks up a flow. Without flags: for an ICMP error that quotes a packet of the flow and does not belong to it.
#[inline(always)]
pub(crate) fn find_flow<A, S>(
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

/// See [`FlowFunctions::lookup_flow`].
#[inline(always)]
pub(crate) fn lookup_flow<A, S>(context: S, direction: Direction, start: u32, ports: u32, bits: u32) -> u64
where
    A: Parse,
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

/// Set in the result of [`lookup_flow`] if the packet belongs to a flow that is allowed. Without this bit and
/// the next, the result is a [`SourceCheck`].
pub(crate) const KNOWN: u64 = 1 << 32;
/// Set if the packet belongs to a flow that has to be evaluated again, by the [`Recheck`] in the low half.
pub(crate) const STALE: u64 = 1 << 33;
/// With `STALE`: if the flow is no longer allowed, the packet may belong to a flow of the other side, see
/// [`KnownFlow::may_be_reversed`].
pub(crate) const REVERSIBLE: u64 = 1 << 34;
/// With `STALE`: see [`KnownFlow::may_restart`].
pub(crate) const MAY_RESTART: u64 = 1 << 35;
/// With `STALE`: the position of the [`SourceCheck`].
pub(crate) const CHECK: u32 = 36;

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
