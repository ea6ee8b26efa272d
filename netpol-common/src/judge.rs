//! The verdict on an attempt to open a flow. The kernel programs and the agent's in-memory tables run this same code.

use crate::{
    AddressEntry, AllowEntry, AllowKey, ClassId, Direction, DirectionPolicy, Endpoint, FrontendEntry, FrontendKey,
    PortEntry, PortKey, PortSetId, Reason, RuleId, address_flags, endpoint_flags, frontend_scope, port_verdict,
    protocol,
};

/// An IPv4 or IPv6 address, in network byte order.
pub trait Address: Copy + PartialEq {
    /// The unspecified address.
    const ZERO: Self;
    /// The endpoint's own address of this family; zeros where it has none.
    fn own(endpoint: &Endpoint) -> Self;
    /// Whether it is the unspecified address.
    fn is_zero(&self) -> bool;
}

impl Address for [u8; 4] {
    const ZERO: Self = [0; 4];

    #[inline(always)]
    fn own(endpoint: &Endpoint) -> Self {
        endpoint.address_v4
    }

    #[inline(always)]
    fn is_zero(&self) -> bool {
        u32::from_ne_bytes(*self) == 0
    }
}

impl Address for [u8; 16] {
    const ZERO: Self = [0; 16];

    #[inline(always)]
    fn own(endpoint: &Endpoint) -> Self {
        endpoint.address_v6
    }

    #[inline(always)]
    fn is_zero(&self) -> bool {
        u128::from_ne_bytes(*self) == 0
    }
}

/// Where [`judge`] looks things up: the kernel's maps, or the same tables in memory. `A` is the address family.
pub trait Tables<A> {
    /// The address's own entry, else that of the longest prefix that covers it.
    fn address(&self, address: &A) -> Option<AddressEntry>;
    /// The port of a Service.
    fn frontend(&self, key: &FrontendKey<A>) -> Option<FrontendEntry>;
    /// What a rule set allows to a class beyond what it allows to anyone.
    fn allow(&self, key: &AllowKey) -> Option<AllowEntry>;
    /// The longest match for a port in a set.
    fn port(&self, key: &PortKey) -> Option<PortEntry>;
    /// A word of `TUNNELS`, by [`TunnelWord::index`](crate::TunnelWord::index). Tables that policies are compiled to have none.
    #[inline(always)]
    fn tunnels(&self, _index: u32) -> u64 {
        0
    }
}

/// An attempt to open a flow, seen from the pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempt<A> {
    /// Whether the remote opens towards the pod, or the pod towards the remote.
    pub direction: Direction,
    /// The other end.
    pub remote: A,
    /// IP protocol number.
    pub protocol: u8,
    /// Destination port in network byte order; zeros for protocols without.
    pub port: [u8; 2],
    /// Ingress: the interface the packet came in by before it was sent to the pod; 0: this node originated it. Source:
    /// `skb->skb_iif`, <https://docs.kernel.org/bpf/prog_sk_lookup.html> names it `ingress_ifindex`.
    pub ingress_ifindex: u32,
    /// Ingress: the [`Endpoint::id`] of the pod of this node that sent it, whatever source address it has by now; 0: not known.
    pub sender: u32,
    /// Egress: it is past the place where Services send packets on. One that still goes to a Service then is sent on elsewhere.
    pub behind: bool,
}

impl<A> Attempt<A> {
    /// Ingress: whether the endpoint's own pod sent it. It came in by the pod's veth, or, as a bridge hides that, carries the
    /// pod's number.
    #[inline(always)]
    pub const fn is_from(&self, endpoint: &Endpoint) -> bool {
        self.ingress_ifindex == endpoint.ifindex.0 || (self.sender != 0 && self.sender == endpoint.id)
    }
}

/// What [`judge`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Judgement {
    /// The verdict and why.
    pub reason: Reason,
    /// The remote's class, where it was looked up.
    pub class: ClassId,
    /// The rule that allows it, where one does.
    pub rule: RuleId,
    /// Somebody else may be behind the remote: each packet is to be judged again by where it goes then.
    pub again: bool,
}

impl Judgement {
    /// As an entry of `ALLOW` says it of a frontend.
    pub const fn port_set(&self) -> PortSetId {
        match (self.reason.allows(), self.again) {
            (true, false) => PortSetId::ALL,
            (true, true) => PortSetId::SOME,
            (false, _) => PortSetId::NONE,
        }
    }

    #[inline(always)]
    const fn because(reason: Reason, class: ClassId) -> Self {
        Self { reason, class, rule: RuleId::NONE, again: false }
    }
}

/// Judges an attempt at an endpoint by its policy in that direction. What is not a matter of policy (malformed packets,
/// the source guard, link control) is decided before; what belongs to a known flow never gets here.
#[inline(always)]
pub fn judge<A: Address, T: Tables<A>>(tables: &T, endpoint: &Endpoint, attempt: &Attempt<A>) -> Judgement {
    if endpoint.has(endpoint_flags::UNKNOWN) {
        return Judgement::because(Reason::UnknownPod, ClassId::NOBODY);
    }
    let policy = endpoint.policy(attempt.direction);
    if !policy.isolated() {
        return Judgement::because(Reason::NotIsolated, ClassId::NOBODY);
    }
    if is_itself(endpoint, attempt) {
        return Judgement::because(Reason::Itself, ClassId::NOBODY);
    }
    let entry = tables.address(&attempt.remote).unwrap_or_default();
    if entry.flags & address_flags::OWN_NODE != 0 {
        if is_own_node(attempt) {
            // NodePorts and hostPorts are there too.
            let again = matches!(attempt.direction, Direction::Egress);
            return Judgement { again, ..Judgement::because(Reason::OwnNode, entry.class) };
        }
        // Sent by the pod to a Service it is behind, and masqueraded on its way back.
        if attempt.is_from(endpoint) {
            return Judgement::because(Reason::Itself, entry.class);
        }
    }
    if matches!(attempt.direction, Direction::Egress)
        && policy.any != PortSetId::ALL
        && let Some(frontend) = frontend(tables, attempt, entry.flags)
    {
        return judge_frontend(tables, endpoint, policy, attempt.behind, frontend.class);
    }
    let mut allowed = AllowEntry { port_set: policy.any, rule: RuleId::NONE };
    if entry.class != ClassId::NOBODY
        && let Some(found) = tables.allow(&AllowKey { rule_set: policy.rule_set, class: entry.class })
    {
        allowed = found;
    }
    if allowed.port_set == PortSetId::ALL {
        return Judgement { rule: allowed.rule, ..Judgement::because(Reason::Rule, entry.class) };
    }
    if allowed.port_set != PortSetId::NONE && protocol::has_ports(attempt.protocol) {
        let key = PortKey { set: allowed.port_set, protocol: attempt.protocol, zero: 0, port: attempt.port };
        if let Some(port) = tables.port(&key)
            && port.verdict == port_verdict::ALLOW
        {
            return Judgement { rule: port.rule, ..Judgement::because(Reason::Rule, entry.class) };
        }
    }
    Judgement::because(unless_incomplete(endpoint, Reason::NoRule), entry.class)
}

/// The port of a Service that an attempt is for; `None`: it is for the address itself.
#[inline(always)]
fn frontend<A: Address, T: Tables<A>>(tables: &T, attempt: &Attempt<A>, flags: u16) -> Option<FrontendEntry> {
    if flags & (address_flags::SERVICE | address_flags::NODE) == 0 {
        return None;
    }
    // One key, changed: the kernel's stack is short.
    let (address, port, protocol) = (attempt.remote, attempt.port, attempt.protocol);
    let mut key = FrontendKey { address, port, protocol, scope: frontend_scope::ADDRESS };
    if flags & address_flags::SERVICE != 0
        && let Some(found) = tables.frontend(&key)
    {
        return Some(found);
    }
    if flags & address_flags::NODE == 0 {
        return None;
    }
    key.address = A::ZERO;
    key.scope = frontend_scope::NODE;
    tables.frontend(&key)
}

/// Judges an attempt at a Service by what holds for its backends. Where only some are allowed, it goes on and is judged again
/// by the one it is sent to; past that place nobody here will know.
#[inline(always)]
fn judge_frontend<A: Address, T: Tables<A>>(
    tables: &T,
    endpoint: &Endpoint,
    policy: DirectionPolicy,
    behind: bool,
    class: ClassId,
) -> Judgement {
    let allowed = tables.allow(&AllowKey { rule_set: policy.rule_set, class }).unwrap_or_default().port_set;
    let some = allowed == PortSetId::SOME;
    if allowed == PortSetId::ALL || (some && !behind) {
        return Judgement { again: some, ..Judgement::because(Reason::Service, class) };
    }
    let reason = if some { Reason::SomeBackends } else { unless_incomplete(endpoint, Reason::NoBackend) };
    Judgement::because(reason, class)
}

#[inline(always)]
const fn unless_incomplete(endpoint: &Endpoint, reason: Reason) -> Reason {
    if endpoint.has(endpoint_flags::INCOMPLETE) { Reason::TablesIncomplete } else { reason }
}

/// A pod reaches itself at its own address, also where a Service sends it back.
#[inline(always)]
fn is_itself<A: Address>(endpoint: &Endpoint, attempt: &Attempt<A>) -> bool {
    let own = A::own(endpoint);
    if own.is_zero() || attempt.remote != own {
        return false;
    }
    match attempt.direction {
        Direction::Egress => true,
        Direction::Ingress => attempt.is_from(endpoint),
    }
}

/// Only what the node itself sends or receives: forwarded and masqueraded traffic carries its address too, but came in
/// by an interface.
#[inline(always)]
fn is_own_node<A>(attempt: &Attempt<A>) -> bool {
    match attempt.direction {
        Direction::Egress => true,
        Direction::Ingress => attempt.ingress_ifindex == 0,
    }
}
