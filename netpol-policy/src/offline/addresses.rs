//! Placeholder addresses, for pods without an address (docs/semantics.md, item 40) and Services without a cluster IP.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::cluster_state::{ClusterState, Event};
use crate::model::{IpBlock, Object, Peer, Peers, Pod, Policy, RequestedFamilies, Rule, Service};

/// The placeholders of pods. They are in ranges that no pod uses: 240.0.0.0/4 is reserved
/// (<https://www.rfc-editor.org/rfc/rfc1112#section-4>), and `100::/64` is the discard prefix
/// (<https://www.rfc-editor.org/rfc/rfc6666>).
const PODS_V4: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(255, 0, 0, 0), 9);
const PODS_V6: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0x100, 0, 0, 0, 1, 0, 0, 0), 80);
/// The placeholders of Services.
const SERVICES_V4: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(255, 128, 0, 0), 10);
const SERVICES_V6: Ipv6Net = Ipv6Net::new_assert(Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 0), 80);
/// The distance between the placeholders of the first and the second pod of a workload. The second pod exists only to
/// evaluate connections from the workload to itself (docs/semantics.md, item 39).
const SECOND_POD_OFFSET: u32 = 1 << 22;

/// The private ranges of RFC 1918 and RFC 4193. Without `--pod-cidr`, pod addresses are expected in these ranges.
const PRIVATE: [IpNet; 4] = [
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(10, 0, 0, 0), 8)),
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(172, 16, 0, 0), 12)),
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(192, 168, 0, 0), 16)),
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, 0), 7)),
];

/// Returns whether an address is a placeholder: it stands for an unknown address of a pod or Service. Placeholders must
/// not be printed.
pub fn is_placeholder(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => PODS_V4.contains(&address) || SERVICES_V4.contains(&address),
        IpAddr::V6(address) => PODS_V6.contains(&address) || SERVICES_V6.contains(&address),
    }
}

/// Returns the ranges of all placeholders.
pub(super) fn placeholder_ranges() -> [IpNet; 4] {
    [PODS_V4.into(), SERVICES_V4.into(), PODS_V6.into(), SERVICES_V6.into()]
}

/// Returns whether a range is that of the placeholders of pods.
pub(crate) fn is_pod_placeholder_range(range: &IpNet) -> bool {
    *range == pod_placeholder_range(range.addr().is_ipv4())
}

fn pod_placeholder_range(is_ipv4: bool) -> IpNet {
    if is_ipv4 { PODS_V4.into() } else { PODS_V6.into() }
}

/// The ranges that contain all possible pod addresses, and the address families of pods.
#[derive(Clone, Debug)]
pub(super) struct PodRanges {
    ranges: Vec<IpNet>,
    has_v4: bool,
    has_v6: bool,
}

/// Which of the possible pod addresses a block contains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Coverage {
    All,
    Some,
    None,
}

impl PodRanges {
    /// `cidrs`: the values of `--pod-cidr`.
    pub(super) fn new(state: &ClusterState, cidrs: &[IpNet]) -> Self {
        let cidrs_have = |is_ipv4: bool| cidrs.iter().any(|cidr| cidr.addr().is_ipv4() == is_ipv4);
        if !cidrs.is_empty() {
            return Self { ranges: cidrs.to_vec(), has_v4: cidrs_have(true), has_v6: cidrs_have(false) };
        }
        let existing = state.pods.values().find(|pod| pod.is_selectable() && !pod.addresses.is_empty());
        let pod_has = |is_ipv4| existing.is_some_and(|pod| pod.addresses.iter().any(|own| own.is_ipv4() == is_ipv4));
        Self { ranges: PRIVATE.to_vec(), has_v4: existing.is_none() || pod_has(true), has_v6: pod_has(false) }
    }

    fn coverage(&self, block: &IpBlock) -> Coverage {
        // `resolve_rule` may have added the range of placeholders to `except`. This item of `except` is ignored,
        // because no pod in a cluster has an address in this range.
        let except = || block.except.iter().filter(|except| !is_pod_placeholder_range(except));
        let mut ranges = self.ranges.iter().filter(|range| range.addr().is_ipv4() == block.cidr.addr().is_ipv4());
        let has_all = |range: &IpNet| block.cidr.contains(range) && !except().any(|except| overlaps(except, range));
        let has_none = |range: &IpNet| {
            let common = if range.contains(&block.cidr) { &block.cidr } else { range };
            !overlaps(&block.cidr, range) || except().any(|except| except.contains(common))
        };
        if ranges.clone().all(has_none) {
            Coverage::None
        } else if ranges.all(has_all) {
            Coverage::All
        } else {
            Coverage::Some
        }
    }

    /// Returns whether a block contains all possible pod addresses.
    pub(super) fn has_all(&self, block: &IpBlock) -> bool {
        self.coverage(block) == Coverage::All
    }

    /// Returns whether a block contains some of the possible pod addresses, but not all.
    pub(super) fn is_undecided(&self, block: &IpBlock) -> bool {
        self.coverage(block) == Coverage::Some
    }
}

/// Assigns a placeholder address to each pod without an address. Returns whether there are such pods. Host-network pods
/// and finished pods get no placeholder, because policies do not select them.
pub(super) fn assign_to_pods(state: &mut ClusterState, ranges: &PodRanges) -> bool {
    let without_address = state.pods.values().filter(|pod| pod.is_selectable() && pod.addresses.is_empty());
    let pods: Vec<Pod> = without_address.cloned().collect();
    let has_unknown = !pods.is_empty();
    for (mut pod, offset) in pods.into_iter().zip(1..SECOND_POD_OFFSET) {
        let v4 = ranges.has_v4.then(|| v4_at(PODS_V4, offset));
        let v6 = ranges.has_v6.then(|| v6_at(PODS_V6, offset));
        pod.addresses = v4.into_iter().chain(v6).collect();
        state.apply(Event::Apply(Object::Pod(pod)));
    }
    has_unknown
}

/// Returns the placeholders of the second pod of a workload, from those of its first pod.
pub(super) fn of_second_pod(first: &[IpAddr]) -> Vec<IpAddr> {
    let second = |address: &IpAddr| match address {
        IpAddr::V4(address) => Ipv4Addr::from_bits(address.to_bits().saturating_add(SECOND_POD_OFFSET)).into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits().saturating_add(SECOND_POD_OFFSET.into())).into(),
    };
    first.iter().map(second).collect()
}

fn v4_at(range: Ipv4Net, offset: u32) -> IpAddr {
    Ipv4Addr::from_bits(range.network().to_bits().saturating_add(offset)).into()
}

fn v6_at(range: Ipv6Net, offset: u32) -> IpAddr {
    Ipv6Addr::from_bits(range.network().to_bits().saturating_add(offset.into())).into()
}

/// Assigns placeholders to each Service that has no cluster IP but would get one in a cluster.
pub(super) fn assign_to_services(state: &mut ClusterState) {
    let requested = state.services.values().filter_map(|service| Some((service.clone(), service.requested_families?)));
    let requested: Vec<(Service, RequestedFamilies)> = requested.collect();
    for ((mut service, families), offset) in requested.into_iter().zip(1_u32..) {
        // A Service that requests no family gets the default family of the cluster. It is assumed to be the family of
        // the first address of a selected pod, or IPv4 if no pod is selected.
        let mut first = state.pods.values().filter(|pod| service.selects(pod)).filter_map(|pod| pod.addresses.first());
        let is_v4 = families.v4 || !families.v6 && first.next().is_none_or(IpAddr::is_ipv4);
        let is_v6 = families.v6 || !is_v4;
        let addresses = [is_v4.then(|| v4_at(SERVICES_V4, offset)), is_v6.then(|| v6_at(SERVICES_V6, offset))];
        service.addresses = addresses.into_iter().flatten().collect();
        state.apply(Event::Apply(Object::Service(service)));
    }
}

/// Changes the policies in `state`: an `ipBlock` matches placeholders only if it contains all possible pod addresses.
/// If there are blocks that contain only some of these addresses, returns a second state, `most_permissive`. In this
/// state, these blocks match placeholders, too. If the two states have different verdicts for a connection, its verdict
/// is unknown.
pub(super) fn resolve_blocks(state: &mut ClusterState, ranges: &PodRanges) -> Option<ClusterState> {
    let is_undecided = |peer: &Peer| matches!(peer, Peer::Block(block) if ranges.is_undecided(block));
    let has_undecided = |policy: &Policy| {
        let mut rules = policy.ingress.iter().chain(&policy.egress).flatten();
        rules.any(|rule| matches!(&rule.peers, Peers::Of(peers) if peers.iter().any(is_undecided)))
    };
    let policies: Vec<Policy> = state.policies.values().cloned().collect();
    let mut most_permissive = policies.iter().any(has_undecided).then(|| state.clone());
    for policy in policies {
        let resolved = |includes_some: bool| {
            let mut resolved = policy.clone();
            let lists = resolved.ingress.iter_mut().chain(&mut resolved.egress);
            lists.flatten().for_each(|rule| resolve_rule(rule, ranges, includes_some));
            resolved
        };
        let apply_if_changed = |state: &mut ClusterState, resolved: Policy| {
            if resolved != policy {
                state.apply(Event::Apply(Object::Policy(resolved)));
            }
        };
        apply_if_changed(state, resolved(false));
        if let Some(most_permissive) = &mut most_permissive {
            apply_if_changed(most_permissive, resolved(true));
        }
    }
    most_permissive
}

/// Changes a rule so that each of its blocks matches placeholders only if the block contains all possible pod
/// addresses. With `includes_some`, a block that contains only some of these addresses matches placeholders, too.
fn resolve_rule(rule: &mut Rule, ranges: &PodRanges, includes_some: bool) {
    let Peers::Of(peers) = &mut rule.peers else { return };
    let mut added: Vec<IpNet> = Vec::new();
    for peer in peers.iter_mut() {
        let Peer::Block(block) = peer else { continue };
        let range = pod_placeholder_range(block.cidr.addr().is_ipv4());
        let has_placeholders =
            block.cidr.contains(&range) && !block.except.iter().any(|except| overlaps(except, &range));
        let matches = match ranges.coverage(block) {
            Coverage::All => true,
            Coverage::Some => includes_some,
            Coverage::None => false,
        };
        if matches && !has_placeholders {
            added.push(range);
        } else if !matches && overlaps(&block.cidr, &range) {
            block.except.push(if block.cidr.contains(&range) { range } else { block.cidr });
            block.except.sort_unstable();
        }
    }
    added.sort_unstable();
    added.dedup();
    peers.extend(added.into_iter().map(|cidr| Peer::Block(IpBlock { cidr, except: Vec::new() })));
}

fn overlaps(one: &IpNet, other: &IpNet) -> bool {
    one.contains(other) || other.contains(one)
}
