//! Evaluates the policies for a new flow. The same code runs in the eBPF programs and on tables in memory.

use crate::{
    AddressEntry, AllowEntry, AllowKey, ClassId, Direction, DirectionPolicy, Endpoint, FrontendEntry, FrontendKey,
    PortEntry, PortKey, PortSetId, Reason, RuleId, TunnelBit, TunnelScope, address_flags, endpoint_flags,
    frontend_scope, port_verdict, protocol,
};

/// An IPv4 or IPv6 address, in network byte order.
pub trait Address: Copy + PartialEq {
    /// The unspecified address.
    const ZERO: Self;
    /// Returns the endpoint's address of this family, or zero if it has none.
    fn own(endpoint: &Endpoint) -> Self;
    /// Returns whether this is the unspecified address.
    fn is_zero(&self) -> bool;
    /// Returns whether every node receives packets to this address, regardless of the node's own addresses: multicast,
    /// limited broadcast and loopback addresses. (With `route_localnet`, which kube-proxy sets, a node accepts packets
    /// to 127.0.0.0/8 from pods: CVE-2020-8558.)
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

/// The tables that [`evaluate`] looks up: the kernel's maps, or the same tables in memory. `A` is the address family.
pub trait Tables<A> {
    /// Returns the entry of exactly this address. If there is none, returns the entry of the longest prefix that covers
    /// the address.
    fn address(&self, address: &A) -> Option<AddressEntry>;
    /// Returns the entry of this address. If there is none, an implementation may return the entry that
    /// [`Self::prefix`] would return. The verdict is the same: the flags and the endpoint of such an entry are 0, as if
    /// there were no entry, and its class is looked up next in any case.
    #[inline(always)]
    fn exact_address(&self, address: &A) -> Option<AddressEntry> {
        self.address(address)
    }
    /// Returns the entry of the longest prefix that covers an address. Called only if the address has no entry itself.
    #[inline(always)]
    fn prefix(&self, address: &A) -> Option<AddressEntry> {
        self.address(address)
    }
    /// Returns the entry of a frontend.
    fn frontend(&self, key: &FrontendKey<A>) -> Option<FrontendEntry>;
    /// Returns what a rule set allows to a class. `None`: no more than it allows to every address.
    fn allow(&self, key: &AllowKey) -> Option<AllowEntry>;
    /// Looks up a port in a port set: returns the entry of the longest port prefix that contains the port.
    fn port(&self, key: &PortKey) -> Option<PortEntry>;
    /// Returns the value unchanged, but hides it from the verifier. The verifier then checks the code that follows only
    /// once, and not once for each value.
    #[inline(always)]
    fn barrier(&self, value: u8) -> u8 {
        value
    }
    /// Returns the word at an index of `TUNNELS`, a bitmap of tunnel endpoints: see [`TunnelBit`](crate::TunnelBit).
    /// The default, 0, is for tables without tunnel endpoints.
    #[inline(always)]
    fn tunnels(&self, _index: u32) -> u64 {
        0
    }
}

/// The first packet of a flow, from the endpoint's point of view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempt<A> {
    /// The direction of the packet.
    pub direction: Direction,
    /// The remote address.
    pub remote: A,
    /// IP protocol number.
    pub protocol: u8,
    /// Destination port in network byte order; zero for protocols without ports.
    pub port: [u8; 2],
    /// Ingress: the interface by which the packet came into the node, from `skb->skb_iif`. 0 if this node sent the
    /// packet. The name `ingress_ifindex` is the kernel's: <https://docs.kernel.org/bpf/prog_sk_lookup.html>.
    pub ingress_ifindex: u32,
    /// Ingress: the source endpoint ID. This is the [`Endpoint::id`] of the pod of this node that sent the packet, even
    /// if the packet's source address was translated. 0 if no pod of this node sent it.
    pub source_endpoint: u32,
    /// Ingress: how to check the source address against the endpoints of this node.
    pub source: SourceCheck,
    /// Egress: the packet is post-DNAT. If its destination is still a Service address, another node selects the
    /// backend.
    pub post_dnat: bool,
}

/// How to check the source address of a packet to a pod. This is a number and not an enum: for an enum, the verifier
/// would check the code that follows once for each variant.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SourceCheck(pub u8);

impl SourceCheck {
    /// No check is needed, for one of these reasons:
    /// * The local node sent the packet.
    /// * The packet came directly from the veth of its source endpoint, where it was checked.
    /// * The source address is that of the source endpoint, or anti-spoofing is off for that endpoint.
    /// * A known flow is evaluated again.
    pub const NONE: Self = Self(0);
    /// The packet has no source endpoint ID. Its source address must not be that of an endpoint of this node.
    pub const NOT_LOCAL_ENDPOINT: Self = Self(1);
    /// The packet has a source endpoint ID, but not the address of that endpoint. Its source address must be the local
    /// node's (masquerading) or a Service's (a reply, which starts no flow).
    pub const TRANSLATED: Self = Self(2);
}

impl<A> Attempt<A> {
    /// Ingress: returns whether the pod of this endpoint sent the packet (hairpin). Either the packet came in by the
    /// pod's veth, or it carries the pod's endpoint ID. The ID is needed because the ingress interface changes if the
    /// packet passes through a bridge.
    #[inline(always)]
    pub const fn is_from(&self, endpoint: &Endpoint) -> bool {
        self.ingress_ifindex == endpoint.ifindex.0 || (self.source_endpoint != 0 && self.source_endpoint == endpoint.id)
    }
}

/// The result of [`evaluate`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Evaluation {
    /// The verdict and the reason for it.
    pub reason: Reason,
    /// The class of the remote address; for a flow to a Service, the class of the frontend. `NONE` if no class was
    /// needed.
    pub class: ClassId,
    /// The rule that allows the flow, if there is one.
    pub rule: RuleId,
    /// The meaning depends on the direction. Egress: the destination may be translated, so each packet of the flow must
    /// be rechecked post-DNAT. Ingress: the packet is a reply through a Service, so it starts no flow; nothing is
    /// rechecked.
    pub recheck: bool,
}

impl Evaluation {
    /// Only for a flow to a frontend (a port of a Service at one address). Returns which port set, in the `ALLOW` entry
    /// of the frontend's class, leads to this result.
    pub const fn port_set(&self) -> PortSetId {
        match (self.reason.allows(), self.recheck) {
            (true, false) => PortSetId::ALL,
            (true, true) => PortSetId::SOME,
            (false, _) => PortSetId::NONE,
        }
    }

    #[inline(always)]
    const fn without_rule(reason: Reason, class: ClassId) -> Self {
        Self { reason, class, rule: RuleId::NONE, recheck: false }
    }
}

/// Evaluates a new flow by the policy of an endpoint in the direction of the flow. The caller has already handled
/// packets of known flows, and verdicts that do not depend on policy (malformed packets, anti-spoofing, neighbor
/// discovery).
#[inline(always)]
pub fn evaluate<A: Address, T: Tables<A>>(tables: &T, endpoint: &Endpoint, attempt: &Attempt<A>) -> Evaluation {
    if endpoint.has(endpoint_flags::UNKNOWN) {
        return Evaluation::without_rule(Reason::UnknownPod, ClassId::NONE);
    }
    evaluate_policy(tables, endpoint, endpoint.policy(attempt.direction), attempt)
}

/// Evaluates a new flow by one compiled policy of an endpoint. The endpoint must not have the flag `UNKNOWN`.
/// `policy`: [`Endpoint::policy`] (from the enforced `NetworkPolicies`) or [`Endpoint::shadow_policy`] (also from those
/// in shadow mode).
#[inline(always)]
pub fn evaluate_policy<A: Address, T: Tables<A>>(
    tables: &T,
    endpoint: &Endpoint,
    policy: DirectionPolicy,
    attempt: &Attempt<A>,
) -> Evaluation {
    let tunnels = tables.barrier(nodes_with_tunnel(tables, attempt));
    let checks_source = attempt.source.0 != SourceCheck::NONE.0;
    if !policy.isolated() && !checks_source && tunnels == 0 {
        return Evaluation::without_rule(Reason::NotIsolated, ClassId::NONE);
    }
    if policy.isolated() && is_hairpin(endpoint, attempt) {
        return Evaluation::without_rule(Reason::Hairpin, ClassId::NONE);
    }
    // One lookup serves the two checks below and the class, because a BPF stack has only 512 bytes.
    let (has_exact, entry) = match tables.exact_address(&attempt.remote) {
        Some(entry) => (true, entry),
        None => (false, AddressEntry::default()),
    };
    if is_unverified(endpoint, attempt, entry) {
        return Evaluation::without_rule(Reason::UnverifiedSource, entry.class);
    }
    if tunnels != 0 && is_tunnel(tunnels, attempt, entry) {
        return Evaluation::without_rule(Reason::TunnelEndpoint, entry.class);
    }
    // Only for ingress, see `Evaluation::recheck`.
    let recheck = tables.barrier(u8::from(is_reply_of_service(attempt, entry))) != 0;
    if !policy.isolated() {
        return Evaluation { recheck, ..Evaluation::without_rule(Reason::NotIsolated, ClassId::NONE) };
    }
    let entry = if has_exact { entry } else { tables.prefix(&attempt.remote).unwrap_or_default() };
    if entry.flags & address_flags::LOCAL_NODE != 0 {
        if is_local_node(attempt) {
            // NodePorts and hostPorts are at these addresses, too. So the packet is evaluated again when its backend is
            // known.
            let recheck = matches!(attempt.direction, Direction::Egress);
            return Evaluation { recheck, ..Evaluation::without_rule(Reason::LocalNode, entry.class) };
        }
        // Hairpin traffic: the pod sent the packet to a Service with itself as a backend, and the node masqueraded it.
        if attempt.is_from(endpoint) {
            return Evaluation::without_rule(Reason::Hairpin, entry.class);
        }
    }
    // `policy.any` is the port set for every address. If it is `ALL`, every Service is allowed without a lookup.
    if matches!(attempt.direction, Direction::Egress)
        && policy.any != PortSetId::ALL
        && let Some(frontend) = frontend(tables, attempt, entry.flags)
    {
        return evaluate_frontend(tables, endpoint, policy, attempt.post_dnat, frontend.class);
    }
    // The entry of a class, if there is one, includes what is allowed to every address.
    let mut allowed = AllowEntry { port_set: policy.any, rule: RuleId::NONE };
    if entry.class != ClassId::NONE
        && let Some(found) = tables.allow(&AllowKey { rule_set: policy.rule_set, class: entry.class })
    {
        allowed = found;
    }
    if allowed.port_set == PortSetId::ALL {
        return Evaluation { rule: allowed.rule, recheck, ..Evaluation::without_rule(Reason::Rule, entry.class) };
    }
    if allowed.port_set != PortSetId::NONE && protocol::has_ports(attempt.protocol) {
        let key = PortKey { set: allowed.port_set, protocol: attempt.protocol, zero: 0, port: attempt.port };
        if let Some(port) = tables.port(&key)
            && port.verdict == port_verdict::ALLOW
        {
            return Evaluation { rule: port.rule, recheck, ..Evaluation::without_rule(Reason::Rule, entry.class) };
        }
    }
    Evaluation::without_rule(or_incomplete(endpoint, Reason::NoRule), entry.class)
}

/// Returns whether a packet to a pod fails the check of its source address.
#[inline(always)]
fn is_unverified<A>(endpoint: &Endpoint, attempt: &Attempt<A>, entry: AddressEntry) -> bool {
    match attempt.source {
        SourceCheck::NOT_LOCAL_ENDPOINT => entry.endpoint != 0,
        // Hairpin traffic that starts a flow has the source address of the pod or the node, never of a Service. So with
        // a Service's address, the check fails if the pod itself sent the packet.
        SourceCheck::TRANSLATED => {
            entry.flags & address_flags::LOCAL_NODE == 0
                && (entry.flags & address_flags::SERVICE == 0 || attempt.source_endpoint == endpoint.id)
        }
        _ => false,
    }
}

/// Returns whether a packet to a pod is a reply, through a Service, from a backend on this node. Called only after
/// [`is_unverified`] has returned false. So a translated source address is the local node's or a Service's.
#[inline(always)]
fn is_reply_of_service<A>(attempt: &Attempt<A>, entry: AddressEntry) -> bool {
    attempt.source.0 == SourceCheck::TRANSLATED.0 && entry.flags & address_flags::LOCAL_NODE == 0
}

/// Bits that [`nodes_with_tunnel`] returns.
const LOCAL: u8 = 1;
const OTHERS: u8 = 2;

/// Returns which nodes have a tunnel endpoint at the destination port or protocol of a packet. Called before the lookup
/// of the address: if no node has such a tunnel endpoint, a packet of a pod that is not isolated needs no lookup.
#[inline(always)]
fn nodes_with_tunnel<A, T: Tables<A>>(tables: &T, attempt: &Attempt<A>) -> u8 {
    let mut found = 0;
    if matches!(attempt.direction, Direction::Egress) {
        for (scope, bit) in [(TunnelScope::LocalNode, LOCAL), (TunnelScope::OtherNodes, OTHERS)] {
            if let Some(word) = TunnelBit::of_packet(scope, attempt.protocol, attempt.port)
                && tables.tunnels(word.index) & word.bit != 0
            {
                found |= bit;
            }
        }
    }
    found
}

/// Returns whether the destination address belongs to one of the nodes in `tunnels`, the result of
/// [`nodes_with_tunnel`].
#[inline(always)]
fn is_tunnel<A: Address>(tunnels: u8, attempt: &Attempt<A>, entry: AddressEntry) -> bool {
    let is_local = entry.flags & address_flags::LOCAL_NODE != 0 || attempt.remote.is_of_any_node();
    (tunnels & LOCAL != 0 && is_local) || (tunnels & OTHERS != 0 && entry.flags & address_flags::NODE != 0)
}

/// Returns the frontend at the destination address and port, or `None` if there is none.
#[inline(always)]
fn frontend<A: Address, T: Tables<A>>(tables: &T, attempt: &Attempt<A>, flags: u16) -> Option<FrontendEntry> {
    if flags & (address_flags::SERVICE | address_flags::NODE) == 0 {
        return None;
    }
    // One key for both lookups, because a BPF stack has only 512 bytes.
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

/// Evaluates a flow to a Service by its backend set. If only some backends are allowed, a pre-DNAT packet is allowed
/// and rechecked post-DNAT. A post-DNAT packet is denied in this case, because another node selects the backend.
#[inline(always)]
fn evaluate_frontend<A: Address, T: Tables<A>>(
    tables: &T,
    endpoint: &Endpoint,
    policy: DirectionPolicy,
    post_dnat: bool,
    class: ClassId,
) -> Evaluation {
    let allowed = tables.allow(&AllowKey { rule_set: policy.rule_set, class }).unwrap_or_default().port_set;
    let allows_some = allowed == PortSetId::SOME;
    if allowed == PortSetId::ALL || (allows_some && !post_dnat) {
        return Evaluation { recheck: allows_some, ..Evaluation::without_rule(Reason::Service, class) };
    }
    let reason =
        if allows_some { Reason::NotAllBackendsAllowed } else { or_incomplete(endpoint, Reason::NoAllowedBackend) };
    Evaluation::without_rule(reason, class)
}

/// Returns the reason for denying a packet that no entry allows: `TablesIncomplete` if some entries of the endpoint are
/// missing, otherwise `reason`.
#[inline(always)]
const fn or_incomplete(endpoint: &Endpoint, reason: Reason) -> Reason {
    if endpoint.has(endpoint_flags::INCOMPLETE) { Reason::TablesIncomplete } else { reason }
}

/// Returns whether the pod reaches itself (hairpin) at its own address.
#[inline(always)]
fn is_hairpin<A: Address>(endpoint: &Endpoint, attempt: &Attempt<A>) -> bool {
    let own = A::own(endpoint);
    if own.is_zero() || attempt.remote != own {
        return false;
    }
    match attempt.direction {
        Direction::Egress => true,
        Direction::Ingress => attempt.is_from(endpoint),
    }
}

/// Returns whether the local node itself sends or receives a packet. The caller has checked that the remote address is
/// the local node's. Masqueraded packets have this address, too, but they came in by an interface.
#[inline(always)]
fn is_local_node<A>(attempt: &Attempt<A>) -> bool {
    match attempt.direction {
        Direction::Egress => true,
        Direction::Ingress => attempt.ingress_ifindex == 0,
    }
}
