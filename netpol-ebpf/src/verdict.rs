//! Evaluates policy for new and stale flows, and records the result.

use netpol_common::{
    Attempt, Direction, Endpoint, FlowEntry, FlowKey, Generation, Judgement, REASON_MASK, RECHECK, Reason, SourceCheck,
    endpoint_flags, flow_state, judge, protocol,
};

use crate::flow::{self, Known};
use crate::packet::{Parse, TcpFlags};
use crate::slot::field;
use crate::surroundings::PacketAddress;
use crate::{Family, Surroundings};

/// The [`Attempt::ingress_ifindex`] of packets that came in by another interface: no interface has this index.
const OTHER_INTERFACE: u32 = u32::MAX;

/// Returns the generation. It has to be read before all other fields of the endpoint. The agent writes it last, so if
/// the policy changes meanwhile, the flow is recorded with the old generation, and is evaluated again.
#[inline(always)]
pub(crate) fn generation(endpoint: &Endpoint) -> Generation {
    // SAFETY: a reference is valid for reads. Volatile, because the agent writes concurrently.
    let generation = unsafe { (&raw const endpoint.generation).read_volatile() };
    #[cfg(target_arch = "bpf")]
    // SAFETY: there are no instructions. It keeps the compiler from reading other fields first.
    unsafe {
        core::arch::asm!("", options(nostack, preserves_flags));
    }
    #[cfg(not(target_arch = "bpf"))]
    core::sync::atomic::compiler_fence(core::sync::atomic::Ordering::Acquire);
    generation
}

/// Returns the verdict on a packet that cannot be evaluated: it is denied only if the pod is isolated in this
/// direction.
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

/// Hides a reason from the verifier, see [`Surroundings::blur`].
#[inline(always)]
pub(crate) fn blur<S: Surroundings>(surroundings: &S, reason: Reason) -> Reason {
    // SAFETY: it is the code of the same reason.
    unsafe { core::mem::transmute::<u8, Reason>(surroundings.blur::<{ REASON_MASK as i32 }>(reason as u8)) }
}

/// Returns the reason with a code that one of our functions returned.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "a reason's code is a byte")]
pub(crate) fn reason(code: u32) -> Reason {
    // SAFETY: it is the code of a reason.
    unsafe { core::mem::transmute::<u8, Reason>(code as u8) }
}

/// Whether and how a packet starts a flow.
#[derive(Clone, Copy)]
pub(crate) struct FlowStart {
    /// Whether it can initiate a flow.
    pub(crate) initiates: bool,
    /// Whether it starts a connection, by SYN or INIT. It is always evaluated: that costs no more than a flow lookup,
    /// and a reused port gets a new verdict.
    pub(crate) new_connection: bool,
    pub(crate) flags: TcpFlags,
}

/// Evaluates a packet that belongs to no known flow, and records the flow that it initiates.
#[inline(always)]
pub(crate) fn admit<A, S>(
    surroundings: &S,
    endpoint: &Endpoint,
    generation: Generation,
    attempt: &Attempt<A>,
    key: &FlowKey<A>,
    flow_start: FlowStart,
) -> Reason
where
    A: PacketAddress,
    S: Surroundings + Family<A>,
{
    let judgement = judge(surroundings, endpoint, attempt);
    let reason = blur(surroundings, judgement.reason);
    if !reason.allows() {
        let is_reply = flow_start.new_connection
            && is_simultaneous_open(surroundings, endpoint, key, generation, attempt.direction);
        return if is_reply { Reason::Flow } else { reason };
    }
    mark_for_recheck(surroundings, endpoint, attempt.direction, true);
    let reply = attempt.direction == Direction::Ingress && judgement.again;
    if flow_start.initiates && !reply {
        let state = flow::tcp_state(flow_start.flags, false)
            | origin_state(endpoint, attempt)
            | again(surroundings, attempt.direction, key.protocol, &judgement);
        let entry = FlowEntry {
            remote_endpoint: remote_endpoint(surroundings, attempt.direction),
            ..entry(generation, surroundings.now(), attempt.direction, state)
        };
        // A packet that starts a connection may be forged, or its receiver may ignore it, so an existing flow is kept.
        let recorded = if flow_start.new_connection {
            surroundings.insert_flow(endpoint, key, &entry, false)
                || update_existing(surroundings, endpoint, key, &entry)
        } else {
            surroundings.insert_flow(endpoint, key, &entry, true)
        };
        if !recorded && (endpoint.ingress.isolated() || endpoint.egress.isolated()) {
            return Reason::FlowTableFull;
        }
    }
    reason
}

/// Updates an existing flow with the addresses and ports of an allowed packet that starts a connection. Returns whether
/// there is one. An endpoint ignores a SYN in an open connection (RFC 5961, 4), so the flow's state is kept unless a
/// new flow replaced it.
#[inline(always)]
fn update_existing<A, S>(surroundings: &S, endpoint: &Endpoint, key: &FlowKey<A>, entry: &FlowEntry) -> bool
where
    A: PacketAddress,
    S: Surroundings + Family<A>,
{
    let Some(slot) = surroundings.flow(endpoint, key) else { return false };
    let (known, hz) = (Known::read(slot), surroundings.hz());
    let mut state = entry.state;
    if known.is_alive(key.protocol, entry.last_used, hz) {
        if known.opener as u8 == entry.opener {
            state |= known.state & flow_state::ANSWERED;
        } else if known.generation == entry.generation {
            // The flow is allowed in its initiator's direction, so this packet does not make the other side its
            // initiator.
            slot.write(field!(last_used), entry.last_used);
            slot.write(field!(state), known.state | flow_state::ANSWERED);
            return true;
        }
    }
    slot.write(field!(state), state);
    slot.write(field!(opener), entry.opener);
    slot.write(field!(remote_endpoint), entry.remote_endpoint);
    slot.write(field!(last_used), entry.last_used);
    slot.write(field!(generation), entry.generation);
    true
}

/// Returns `Revoked` instead of `NoRule` for a packet with the addresses and ports of a revoked flow.
#[inline(always)]
pub(crate) fn revoked_if_reversed(reversed: bool, found: Reason) -> Reason {
    if reversed && found == Reason::NoRule { Reason::Revoked } else { found }
}

/// A flow that was evaluated under another generation.
#[derive(Clone, Copy)]
pub(crate) struct Stale {
    /// The direction of its initiator.
    pub(crate) opener: Direction,
    /// Its state after the current packet.
    pub(crate) state: u8,
}

impl Stale {
    /// Packs it into one word, which fits into a register.
    #[inline(always)]
    pub(crate) const fn pack(self) -> u32 {
        (self.opener as u32) << 8 | self.state as u32
    }

    /// Unpacks the word.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "the lower byte")]
    pub(crate) const fn unpack(word: u32) -> Self {
        Self { opener: if word >> 8 == 0 { Direction::Ingress } else { Direction::Egress }, state: word as u8 }
    }
}

/// The input for evaluating a known flow again, in its initiator's direction. It is packed into one word for a separate
/// BPF function, so that the verifier checks the evaluation of policy once and not once for each caller.
#[derive(Clone, Copy)]
pub(crate) struct Recheck {
    /// The direction of the current packet.
    pub(crate) direction: Direction,
    pub(crate) protocol: u8,
    pub(crate) stale: Stale,
}

impl Recheck {
    /// Packs it into one word.
    #[inline(always)]
    pub(crate) const fn pack(self) -> u32 {
        self.stale.pack() | (self.protocol as u32) << 16 | (self.direction as u32) << 24
    }

    /// Unpacks the word.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "bytes of the word")]
    pub(crate) const fn unpack(word: u32) -> Self {
        Self {
            direction: if word >> 24 == 0 { Direction::Ingress } else { Direction::Egress },
            protocol: (word >> 16) as u8,
            stale: Stale::unpack(word & 0xffff),
        }
    }
}

/// See [`Family::is_still_allowed`].
#[inline(always)]
pub(crate) fn is_still_allowed<A, S>(surroundings: S, start: u32, ports: u32, recheck: Recheck) -> bool
where
    A: PacketAddress + Parse,
    S: Surroundings + Family<A>,
{
    let Recheck { direction, protocol, stale } = recheck;
    // Never happens: both were read to look up the flow.
    let Some(endpoint) = surroundings.endpoint() else { return false };
    let Some((source, destination)) = A::ends(&surroundings, start) else { return false };
    let generation = generation(endpoint);
    let (pod, remote) = flow::pod_and_remote(direction, source, destination);
    let key = A::flow_key(endpoint.ifindex.0, pod, remote, ports, protocol);
    let judgement = judge(&surroundings, endpoint, &original_attempt(endpoint, &key, stale, surroundings.is_behind()));
    if !blur(&surroundings, judgement.reason).allows() {
        // The entry stays, with its old generation: without it, the next packet of the other side could start a new
        // flow.
        return false;
    }
    // A reply does not depend on the sender's egress policy, and would have a Service's address in a recheck.
    mark_for_recheck(&surroundings, endpoint, direction, stale.opener == Direction::Egress);
    // The backend that was selected when the flow started may no longer belong to the Service, so its current backends
    // do not decide.
    let through_service = matches!(judgement.reason, Reason::Service);
    let judgement = Judgement { again: judgement.again || through_service, ..judgement };
    let state = stale.state & !flow_state::JUDGED_BEHIND | again(&surroundings, stale.opener, protocol, &judgement);
    // If there is no room for it any more, the flow is evaluated again at its next packet.
    let entry = FlowEntry {
        // A packet from the pod does not show it; the next packet to the pod does.
        remote_endpoint: remote_endpoint(&surroundings, direction),
        ..entry(generation, surroundings.now(), stale.opener, state)
    };
    surroundings.insert_flow(endpoint, &key, &entry, true);
    true
}

/// Marks an allowed packet from a pod for a recheck post-DNAT, if `again` is set. The first packet of each flow always
/// is: the agent's knowledge of Services may be older than kube-proxy's.
#[inline(always)]
pub(crate) fn mark_for_recheck<S: Surroundings>(
    surroundings: &S,
    endpoint: &Endpoint,
    direction: Direction,
    again: bool,
) {
    if direction == Direction::Egress && !surroundings.is_behind() && again && endpoint.egress.isolated() {
        surroundings.set_tc_index(endpoint.id | RECHECK);
    }
}

/// Returns the state bit of a flow whose packets are all rechecked post-DNAT. Datagrams to a Service belong to these:
/// conntrack forgets their flow sooner than netpol does, and the next one may go to a new backend that is not known
/// here yet.
#[inline(always)]
fn again<S: Surroundings>(surroundings: &S, direction: Direction, protocol: u8, judgement: &Judgement) -> u8 {
    let may_change = matches!(judgement.reason, Reason::Service);
    let datagram = direction == Direction::Egress && may_change && surroundings.blur::<255>(protocol) != protocol::TCP;
    surroundings.blur::<255>(if judgement.again || datagram { flow_state::JUDGED_BEHIND } else { 0 })
}

/// Returns whether a packet to a pod does not belong to the flow that it matches, but comes from another sender that is
/// masqueraded as the local node: conntrack reuses a port before a datagram flow times out here.
#[inline(always)]
pub(crate) fn is_other_sender<S: Surroundings>(surroundings: &S, endpoint: &Endpoint, protocol: u8, state: u8) -> bool {
    let (state, protocol) = (surroundings.blur::<255>(state), surroundings.blur::<255>(protocol));
    let ingress_ifindex = surroundings.ingress_ifindex();
    if state & flow_state::FROM_NODE != 0 {
        return ingress_ifindex != 0;
    }
    let is_hairpin = ingress_ifindex == endpoint.ifindex.0 || surroundings.sender() == endpoint.id;
    state & flow_state::FROM_ITSELF != 0 && protocol != protocol::TCP && !is_hairpin
}

/// Returns whether the packet is a reply in a simultaneous open: both sides may send a SYN (RFC 9293, 3.5).
#[inline(always)]
fn is_simultaneous_open<A, S: Surroundings + Family<A>>(
    surroundings: &S,
    endpoint: &Endpoint,
    key: &FlowKey<A>,
    generation: Generation,
    direction: Direction,
) -> bool {
    let Some(slot) = surroundings.flow(endpoint, key) else { return false };
    let known = Known::read(slot);
    let touched = flow_state::ANSWERED | flow_state::OPENER_FIN | flow_state::RESET;
    known.generation == generation
        && known.opener != direction
        && known.state & touched == 0
        && known.is_alive(key.protocol, surroundings.now(), surroundings.hz())
}

/// Returns the attempt for a packet that initiates this flow.
#[inline(always)]
pub(crate) fn attempt<A: PacketAddress, S: Surroundings>(
    surroundings: &S,
    direction: Direction,
    key: &FlowKey<A>,
    source: SourceCheck,
) -> Attempt<A> {
    let (port, ingress_ifindex) = match direction {
        Direction::Ingress => (key.pod_port, surroundings.ingress_ifindex()),
        Direction::Egress => (key.remote_port, OTHER_INTERFACE),
    };
    let (remote, protocol) = (key.remote_address, key.protocol);
    let (sender, behind) = (surroundings.sender(), surroundings.is_behind());
    Attempt { direction, remote, protocol, port, ingress_ifindex, sender, source, behind }
}

/// Returns how to check the source address of a packet to a pod. A packet that came directly from the veth of its
/// source endpoint was checked there, and only the node has translated it since.
#[inline(always)]
pub(crate) fn check_source<A: PacketAddress, S: Surroundings>(surroundings: &S, remote: &A) -> SourceCheck {
    let (sender, ingress_ifindex) = (surroundings.sender(), surroundings.ingress_ifindex());
    if ingress_ifindex == 0 {
        return SourceCheck::NONE;
    }
    if sender == 0 {
        return SourceCheck::FROM_ELSEWHERE;
    }
    match surroundings.endpoint_by_id(sender) {
        None => SourceCheck::FROM_ELSEWHERE,
        Some(sender)
            if ingress_ifindex == sender.ifindex.0
                || remote.belongs_to(sender)
                || !sender.has(endpoint_flags::SOURCE_GUARD) =>
        {
            SourceCheck::NONE
        }
        Some(_) => SourceCheck::TRANSLATED,
    }
}

/// Returns the remote endpoint that a packet in this direction shows.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "15 bits")]
fn remote_endpoint<S: Surroundings>(surroundings: &S, direction: Direction) -> u16 {
    match direction {
        Direction::Ingress => surroundings.sender() as u16,
        Direction::Egress => 0,
    }
}

/// Returns the attempt that initiated a known flow.
#[inline(always)]
fn original_attempt<A: PacketAddress>(endpoint: &Endpoint, key: &FlowKey<A>, stale: Stale, behind: bool) -> Attempt<A> {
    let ingress_ifindex = if stale.state & flow_state::FROM_NODE != 0 {
        0
    } else if stale.state & flow_state::FROM_ITSELF != 0 {
        endpoint.ifindex.0
    } else {
        OTHER_INTERFACE
    };
    let port = match stale.opener {
        Direction::Ingress => key.pod_port,
        Direction::Egress => key.remote_port,
    };
    let (direction, remote, protocol) = (stale.opener, key.remote_address, key.protocol);
    Attempt { direction, remote, protocol, port, ingress_ifindex, sender: 0, source: SourceCheck::NONE, behind }
}

/// Returns the state bits that [`original_attempt`] needs of the packet that initiated the flow.
#[inline(always)]
fn origin_state<A>(endpoint: &Endpoint, attempt: &Attempt<A>) -> u8 {
    match attempt.direction {
        Direction::Ingress if attempt.ingress_ifindex == 0 => flow_state::FROM_NODE,
        Direction::Ingress if attempt.is_from(endpoint) => flow_state::FROM_ITSELF,
        Direction::Ingress | Direction::Egress => 0,
    }
}

#[inline(always)]
const fn entry(generation: Generation, now: u32, opener: Direction, state: u8) -> FlowEntry {
    FlowEntry { generation, last_used: now, opener: opener as u8, state, remote_endpoint: 0 }
}
