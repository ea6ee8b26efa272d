//! The verdict on an attempt to open a flow. The kernel programs and the agent's in-memory tables run this same code.

use crate::{
    AddressEntry, AllowEntry, AllowKey, ClassId, Direction, DirectionPolicy, Endpoint, FrontendEntry, FrontendKey,
    PortEntry, PortKey, PortSetId, Reason, RuleId, TunnelScope, TunnelWord, address_flags, endpoint_flags,
    frontend_scope, port_verdict, protocol,
};

/// An IPv4 or IPv6 address, in network byte order.
pub trait Address: Copy + PartialEq {
    /// The unspecified address.
    const ZERO: Self;
    /// The endpoint's own address of this family; zeros where it has none.
    fn own(endpoint: &Endpoint) -> Self;
    /// Whether it is the unspecified address.
    fn is_zero(&self) -> bool;
    /// Whether every node receives packets to it, without having it: multicast, limited broadcast and loopback addresses. (A node
    /// with `route_localnet`, which kube-proxy sets, takes packets to 127.0.0.0/8 from pods: CVE-2020-8558.)
    fn is_of_any_node(&self) -> bool;
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

    #[inline(always)]
    fn is_of_any_node(&self) -> bool {
        let [first, ..] = *self;
        first == 127 || first & 0xf0 == 224 || u32::from_ne_bytes(*self) == u32::MAX
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

    #[inline(always)]
    fn is_of_any_node(&self) -> bool {
        self[0] == 0xff || u128::from_ne_bytes(*self) == 1_u128.to_be()
    }
}

/// Where [`judge`] looks things up: the kernel's maps, or the same tables in memory. `A` is the address family.
pub trait Tables<A> {
    /// The address's own entry, else that of the longest prefix that covers it.
    fn address(&self, address: &A) -> Option<AddressEntry>;
    /// The address's own entry only: flags and endpoint are in no other.
    #[inline(always)]
    fn exact_address(&self, address: &A) -> Option<AddressEntry> {
        self.address(address)
    }
    /// The entry of an address that has none of its own: that of the longest prefix that covers it.
    #[inline(always)]
    fn prefix(&self, address: &A) -> Option<AddressEntry> {
        self.address(address)
    }
    /// The port of a Service.
    fn frontend(&self, key: &FrontendKey<A>) -> Option<FrontendEntry>;
    /// What a rule set allows to a class beyond what it allows to anyone.
    fn allow(&self, key: &AllowKey) -> Option<AllowEntry>;
    /// The longest match for a port in a set.
    fn port(&self, key: &PortKey) -> Option<PortEntry>;
    /// The value itself, which the verifier then knows nothing of: it looks at the rest once and not for each value.
    #[inline(always)]
    fn barrier(&self, value: u8) -> u8 {
        value
    }
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
    /// Ingress: how the source address is checked against the endpoints of this node.
    pub source: SourceCheck,
    /// Egress: it is past the place where Services send packets on. One that still goes to a Service then is sent on elsewhere.
    pub behind: bool,
}

/// How the source address of a packet that reaches a pod is checked. A number rather than an enum, so that the verifier does not look
/// at the rest once for each.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SourceCheck(pub u8);

impl SourceCheck {
    /// Not at all: the local node originated the packet, its source endpoint has this address or is not checked, or it belongs to
    /// a flow.
    pub const NONE: Self = Self(0);
    /// It has no source endpoint ID: the address must not be that of an endpoint of this node.
    pub const FROM_ELSEWHERE: Self = Self(1);
    /// It has a source endpoint ID, and the address is not that endpoint's: it must be the local node's, which masquerades, or a
    /// Service's, as replies have. The latter start no flow.
    pub const TRANSLATED: Self = Self(2);
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
    /// Somebody else may be behind the remote: each packet is to be judged again by where it goes then. Ingress: the packet is to
    /// make no flow.
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
    let tunnels = tables.barrier(tunnels(tables, attempt));
    let checked = attempt.source.0 != SourceCheck::NONE.0;
    if !policy.isolated() && !checked && tunnels == 0 {
        return Judgement::because(Reason::NotIsolated, ClassId::NOBODY);
    }
    if policy.isolated() && is_itself(endpoint, attempt) {
        return Judgement::because(Reason::Itself, ClassId::NOBODY);
    }
    // The one lookup of the address itself: the kernel's stack is short.
    let (has_own, entry) = match tables.exact_address(&attempt.remote) {
        Some(entry) => (true, entry),
        None => (false, AddressEntry::default()),
    };
    if is_spoofed(endpoint, attempt, entry) {
        return Judgement::because(Reason::SpoofedSource, entry.class);
    }
    if tunnels != 0 && is_tunnel(tunnels, attempt, entry) {
        return Judgement::because(Reason::TunnelEndpoint, entry.class);
    }
    let again = tables.barrier(u8::from(is_reply_of_service(attempt, entry))) != 0;
    if !policy.isolated() {
        return Judgement { again, ..Judgement::because(Reason::NotIsolated, ClassId::NOBODY) };
    }
    let entry = if has_own { entry } else { tables.prefix(&attempt.remote).unwrap_or_default() };
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
        return Judgement { rule: allowed.rule, again, ..Judgement::because(Reason::Rule, entry.class) };
    }
    if allowed.port_set != PortSetId::NONE && protocol::has_ports(attempt.protocol) {
        let key = PortKey { set: allowed.port_set, protocol: attempt.protocol, zero: 0, port: attempt.port };
        if let Some(port) = tables.port(&key)
            && port.verdict == port_verdict::ALLOW
        {
            return Judgement { rule: port.rule, again, ..Judgement::because(Reason::Rule, entry.class) };
        }
    }
    Judgement::because(unless_incomplete(endpoint, Reason::NoRule), entry.class)
}

/// Whether a packet that reaches a pod has the address of an endpoint that did not send it.
#[inline(always)]
fn is_spoofed<A>(endpoint: &Endpoint, attempt: &Attempt<A>, entry: AddressEntry) -> bool {
    match attempt.source {
        SourceCheck::FROM_ELSEWHERE => entry.endpoint != 0,
        // To itself, replies have the pod's own address or the node's.
        SourceCheck::TRANSLATED => {
            entry.flags & address_flags::OWN_NODE == 0
                && (entry.flags & address_flags::SERVICE == 0 || attempt.sender == endpoint.id)
        }
        _ => false,
    }
}

/// Whether a packet that reaches a pod is what a backend on this node replied to it through a Service.
#[inline(always)]
fn is_reply_of_service<A>(attempt: &Attempt<A>, entry: AddressEntry) -> bool {
    attempt.source.0 == SourceCheck::TRANSLATED.0 && entry.flags & address_flags::OWN_NODE == 0
}

/// Bits of [`tunnels`].
const LOCAL: u8 = 1;
const OTHERS: u8 = 2;

/// The nodes that have a tunnel at what a pod sends to. Asked before its address is looked up: few ports have a tunnel.
#[inline(always)]
fn tunnels<A, T: Tables<A>>(tables: &T, attempt: &Attempt<A>) -> u8 {
    let mut found = 0;
    if matches!(attempt.direction, Direction::Egress) {
        for (scope, bit) in [(TunnelScope::LocalNode, LOCAL), (TunnelScope::OtherNodes, OTHERS)] {
            if let Some(word) = TunnelWord::of_packet(scope, attempt.protocol, attempt.port)
                && tables.tunnels(word.index) & word.bit != 0
            {
                found |= bit;
            }
        }
    }
    found
}

/// Whether the address that a pod sends to is one of those nodes'.
#[inline(always)]
fn is_tunnel<A: Address>(tunnels: u8, attempt: &Attempt<A>, entry: AddressEntry) -> bool {
    let is_local = entry.flags & address_flags::OWN_NODE != 0 || attempt.remote.is_of_any_node();
    (tunnels & LOCAL != 0 && is_local) || (tunnels & OTHERS != 0 && entry.flags & address_flags::NODE != 0)
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
