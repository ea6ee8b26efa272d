//! What the policy says of a flow, and what of it is remembered.

use netpol_common::{
    Attempt, Direction, Endpoint, FlowEntry, FlowKey, Generation, Judgement, REASON_MASK, RECHECK, Reason, SourceCheck,
    endpoint_flags, flow_state, judge, protocol,
};

use crate::flow::{self, Known};
use crate::packet::{Parse, TcpFlags};
use crate::slot::field;
use crate::surroundings::PacketAddress;
use crate::{Family, Surroundings};

/// [`Attempt::ingress_ifindex`] for "by another interface": no interface has this index.
const ELSEWHERE: u32 = u32::MAX;

/// Reads the generation before anything else of the endpoint: the agent writes it after everything else, so a change in
/// between leaves a flow under the old one, and it is judged again.
#[inline(always)]
pub(crate) fn generation(endpoint: &Endpoint) -> Generation {
    // SAFETY: a reference is valid for reads; volatile, because the agent writes meanwhile.
    let generation = unsafe { (&raw const endpoint.generation).read_volatile() };
    #[cfg(target_arch = "bpf")]
    // SAFETY: no instructions; keeps the compiler from reading the rest before.
    unsafe {
        core::arch::asm!("", options(nostack, preserves_flags));
    }
    #[cfg(not(target_arch = "bpf"))]
    core::sync::atomic::compiler_fence(core::sync::atomic::Ordering::Acquire);
    generation
}

/// What cannot be judged passes where everything does.
#[inline(always)]
pub(crate) fn unless_open(endpoint: &Endpoint, direction: Direction, reason: Reason) -> Reason {
    if endpoint.has(endpoint_flags::UNKNOWN) {
        Reason::UnknownPod
    } else if endpoint.policy(direction).isolated() {
        reason
    } else {
        Reason::NotIsolated
    }
}

/// See [`Surroundings::blur`].
#[inline(always)]
pub(crate) fn blur<S: Surroundings>(surroundings: &S, reason: Reason) -> Reason {
    // SAFETY: the code of the same reason.
    unsafe { core::mem::transmute::<u8, Reason>(surroundings.blur::<{ REASON_MASK as i32 }>(reason as u8)) }
}

/// The reason with a code that one of our functions returned.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "a reason's code is a byte")]
pub(crate) fn reason(code: u32) -> Reason {
    // SAFETY: the code of a reason.
    unsafe { core::mem::transmute::<u8, Reason>(code as u8) }
}

/// What a packet may do about its flow.
#[derive(Clone, Copy)]
pub(crate) struct Opening {
    /// Whether it opens one.
    pub(crate) opens: bool,
    /// Whether it is judged without asking for its flow: no lookup finds it cheaper, and a reused port gets a fresh
    /// verdict.
    pub(crate) fresh: bool,
    pub(crate) flags: TcpFlags,
}

/// Judges a packet of no known flow, and remembers the flow that it opens.
#[inline(always)]
pub(crate) fn admit<A, S>(
    surroundings: &S,
    endpoint: &Endpoint,
    generation: Generation,
    attempt: &Attempt<A>,
    key: &FlowKey<A>,
    opening: Opening,
) -> Reason
where
    A: PacketAddress,
    S: Surroundings + Family<A>,
{
    let judgement = judge(surroundings, endpoint, attempt);
    let reason = blur(surroundings, judgement.reason);
    if !reason.allows() {
        let answers = opening.fresh && opened_by_other(surroundings, endpoint, key, generation, attempt.direction);
        return if answers { Reason::Flow } else { reason };
    }
    follow(surroundings, endpoint, attempt.direction, true);
    let reply = attempt.direction == Direction::Ingress && judgement.again;
    if opening.opens && !reply {
        let state = flow::tcp_state(opening.flags, false)
            | origin(endpoint, attempt)
            | again(surroundings, attempt.direction, key.protocol, &judgement);
        let entry = FlowEntry {
            remote_endpoint: remote_endpoint(surroundings, attempt.direction),
            ..entry(generation, surroundings.now(), attempt.direction, state)
        };
        // What starts a connection may be forged, or what its endpoints ignore: a flow that is there goes on.
        let recorded = if opening.fresh {
            surroundings.insert_flow(endpoint, key, &entry, false) || renew(surroundings, endpoint, key, &entry)
        } else {
            surroundings.insert_flow(endpoint, key, &entry, true)
        };
        if !recorded && (endpoint.ingress.isolated() || endpoint.egress.isolated()) {
            return Reason::FlowTableFull;
        }
    }
    reason
}

/// Records an allowed packet that starts a connection, where a flow with its addresses and ports is there; whether it is. An endpoint
/// ignores a SYN in a connection that it has (RFC 5961, 4): what the flow was before stays true unless a new one replaced it.
#[inline(always)]
fn renew<A, S>(surroundings: &S, endpoint: &Endpoint, key: &FlowKey<A>, entry: &FlowEntry) -> bool
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
            // Evaluated in its opener's direction, it is allowed: this packet does not make it the other side's.
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

/// The reason to report of a packet that neither a revoked flow with its addresses and ports nor its own direction allows.
#[inline(always)]
pub(crate) fn unless_reversed(reversed: bool, found: Reason) -> Reason {
    if reversed && found == Reason::NoRule { Reason::Revoked } else { found }
}

/// A flow that was judged under another generation.
#[derive(Clone, Copy)]
pub(crate) struct Stale {
    /// The direction it was opened in.
    pub(crate) opener: Direction,
    /// Its state after the packet that found it.
    pub(crate) state: u8,
}

impl Stale {
    /// As one word, which takes one register.
    #[inline(always)]
    pub(crate) const fn pack(self) -> u32 {
        (self.opener as u32) << 8 | self.state as u32
    }

    /// The reverse.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "the lower byte")]
    pub(crate) const fn unpack(word: u32) -> Self {
        Self { opener: if word >> 8 == 0 { Direction::Ingress } else { Direction::Egress }, state: word as u8 }
    }
}

/// What evaluates a known flow again, in its opener's direction, as one word: a function of its own takes it, so that the verifier
/// walks through the policy once and not once for each way that leads there.
#[derive(Clone, Copy)]
pub(crate) struct Recheck {
    /// The direction of the packet in [`Self::start`].
    pub(crate) direction: Direction,
    pub(crate) protocol: u8,
    pub(crate) stale: Stale,
}

impl Recheck {
    /// As one word.
    #[inline(always)]
    pub(crate) const fn pack(self) -> u32 {
        self.stale.pack() | (self.protocol as u32) << 16 | (self.direction as u32) << 24
    }

    /// The reverse.
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
    // Never: the flow was found by both.
    let Some(endpoint) = surroundings.endpoint() else { return false };
    let Some((source, destination)) = A::ends(&surroundings, start) else { return false };
    let generation = generation(endpoint);
    let (pod, remote) = flow::pod_and_remote(direction, source, destination);
    let key = A::flow_key(endpoint.ifindex.0, pod, remote, ports, protocol);
    let judgement = judge(&surroundings, endpoint, &reopen(endpoint, &key, stale, surroundings.is_behind()));
    if !blur(&surroundings, judgement.reason).allows() {
        // Its entry stays, and stays stale: without it, the next packet of the other side might open a flow of its own.
        return false;
    }
    // A reply is no matter of the sender's egress, and has a Service's address by the time it would be asked again.
    follow(&surroundings, endpoint, direction, stale.opener == Direction::Egress);
    // Whom it was sent to when it opened may no longer be behind the Service, and all those that are say nothing of it.
    let through_service = matches!(judgement.reason, Reason::Service);
    let judgement = Judgement { again: judgement.again || through_service, ..judgement };
    let state = stale.state & !flow_state::JUDGED_BEHIND | again(&surroundings, stale.opener, protocol, &judgement);
    // Where there is no room for what was there a moment ago, the flow is judged again at its next packet.
    let entry = FlowEntry {
        // What the pod sends does not say: the next packet towards it does.
        remote_endpoint: remote_endpoint(&surroundings, direction),
        ..entry(generation, surroundings.now(), stale.opener, state)
    };
    surroundings.insert_flow(endpoint, &key, &entry, true);
    true
}

/// Has an allowed packet from a pod judged again where it goes then, or not. What opens a flow always is: what is known here of
/// Services may be older than what sends it on.
#[inline(always)]
pub(crate) fn follow<S: Surroundings>(surroundings: &S, endpoint: &Endpoint, direction: Direction, again: bool) {
    if direction == Direction::Egress && !surroundings.is_behind() && again && endpoint.egress.isolated() {
        surroundings.carry(endpoint.id | RECHECK);
    }
}

/// Whether each packet of a flow is judged behind. So is each datagram to a Service: conntrack forgets them sooner than netpol does,
/// and the next one is sent to another backend, which nobody here may know of yet.
#[inline(always)]
fn again<S: Surroundings>(surroundings: &S, direction: Direction, protocol: u8, judgement: &Judgement) -> u8 {
    let may_turn = matches!(judgement.reason, Reason::Service);
    let datagram = direction == Direction::Egress && may_turn && surroundings.blur::<255>(protocol) != protocol::TCP;
    surroundings.blur::<255>(if judgement.again || datagram { flow_state::JUDGED_BEHIND } else { 0 })
}

/// Whether a packet towards a pod is not of the flow it looks like, but a stranger's who is masqueraded as its node: conntrack
/// gives a port to somebody else before a flow of datagrams times out here.
#[inline(always)]
pub(crate) fn is_another<S: Surroundings>(surroundings: &S, endpoint: &Endpoint, protocol: u8, state: u8) -> bool {
    let (state, protocol) = (surroundings.blur::<255>(state), surroundings.blur::<255>(protocol));
    let by = surroundings.ingress_ifindex();
    if state & flow_state::FROM_NODE != 0 {
        return by != 0;
    }
    let from_itself = by == endpoint.ifindex.0 || surroundings.sender() == endpoint.id;
    state & flow_state::FROM_ITSELF != 0 && protocol != protocol::TCP && !from_itself
}

/// RFC 9293, 3.5: both sides may open at once. The other side's SYN is then the answer to an allowed one.
#[inline(always)]
fn opened_by_other<A, S: Surroundings + Family<A>>(
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

/// The attempt that a packet makes which would open this flow.
#[inline(always)]
pub(crate) fn attempt<A: PacketAddress, S: Surroundings>(
    surroundings: &S,
    direction: Direction,
    key: &FlowKey<A>,
    source: SourceCheck,
) -> Attempt<A> {
    let (port, ingress_ifindex) = match direction {
        Direction::Ingress => (key.pod_port, surroundings.ingress_ifindex()),
        Direction::Egress => (key.remote_port, ELSEWHERE),
    };
    let (remote, protocol) = (key.remote_address, key.protocol);
    let (sender, behind) = (surroundings.sender(), surroundings.is_behind());
    Attempt { direction, remote, protocol, port, ingress_ifindex, sender, source, behind }
}

/// How the source address of a packet that reaches a pod is to be checked. What came straight from the veth of its source endpoint
/// was checked there, and only the node has translated it since.
#[inline(always)]
pub(crate) fn check_source<A: PacketAddress, S: Surroundings>(surroundings: &S, remote: &A) -> SourceCheck {
    let (sender, ingress_ifindex) = (surroundings.sender(), surroundings.ingress_ifindex());
    if ingress_ifindex == 0 {
        return SourceCheck::NONE;
    }
    if sender == 0 {
        return SourceCheck::FROM_ELSEWHERE;
    }
    match surroundings.endpoint_of(sender) {
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

/// What a flow notes of its remote by a packet in this direction.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "15 bits")]
fn remote_endpoint<S: Surroundings>(surroundings: &S, direction: Direction) -> u16 {
    match direction {
        Direction::Ingress => surroundings.sender() as u16,
        Direction::Egress => 0,
    }
}

/// The attempt that opened a known flow.
#[inline(always)]
fn reopen<A: PacketAddress>(endpoint: &Endpoint, key: &FlowKey<A>, stale: Stale, behind: bool) -> Attempt<A> {
    let ingress_ifindex = if stale.state & flow_state::FROM_NODE != 0 {
        0
    } else if stale.state & flow_state::FROM_ITSELF != 0 {
        endpoint.ifindex.0
    } else {
        ELSEWHERE
    };
    let port = match stale.opener {
        Direction::Ingress => key.pod_port,
        Direction::Egress => key.remote_port,
    };
    let (direction, remote, protocol) = (stale.opener, key.remote_address, key.protocol);
    Attempt { direction, remote, protocol, port, ingress_ifindex, sender: 0, source: SourceCheck::NONE, behind }
}

/// What [`reopen`] has to know of the packet that opened the flow.
#[inline(always)]
fn origin<A>(endpoint: &Endpoint, attempt: &Attempt<A>) -> u8 {
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
