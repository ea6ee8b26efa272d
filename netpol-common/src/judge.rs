//! The verdict on an attempt to open a flow. The kernel programs and the agent's in-memory tables run this same code.

use crate::{
    AddressEntry, AllowEntry, AllowKey, ClassId, Direction, Endpoint, PortEntry, PortKey, PortSetId, Reason, RuleId,
    address_flags, endpoint_flags, port_verdict, protocol,
};

/// An IPv4 or IPv6 address, in network byte order.
pub trait Address: Copy + PartialEq {
    /// The endpoint's own address of this family; zeros where it has none.
    fn own(endpoint: &Endpoint) -> Self;
    /// Whether it is the unspecified address.
    fn is_zero(&self) -> bool;
}

impl Address for [u8; 4] {
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
    /// What a rule set allows to a class beyond what it allows to anyone.
    fn allow(&self, key: &AllowKey) -> Option<AllowEntry>;
    /// The longest match for a port in a set.
    fn port(&self, key: &PortKey) -> Option<PortEntry>;
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
}

impl Judgement {
    #[inline(always)]
    const fn because(reason: Reason, class: ClassId) -> Self {
        Self { reason, class, rule: RuleId::NONE }
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
            return Judgement::because(Reason::OwnNode, entry.class);
        }
        // Sent by the pod to a Service it is behind, and masqueraded on its way back.
        if attempt.ingress_ifindex == endpoint.ifindex.0 {
            return Judgement::because(Reason::Itself, entry.class);
        }
    }
    let mut allowed = AllowEntry { port_set: policy.any, rule: RuleId::NONE };
    if entry.class != ClassId::NOBODY
        && let Some(found) = tables.allow(&AllowKey { rule_set: policy.rule_set, class: entry.class })
    {
        allowed = found;
    }
    if allowed.port_set == PortSetId::ALL {
        return Judgement { reason: Reason::Rule, class: entry.class, rule: allowed.rule };
    }
    if allowed.port_set != PortSetId::NONE && protocol::has_ports(attempt.protocol) {
        let key = PortKey { set: allowed.port_set, protocol: attempt.protocol, zero: 0, port: attempt.port };
        if let Some(port) = tables.port(&key)
            && port.verdict == port_verdict::ALLOW
        {
            return Judgement { reason: Reason::Rule, class: entry.class, rule: port.rule };
        }
    }
    let reason = if endpoint.has(endpoint_flags::INCOMPLETE) { Reason::TablesIncomplete } else { Reason::NoRule };
    Judgement::because(reason, entry.class)
}

/// A pod reaches itself at its own address, also where a Service sends it back: such a packet comes in by its own veth,
/// or by the bridge that veth is a port of.
#[inline(always)]
fn is_itself<A: Address>(endpoint: &Endpoint, attempt: &Attempt<A>) -> bool {
    let own = A::own(endpoint);
    if own.is_zero() || attempt.remote != own {
        return false;
    }
    match attempt.direction {
        Direction::Egress => true,
        Direction::Ingress => {
            attempt.ingress_ifindex == endpoint.ifindex.0
                || (endpoint.bridge.0 != 0 && attempt.ingress_ifindex == endpoint.bridge.0)
        }
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
