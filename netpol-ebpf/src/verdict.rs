//! Evaluates the policies for new flows and for stale flows (flows that were evaluated before the last change of
//! policies), and records the result.

use netpol_common::{
    Attempt, Direction, Endpoint, EndpointVersion, Evaluation, FlowEntry, FlowKey, NO_REASON, REASON_MASK, RECHECK,
    Reason, SourceCheck, Traffic, endpoint_flags, evaluate, evaluate_policy, flow_state, protocol,
};

use crate::barrier;
use crate::context::{Context, Family, PacketAddress};
use crate::flow::{self, KnownFlow};
use crate::packet::{Parse, TcpFlags};
use crate::packet_verdict::{FlowReport, PacketVerdict};
use crate::slot::field;
use crate::stale::{Reevaluation, Stale};
use crate::traffic;

/// The functions of one address family that are separate BPF functions in the kernel.
pub(crate) trait VerdictFunctions<A: Parse>: Context + Family<A> {
    /// Evaluates a known flow again, in its initiator's direction (the direction of its first packet), and returns
    /// whether it is still allowed. `ip_offset` is the offset of the packet's IP header, `ports` are those of the
    /// flow's key, and `word` is a packed [`Reevaluation`].
    #[inline(always)]
    fn is_still_allowed(self, ip_offset: u32, ports: u32, word: u32) -> bool {
        is_still_allowed::<A, Self>(self, ip_offset, ports, Reevaluation::unpack(word))
    }
    /// Evaluates an allowed flow in its initiator's direction by the policies in shadow mode (only evaluated and
    /// reported), see [`evaluate_shadow`]. The arguments are those of [`Self::is_still_allowed`].
    #[inline(always)]
    fn evaluate_shadow(self, ip_offset: u32, ports: u32, word: u32) -> Reason {
        evaluate_shadow::<A, Self>(self, ip_offset, ports, Reevaluation::unpack(word))
    }
}

/// The [`Attempt::ingress_ifindex`] in two cases. At egress, the interface is not needed. When an ingress flow is
/// evaluated again, its interface is not known, unless the flow is from the local node or hairpin. No interface has
/// this index.
const OTHER_INTERFACE: u32 = u32::MAX;

/// Returns the current version for flows of this endpoint: flows with another version are evaluated again. Call this
/// before reading any other field of the endpoint, because the agent writes the version last. So if the policy changes
/// during the evaluation, the flow is recorded with the old version, and is evaluated again.
///
/// If nothing is enforced ([`Context::observes`], the agent's option `--observe`), the flows of denied packets are
/// recorded, too. The versions of all flows in this mode have the bit [`OBSERVED_VERSION`]. So all flows are evaluated
/// again when an agent that enforces policies replaces the programs.
#[inline(always)]
pub(crate) fn version<S: Context>(context: &S, endpoint: &Endpoint) -> EndpointVersion {
    let version = read_endpoint_version(endpoint);
    if context.observes() { EndpointVersion(version.0 ^ OBSERVED_VERSION) } else { version }
}

/// If nothing is enforced, the versions of flows have this bit. No endpoint has such a high version.
const OBSERVED_VERSION: u32 = 1 << 31;

/// Reads the endpoint's version. The compiler cannot move later reads of other fields before this read.
#[inline(always)]
fn read_endpoint_version(endpoint: &Endpoint) -> EndpointVersion {
    // SAFETY: a reference is valid for reads. Volatile, because the agent writes concurrently.
    let version = unsafe { (&raw const endpoint.version).read_volatile() };
    #[cfg(target_arch = "bpf")]
    // SAFETY: there are no instructions. The empty `asm!` keeps the compiler from reading other fields first.
    unsafe {
        core::arch::asm!("", options(nostack, preserves_flags));
    }
    #[cfg(not(target_arch = "bpf"))]
    core::sync::atomic::compiler_fence(core::sync::atomic::Ordering::Acquire);
    version
}

/// Returns the verdict on a packet that cannot be evaluated: it is denied only if the pod is isolated in this
/// direction, or if the endpoint has the flag `UNKNOWN`.
#[inline(always)]
pub(crate) fn deny_if_isolated(endpoint: &Endpoint, direction: Direction, reason: Reason) -> Reason {
    if endpoint.has(endpoint_flags::UNKNOWN) {
        Reason::UnknownPod
    } else if endpoint.policy(direction).isolated() {
        reason
    } else {
        Reason::NotIsolated
    }
}

/// Hides a reason from the verifier, see [`Context::barrier_within`].
#[inline(always)]
pub(crate) fn barrier_within<S: Context>(context: &S, reason: Reason) -> Reason {
    let code = barrier::within::<{ REASON_MASK as i32 }>(reason as u8, context.length());
    // SAFETY: `within` does not change the value, so it is still the code of `reason`.
    unsafe { Reason::from_code_unchecked(code) }
}

/// Hides an optional reason from the verifier, as [`barrier_within`] does.
#[inline(always)]
pub(crate) fn barrier_within_option<S: Context>(context: &S, reason: Option<Reason>) -> Option<Reason> {
    let code = reason.map_or(NO_REASON, |reason| reason as u8);
    let code = barrier::within::<{ REASON_MASK as i32 }>(code, context.length());
    // SAFETY: as in `barrier_within`. If the value is not `NO_REASON`, it is the code of `reason`.
    (code != NO_REASON).then(|| unsafe { Reason::from_code_unchecked(code) })
}

/// Returns the final verdict, and counts the packet. `verdict` is the result of [`admit`]. If the packet has the
/// addresses and ports of a revoked flow (`matches_revoked`), the reason `NoRule` becomes `Revoked`.
#[inline(always)]
pub(crate) fn conclude_new<S: Context>(
    context: &S,
    endpoint: &Endpoint,
    direction: Direction,
    verdict: PacketVerdict,
    matches_revoked: bool,
) -> PacketVerdict {
    let reason = verdict.reason();
    let reason = if matches_revoked && reason == Reason::NoRule { Reason::Revoked } else { reason };
    PacketVerdict::with(conclude(context, endpoint, direction, reason), verdict.report())
}

/// Returns the final reason of a verdict, and counts the packet.
#[inline(always)]
pub(crate) fn conclude<S: Context>(context: &S, endpoint: &Endpoint, direction: Direction, reason: Reason) -> Reason {
    let reason = barrier_within(context, reason);
    let reason = final_reason(context, reason);
    // If an allowed packet is post-DNAT, it was already counted pre-DNAT.
    if !reason.allows() || !context.is_post_dnat() {
        context.count(endpoint.id, direction, reason);
    }
    reason
}

/// Whether and how a packet starts a flow.
#[derive(Clone, Copy)]
pub(crate) struct FlowStart {
    /// Whether the packet can initiate a flow.
    pub(crate) initiates: bool,
    /// Whether the packet starts a connection, by SYN or INIT. Pre-DNAT, such a packet is evaluated even if it matches
    /// a known flow. So a connection that reuses the ports of an earlier connection gets a verdict of its own.
    pub(crate) new_connection: bool,
    pub(crate) flags: TcpFlags,
    /// The offset of the IP header.
    pub(crate) ip_offset: u32,
}

/// Evaluates a packet that belongs to no known flow or starts a connection, and records the flow that it initiates. If
/// nothing is enforced, the flow of a denied packet is recorded, too. So the next packets of the flow and its replies,
/// which pass anyway, are not reported as denied again.
#[inline(always)]
pub(crate) fn admit<A, S>(
    context: &S,
    endpoint: &Endpoint,
    version: EndpointVersion,
    attempt: &Attempt<A>,
    key: &FlowKey<A>,
    flow_start: FlowStart,
) -> PacketVerdict
where
    A: PacketAddress,
    S: Context + Family<A>,
{
    let evaluation = evaluate(context, endpoint, attempt);
    let reason = barrier_within(context, evaluation.reason);
    if reason.allows() {
        mark_for_recheck(context, endpoint, attempt.direction, true);
    } else {
        let is_reply =
            flow_start.new_connection && is_simultaneous_open(context, endpoint, key, version, attempt.direction);
        if is_reply || !context.observes() {
            return PacketVerdict::of(if is_reply { Reason::Flow } else { reason });
        }
    }
    // At ingress, `recheck` means that the packet is a reply through a Service, which starts no flow.
    if attempt.direction == Direction::Ingress && evaluation.recheck {
        return PacketVerdict::of(reason);
    }
    let mut recorded = Recorded::No;
    if flow_start.initiates {
        let state = flow::tcp_state(flow_start.flags, false)
            | origin_state(endpoint, attempt)
            | recheck_flag(context, attempt.direction, key.protocol, &evaluation);
        let entry = FlowEntry {
            remote_endpoint: remote_endpoint(context, attempt.direction),
            sent: traffic::of_first_packet(context, flow_start.ip_offset),
            ..new_entry(version, context.now(), attempt.direction, state)
        };
        // A packet that starts a connection (SYN or INIT) may be forged, or its receiver may ignore it. So it does not
        // overwrite an existing flow.
        recorded = if context.insert_flow(endpoint, key, &entry, !flow_start.new_connection) {
            Recorded::New
        } else if flow_start.new_connection {
            update_existing(context, endpoint, key, &entry)
        } else {
            Recorded::No
        };
        if matches!(recorded, Recorded::No) && (endpoint.ingress.isolated() || endpoint.egress.isolated()) {
            return PacketVerdict::of(Reason::FlowTableFull);
        }
    }
    if !reason.allows() {
        return PacketVerdict::of(reason);
    }
    // A packet that is post-DNAT was already evaluated pre-DNAT, and its flow was reported then.
    let new = matches!(recorded, Recorded::New) && !context.is_post_dnat() && context.records_allowed();
    let report = FlowReport::new(endpoint, attempt.direction, origin_state(endpoint, attempt), new);
    PacketVerdict::with(reason, FlowReport::from_byte(context.barrier_within::<255>(report.byte())))
}

/// Whether a flow was recorded.
#[derive(Clone, Copy)]
enum Recorded {
    /// No flow was recorded.
    No,
    /// A new flow was recorded.
    New,
    /// The packet belongs to a flow that was already recorded, and starts no new one.
    Known,
}

/// Updates an existing flow after an allowed SYN or INIT that has the flow's addresses and ports. Returns `No` if there
/// is no such flow. The host of a TCP connection ignores a SYN while the connection is open (RFC 5961, 4), so a flow
/// that has not timed out keeps parts of its state.
///
/// The result for a SYN from the initiator of a flow that has not timed out: if the flow has had a reply, the SYN
/// usually starts a new connection with the same ports, and the result is `New`. Without a reply, the SYN is usually a
/// retransmission of the first SYN, and the result is `Known`.
#[inline(always)]
fn update_existing<A, S>(context: &S, endpoint: &Endpoint, key: &FlowKey<A>, entry: &FlowEntry) -> Recorded
where
    A: PacketAddress,
    S: Context + Family<A>,
{
    let Some(slot) = context.flow(endpoint, key) else { return Recorded::No };
    let (known, hz) = (KnownFlow::read(slot), context.hz());
    let mut state = entry.state;
    let mut recorded = Recorded::New;
    if known.is_alive(key.protocol, entry.last_used, hz) {
        if known.initiator as u8 == entry.initiator {
            state |= known.state & flow_state::REPLIED;
            if known.state & flow_state::REPLIED == 0 {
                recorded = Recorded::Known;
            }
        } else if known.version == entry.version {
            // The SYN is not from the flow's initiator. The flow is still allowed in its initiator's direction, so its
            // initiator does not change.
            slot.write(field!(FlowEntry, last_used), entry.last_used);
            slot.write(field!(FlowEntry, state), known.state | flow_state::REPLIED);
            traffic::add(context, slot.part(field!(FlowEntry, replies)), entry.sent);
            return Recorded::Known;
        }
    }
    if matches!(recorded, Recorded::Known) {
        traffic::add(context, slot.part(field!(FlowEntry, sent)), entry.sent);
    } else {
        traffic::restart(context, slot, entry);
    }
    let initiator = if entry.initiator == 0 { Direction::Ingress } else { Direction::Egress };
    let evaluated = KnownFlow { version: entry.version, last_used: entry.last_used, initiator, state };
    flow::set_evaluated(slot, &evaluated, entry.remote_endpoint);
    recorded
}

/// See [`VerdictFunctions::is_still_allowed`].
#[inline(always)]
pub(crate) fn is_still_allowed<A, S>(context: S, ip_offset: u32, ports: u32, reevaluation: Reevaluation) -> bool
where
    A: Parse,
    S: Context + Family<A>,
{
    let Reevaluation { direction, protocol, stale, read_only } = reevaluation;
    // Never happens: endpoint and addresses were read to look up the flow.
    let Some(endpoint) = context.endpoint() else { return false };
    let Some((source, destination)) = A::addresses(&context, ip_offset) else { return false };
    let version = version(&context, endpoint);
    let (pod, remote) = flow::pod_and_remote(direction, source, destination);
    let key = A::flow_key(endpoint.ifindex.0, pod, remote, ports, protocol);
    let evaluation = evaluate(&context, endpoint, &original_attempt(endpoint, &key, stale, context.is_post_dnat()));
    let allowed = barrier_within(&context, evaluation.reason).allows();
    // The entry of a denied flow stays, with its old version: without the entry, the next reply could start a new flow.
    // If nothing is enforced, the first packet from the initiator after the change of policies is reported as denied,
    // and gives the flow the new version. So later packets are not reported.
    let continues = context.observes() && direction == stale.initiator;
    if !allowed && !continues {
        let already_revoked = stale.state & flow_state::REVOKED != 0;
        if !read_only && !already_revoked && !context.observes() {
            traffic::mark_revoked(&context, endpoint, &key);
        }
        return false;
    }
    // Only packets of flows that the pod initiated are rechecked. A reply of the pod does not depend on its egress
    // policy, and could have a Service's address as its source post-DNAT.
    mark_for_recheck(&context, endpoint, direction, allowed && stale.initiator == Direction::Egress);
    if read_only {
        return allowed;
    }
    // The backend that was selected when the flow started may no longer belong to the Service. So the Service's current
    // backends are not enough for a verdict on this flow, and each packet is rechecked.
    let through_service = matches!(evaluation.reason, Reason::Service);
    let evaluation = Evaluation { recheck: evaluation.recheck || through_service, ..evaluation };
    let state = stale.state & !(flow_state::RECHECK | flow_state::REVOKED)
        | recheck_flag(&context, stale.initiator, protocol, &evaluation);
    // Updates the entry in place, which keeps the flow's traffic counters. If the flow was evicted meanwhile, its next
    // packet is evaluated as a new flow.
    if let Some(slot) = context.flow(endpoint, &key) {
        let evaluated = KnownFlow { version, last_used: context.now(), initiator: stale.initiator, state };
        // A packet from the pod does not carry the ID of the remote endpoint; the next packet to the pod does.
        flow::set_evaluated(slot, &evaluated, remote_endpoint(&context, direction));
        traffic::count(&context, slot, direction, ip_offset);
    }
    allowed
}

/// Evaluates an allowed flow, in its initiator's direction, as if policies in shadow mode were enforced. Returns the
/// reason, and counts the flow if it would be denied. Neither the verdict nor the flow changes.
///
/// As with enforced policies, a flow to a Service is evaluated pre-DNAT and post-DNAT. If the policies would allow it
/// pre-DNAT, the current packet is marked for a recheck (a second evaluation, post-DNAT). Later packets of the flow are
/// not marked, so a later change of the backend is not evaluated.
#[inline(always)]
pub(crate) fn evaluate_shadow<A, S>(context: S, ip_offset: u32, ports: u32, reevaluation: Reevaluation) -> Reason
where
    A: Parse,
    S: Context + Family<A>,
{
    let Reevaluation { direction, protocol, stale, .. } = reevaluation;
    // Never happens: endpoint and addresses were read to evaluate the packet.
    let Some(endpoint) = context.endpoint() else { return Reason::NotIsolated };
    let Some((source, destination)) = A::addresses(&context, ip_offset) else { return Reason::NotIsolated };
    let (pod, remote) = flow::pod_and_remote(direction, source, destination);
    let key = A::flow_key(endpoint.ifindex.0, pod, remote, ports, protocol);
    let attempt = original_attempt(endpoint, &key, stale, context.is_post_dnat());
    let evaluation = evaluate_policy(&context, endpoint, endpoint.shadow_policy(stale.initiator), &attempt);
    let reason = final_reason(&context, barrier_within(&context, evaluation.reason));
    if !reason.allows() {
        context.count_shadow_denied(endpoint.id, stale.initiator);
    } else if direction == Direction::Egress && stale.initiator == Direction::Egress && !context.is_post_dnat() {
        context.set_tc_index(endpoint.id | RECHECK);
    }
    reason
}

/// Returns `BackendDenied` instead of `NoRule` if the packet is post-DNAT. Returns other reasons unchanged.
#[inline(always)]
fn final_reason<S: Context>(context: &S, reason: Reason) -> Reason {
    if context.is_post_dnat() && reason == Reason::NoRule { Reason::BackendDenied } else { reason }
}

/// Marks an allowed packet from a pod for a recheck post-DNAT, if `recheck` is set. Callers always set it for the first
/// packet of a flow, because kube-proxy may have a newer version of a Service than the agent.
#[inline(always)]
pub(crate) fn mark_for_recheck<S: Context>(context: &S, endpoint: &Endpoint, direction: Direction, recheck: bool) {
    if direction == Direction::Egress && !context.is_post_dnat() && recheck && endpoint.egress.isolated() {
        context.set_tc_index(endpoint.id | RECHECK);
    }
}

/// Returns the state bit `RECHECK` if all packets of a flow must be rechecked post-DNAT, and 0 otherwise. For protocols
/// other than TCP, all packets of a flow to a Service are rechecked: the conntrack entry can time out before the flow
/// does, and then the next packet may go to a backend that the agent has not received yet.
#[inline(always)]
fn recheck_flag<S: Context>(context: &S, direction: Direction, protocol: u8, evaluation: &Evaluation) -> u8 {
    let to_service = matches!(evaluation.reason, Reason::Service);
    let may_change_backend =
        direction == Direction::Egress && to_service && context.barrier_within::<255>(protocol) != protocol::TCP;
    context.barrier_within::<255>(if evaluation.recheck || may_change_backend { flow_state::RECHECK } else { 0 })
}

/// Returns whether a packet to a pod has the addresses and ports of a known flow, but comes from another sender than
/// the flow. This is possible: the node masquerades several senders with its own address, and conntrack may reuse a
/// port before the flow with this port times out here.
#[inline(always)]
pub(crate) fn is_other_sender<S: Context>(context: &S, endpoint: &Endpoint, protocol: u8, state: u8) -> bool {
    let (state, protocol) = (context.barrier_within::<255>(state), context.barrier_within::<255>(protocol));
    let ingress_ifindex = context.ingress_ifindex();
    if state & flow_state::FROM_NODE != 0 {
        return ingress_ifindex != 0;
    }
    let is_hairpin = ingress_ifindex == endpoint.ifindex.0 || context.source_endpoint() == endpoint.id;
    state & flow_state::HAIRPIN != 0 && protocol != protocol::TCP && !is_hairpin
}

/// Returns whether the packet is a reply in a simultaneous open: both sides may send a SYN (RFC 9293, 3.5).
#[inline(always)]
fn is_simultaneous_open<A, S: Context + Family<A>>(
    context: &S,
    endpoint: &Endpoint,
    key: &FlowKey<A>,
    version: EndpointVersion,
    direction: Direction,
) -> bool {
    let Some(slot) = context.flow(endpoint, key) else { return false };
    let known = KnownFlow::read(slot);
    let after_first_syn = flow_state::REPLIED | flow_state::INITIATOR_FIN | flow_state::RESET;
    known.version == version
        && known.initiator != direction
        && known.state & after_first_syn == 0
        && known.is_alive(key.protocol, context.now(), context.hz())
}

/// Returns the [`Attempt`] (the input of [`evaluate`]) for a packet that initiates this flow.
#[inline(always)]
pub(crate) fn attempt<A: PacketAddress, S: Context>(
    context: &S,
    direction: Direction,
    key: &FlowKey<A>,
    source: SourceCheck,
) -> Attempt<A> {
    let (port, ingress_ifindex) = match direction {
        Direction::Ingress => (key.pod_port, context.ingress_ifindex()),
        Direction::Egress => (key.remote_port, OTHER_INTERFACE),
    };
    let (remote, protocol) = (key.remote_address, key.protocol);
    let (source_endpoint, post_dnat) = (context.source_endpoint(), context.is_post_dnat());
    Attempt { direction, remote, protocol, port, ingress_ifindex, source_endpoint, source, post_dnat }
}

/// Returns how to check the source address of a packet to a pod. A packet that came directly from the veth of its
/// source endpoint was checked at that veth. Since then, only the node can have translated it.
#[inline(always)]
pub(crate) fn check_source<A: PacketAddress, S: Context>(context: &S, remote: &A) -> SourceCheck {
    let (source_endpoint, ingress_ifindex) = (context.source_endpoint(), context.ingress_ifindex());
    if ingress_ifindex == 0 {
        return SourceCheck::NONE;
    }
    if source_endpoint == 0 {
        return SourceCheck::NOT_LOCAL_ENDPOINT;
    }
    match context.endpoint_by_id(source_endpoint) {
        None => SourceCheck::NOT_LOCAL_ENDPOINT,
        Some(source_endpoint)
            if ingress_ifindex == source_endpoint.ifindex.0
                || remote.belongs_to(source_endpoint)
                || !source_endpoint.has(endpoint_flags::ANTI_SPOOFING) =>
        {
            SourceCheck::NONE
        }
        Some(_) => SourceCheck::TRANSLATED,
    }
}

/// Returns the remote endpoint ID that a packet in this direction carries, or 0.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "15 bits")]
fn remote_endpoint<S: Context>(context: &S, direction: Direction) -> u16 {
    match direction {
        Direction::Ingress => context.source_endpoint() as u16,
        Direction::Egress => 0,
    }
}

/// Returns the attempt that initiated a known flow, to evaluate the flow again.
#[inline(always)]
fn original_attempt<A: PacketAddress>(
    endpoint: &Endpoint,
    key: &FlowKey<A>,
    stale: Stale,
    post_dnat: bool,
) -> Attempt<A> {
    let ingress_ifindex = if stale.state & flow_state::FROM_NODE != 0 {
        0
    } else if stale.state & flow_state::HAIRPIN != 0 {
        endpoint.ifindex.0
    } else {
        OTHER_INTERFACE
    };
    let port = match stale.initiator {
        Direction::Ingress => key.pod_port,
        Direction::Egress => key.remote_port,
    };
    let (direction, remote, protocol) = (stale.initiator, key.remote_address, key.protocol);
    Attempt {
        direction,
        remote,
        protocol,
        port,
        ingress_ifindex,
        source_endpoint: 0,
        source: SourceCheck::NONE,
        post_dnat,
    }
}

/// Returns the state bits from which [`original_attempt`] restores the attempt.
#[inline(always)]
fn origin_state<A>(endpoint: &Endpoint, attempt: &Attempt<A>) -> u8 {
    match attempt.direction {
        Direction::Ingress if attempt.ingress_ifindex == 0 => flow_state::FROM_NODE,
        Direction::Ingress if attempt.is_from(endpoint) => flow_state::HAIRPIN,
        Direction::Ingress | Direction::Egress => 0,
    }
}

#[inline(always)]
const fn new_entry(version: EndpointVersion, now: u32, initiator: Direction, state: u8) -> FlowEntry {
    const NONE: Traffic = Traffic { packets: 0, bytes: 0 };
    let initiator = initiator as u8;
    FlowEntry { version, last_used: now, initiator, state, remote_endpoint: 0, started: now, sent: NONE, replies: NONE }
}
