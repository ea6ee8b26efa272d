//! The order of things: what is asked of a packet, and what of it is remembered.

use netpol_common::{
    Attempt, ClassId, Direction, Endpoint, FlowEntry, FlowKey, Generation, Reason, endpoint_flags, flow_state, judge,
};

use crate::denied::{self, Subject};
use crate::flow::{self, Known, Role};
use crate::packet::{self, Fragment, Frame, Icmp, Packet, Parse, TcpFlags};
use crate::surroundings::PacketAddress;
use crate::{Family, Surroundings, fragment, guard};

/// [`Attempt::ingress_ifindex`] for "by another interface": no interface has this index.
const ELSEWHERE: u32 = u32::MAX;

/// A verdict, with the remote's class where it was looked up.
type Verdict = (Reason, ClassId);

/// Judges a packet at a pod's veth, counts it, and tells if it is denied.
#[inline(always)]
pub fn process<S: Surroundings>(surroundings: &S, direction: Direction) -> Reason {
    let Some(endpoint) = surroundings.endpoint() else {
        let verdict = (Reason::NoEndpoint, ClassId::NOBODY);
        surroundings.count(0, direction, verdict.0);
        denied::tell(surroundings, None, direction, verdict, &Subject::FRAME);
        return verdict.0;
    };
    let generation = generation(endpoint);
    match packet::parse(surroundings) {
        Frame::V4(mut packet) => conclude(surroundings, endpoint, generation, direction, &mut packet),
        Frame::V6(mut packet) => conclude(surroundings, endpoint, generation, direction, &mut packet),
        Frame::LinkControl => {
            surroundings.count(endpoint.id, direction, Reason::LinkControl);
            Reason::LinkControl
        }
        Frame::Unreadable(reason) => {
            let reason = unless_open(endpoint, direction, reason);
            surroundings.count(endpoint.id, direction, reason);
            if !reason.allows() {
                denied::tell(surroundings, Some(endpoint), direction, (reason, ClassId::NOBODY), &Subject::FRAME);
            }
            reason
        }
    }
}

/// Reads the generation before anything else of the endpoint: the agent writes it after everything else, so a change in
/// between leaves a flow under the old one, and it is judged again.
#[inline(always)]
fn generation(endpoint: &Endpoint) -> Generation {
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
fn unless_open(endpoint: &Endpoint, direction: Direction, reason: Reason) -> Reason {
    if endpoint.has(endpoint_flags::UNKNOWN) {
        Reason::UnknownPod
    } else if endpoint.policy(direction).isolated() {
        reason
    } else {
        Reason::NotIsolated
    }
}

#[inline(always)]
fn conclude<A, S>(
    surroundings: &S,
    endpoint: &Endpoint,
    generation: Generation,
    direction: Direction,
    packet: &mut Packet<A>,
) -> Reason
where
    A: PacketAddress + Parse,
    S: Surroundings + Family<A>,
{
    let (reason, class) = verdict(surroundings, endpoint, generation, direction, packet);
    let verdict = (blur(surroundings, reason), class);
    surroundings.count(endpoint.id, direction, verdict.0);
    if verdict.0.allows() {
        fragment::record(surroundings, direction, packet);
    } else {
        denied::tell(surroundings, Some(endpoint), direction, verdict, &Subject::packet(packet));
    }
    verdict.0
}

/// See [`Surroundings::blur`].
#[inline(always)]
fn blur<S: Surroundings>(surroundings: &S, reason: Reason) -> Reason {
    // SAFETY: the code of the same reason.
    unsafe { core::mem::transmute::<u8, Reason>(surroundings.blur::<31>(reason as u8)) }
}

#[inline(always)]
fn verdict<A, S>(
    surroundings: &S,
    endpoint: &Endpoint,
    generation: Generation,
    direction: Direction,
    packet: &mut Packet<A>,
) -> Verdict
where
    A: PacketAddress + Parse,
    S: Surroundings + Family<A>,
{
    let mut icmp = packet.icmp();
    if guard::is_foreign(endpoint, direction, packet, icmp) {
        return (Reason::ForeignSource, ClassId::NOBODY);
    }
    // RFC 6980: discovery is never fragmented.
    if icmp == Some(Icmp::Discovery) && packet.problem.is_none() && packet.fragment == Fragment::Whole {
        return (Reason::LinkControl, ClassId::NOBODY);
    }
    let problem = match packet.problem {
        Some(reason) => Some(reason),
        None => fragment::resolve(surroundings, direction, packet).err(),
    };
    if let Some(reason) = problem {
        return (unless_open(endpoint, direction, reason), ClassId::NOBODY);
    }
    if let Fragment::Later { .. } = packet.fragment {
        icmp = packet.icmp();
    }
    judge_flow(surroundings, endpoint, generation, direction, packet, icmp)
}

/// How a packet is looked for among the flows.
struct Search<A> {
    key: FlowKey<A>,
    /// Whether to look at all.
    known: bool,
    /// Whether the packet may open a flow.
    opens: bool,
    /// Whether it is judged without looking: no lookup finds it cheaper, and a reused port gets a fresh verdict.
    fresh: bool,
    /// Whether the key is that of a packet which this one quotes.
    quoted: bool,
    /// The packet's own.
    protocol: u8,
    flags: TcpFlags,
}

#[inline(always)]
fn search<A, S>(surroundings: &S, direction: Direction, packet: &Packet<A>, icmp: Option<Icmp>) -> Search<A>
where
    A: PacketAddress + Parse,
    S: Surroundings + Family<A>,
{
    let (role, mut key) = flow::identify(surroundings.ifindex(), direction, packet, icmp);
    let fresh = flow::is_fresh(packet);
    let mut quoted = false;
    if icmp == Some(Icmp::Error)
        && packet.fragment == Fragment::Whole
        && let Some(quoted_key) = quoted_flow(surroundings, direction, packet)
    {
        key = quoted_key;
        quoted = true;
    }
    let known = quoted || (role != Role::Stranger && !fresh);
    let bits = u8::from(known) | u8::from(role == Role::Member) << 1 | u8::from(fresh) << 2 | u8::from(quoted) << 3;
    let bits = surroundings.blur::<15>(bits);
    key.protocol = surroundings.blur::<255>(key.protocol);
    Search {
        key,
        known: bits & 1 != 0,
        opens: bits & 2 != 0,
        fresh: bits & 4 != 0,
        quoted: bits & 8 != 0,
        protocol: surroundings.blur::<255>(packet.protocol),
        flags: TcpFlags(surroundings.blur::<255>(packet.transport.flags.0)),
    }
}

/// The flow's verdict where it is known, else the policy's.
#[inline(always)]
fn judge_flow<A, S>(
    surroundings: &S,
    endpoint: &Endpoint,
    generation: Generation,
    direction: Direction,
    packet: &Packet<A>,
    icmp: Option<Icmp>,
) -> Verdict
where
    A: PacketAddress + Parse,
    S: Surroundings + Family<A>,
{
    let (now, hz) = (surroundings.now(), surroundings.hz());
    let search = search(surroundings, direction, packet, icmp);
    let passes = if search.quoted { Reason::IcmpError } else { Reason::Flow };
    let mut attempt = open(surroundings, direction, packet, search.protocol);
    let mut stale = false;
    let (mut opener, mut state) = (direction, 0);
    if search.known
        && let Some(slot) = surroundings.flow(&search.key)
    {
        let known = Known::read(slot);
        if known.is_alive(search.key.protocol, now, hz) {
            if known.generation == generation {
                if !search.quoted {
                    known.touch(slot, direction, search.flags, now, hz);
                }
                return (passes, ClassId::NOBODY);
            }
            stale = true;
            if !search.quoted {
                known.keep(slot, now, hz);
            }
            opener = known.opener;
            state = if search.quoted { known.state } else { known.after(direction, search.flags) };
            attempt = reopen(endpoint, &search.key, &known);
        }
    }

    let stale = surroundings.blur::<1>(u8::from(stale)) != 0;
    let judgement = judge(surroundings, endpoint, &attempt);
    let reason = blur(surroundings, judgement.reason);
    let class = judgement.class;
    if stale {
        if !reason.allows() {
            // Its entry stays, and stays stale: without it, the next packet of the other side might open a flow of its own.
            return (Reason::Revoked, class);
        }
        // Where there is no room for what was there a moment ago, the flow is judged again at its next packet.
        surroundings.insert_flow(&search.key, &entry(generation, now, opener, state));
        return (passes, class);
    }
    if !reason.allows() {
        let answers = search.fresh && opened_by_other(surroundings, &search.key, generation, direction, now, hz);
        return (if answers { Reason::Flow } else { reason }, class);
    }
    if search.opens {
        let state = flow::tcp_state(search.flags, false) | origin(endpoint, direction, &attempt);
        if !surroundings.insert_flow(&search.key, &entry(generation, now, direction, state))
            && (endpoint.ingress.isolated() || endpoint.egress.isolated())
        {
            return (Reason::FlowTableFull, class);
        }
    }
    (reason, class)
}

/// RFC 9293, 3.5: both sides may open at once. The other side's SYN is then the answer to an allowed one.
#[inline(always)]
fn opened_by_other<A, S: Surroundings + Family<A>>(
    surroundings: &S,
    key: &FlowKey<A>,
    generation: Generation,
    direction: Direction,
    now: u32,
    hz: u32,
) -> bool {
    let Some(slot) = surroundings.flow(key) else { return false };
    let known = Known::read(slot);
    let touched = flow_state::ANSWERED | flow_state::OPENER_FIN | flow_state::RESET;
    known.generation == generation
        && known.opener != direction
        && known.state & touched == 0
        && known.is_alive(key.protocol, now, hz)
}

/// The key of the flow that an ICMP error is about. The error goes to who sent the quoted packet, so that packet went the
/// other way; an error that is sent elsewhere is about nothing known here.
#[inline(always)]
fn quoted_flow<A, S>(surroundings: &S, direction: Direction, packet: &Packet<A>) -> Option<FlowKey<A>>
where
    A: PacketAddress + Parse,
    S: Surroundings + Family<A>,
{
    /// Length of the ICMP header before the quoted packet.
    const ICMP: u32 = 8;
    let quoted = A::parse(surroundings, packet.payload + ICMP, true).ok()?;
    let told = quoted.problem.is_none() && !matches!(quoted.fragment, Fragment::Later { .. });
    if !told || quoted.source != packet.destination {
        return None;
    }
    let (role, key) = flow::identify(surroundings.ifindex(), direction.opposite(), &quoted, quoted.icmp());
    (role != Role::Stranger).then_some(key)
}

/// The attempt that a packet of no known flow makes.
#[inline(always)]
fn open<A: PacketAddress, S: Surroundings>(
    surroundings: &S,
    direction: Direction,
    packet: &Packet<A>,
    protocol: u8,
) -> Attempt<A> {
    let (remote, ingress_ifindex) = match direction {
        Direction::Ingress => (packet.source, surroundings.ingress_ifindex()),
        Direction::Egress => (packet.destination, ELSEWHERE),
    };
    Attempt { direction, remote, protocol, port: packet.transport.destination_port, ingress_ifindex }
}

/// The attempt that opened a known flow.
#[inline(always)]
fn reopen<A: PacketAddress>(endpoint: &Endpoint, key: &FlowKey<A>, known: &Known) -> Attempt<A> {
    let ingress_ifindex = if known.state & flow_state::FROM_NODE != 0 {
        0
    } else if known.state & flow_state::FROM_ITSELF != 0 {
        endpoint.ifindex.0
    } else {
        ELSEWHERE
    };
    Attempt {
        direction: known.opener,
        remote: key.remote_address,
        protocol: key.protocol,
        port: match known.opener {
            Direction::Ingress => key.pod_port,
            Direction::Egress => key.remote_port,
        },
        ingress_ifindex,
    }
}

/// What [`reopen`] has to know of the packet that opened the flow.
#[inline(always)]
fn origin<A: PacketAddress>(endpoint: &Endpoint, direction: Direction, attempt: &Attempt<A>) -> u8 {
    // By the bridge all its ports come; only the pod's own address tells who it was.
    let by_bridge = attempt.ingress_ifindex == endpoint.bridge.0 && attempt.remote == A::own(endpoint);
    match direction {
        Direction::Egress => 0,
        Direction::Ingress if attempt.ingress_ifindex == 0 => flow_state::FROM_NODE,
        Direction::Ingress if attempt.ingress_ifindex == endpoint.ifindex.0 || by_bridge => flow_state::FROM_ITSELF,
        Direction::Ingress => 0,
    }
}

#[inline(always)]
const fn entry(generation: Generation, now: u32, opener: Direction, state: u8) -> FlowEntry {
    FlowEntry { generation, last_used: now, opener: opener as u8, state, zero: [0; 2] }
}
