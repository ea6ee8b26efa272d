//! An end is a class of pods, or of addresses that no pod has. This module finds the ends, and everything that decides
//! at which ports two ends can connect: rules, sides and address classes. Each distinct value has a number: see
//! [`Values`].

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use netpol_common::Direction;

use super::rules::{CompiledPolicy, CompiledRule, Condition, compile};
use crate::cluster_state::ClusterState;
use crate::model::{Labels, NamedPort, NamespaceName, Pod, PodKey, PolicyKey, Protocol};
use crate::offline::intern::Interner;
use crate::offline::{AddressSet, OfflineCluster, is_placeholder};
use crate::reference::{self, Remote};

/// A side: the policies of a pod in one direction. `rules` and `possible_rules` differ only if some addresses are
/// unknown.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Side {
    /// The numbers of the rules in [`OfflineCluster::state`], sorted. These rules allow connections. `None`: no policy
    /// isolates the pod.
    pub(super) rules: Option<Vec<u32>>,
    /// The numbers of the rules in [`OfflineCluster::most_permissive`], sorted. These rules allow connections, or may
    /// allow them, depending on unknown addresses. `None`: no policy isolates the pod.
    pub(super) possible_rules: Option<Vec<u32>>,
    /// The hashes of the policies that netpol does not evaluate and that may change the verdict, sorted.
    pub(super) unevaluated: Vec<u64>,
}

/// A class of addresses. The same peers of rules match all of them. If the addresses are those of pods, these pods have
/// the same named ports. Ports with names that no egress rule uses may differ.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct AddressClass {
    /// A bit for each [`Condition`] (a peer of a rule), set if the condition matches.
    conditions: Vec<u64>,
    /// The named ports of a pod with such an address, sorted. Only names that an egress rule uses.
    pub(super) named_ports: Vec<NamedPort>,
}

/// An end: pods, or addresses that no pod has. Two pods belong to the same end if all these fields are equal.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct EndClass {
    /// The numbers of the sides, in the order of [`Direction::BOTH`]; `None` if no policy can apply.
    pub(super) sides: Option<[u32; 2]>,
    /// The numbers of the address classes of the IPv4 address and of the IPv6 address.
    pub(super) addresses: [Option<u32>; 2],
    /// The key and the addresses of a pod that shares an address with another pod. Such a pod is an end of its own: its
    /// traffic to the shared address is hairpin traffic, to which its egress policies do not apply. If a pod without
    /// this address sends to the address, the egress policies of the sender apply.
    pub(super) shared: Option<(PodKey, Vec<IpAddr>)>,
}

/// The distinct values of all clusters in a [`Reachability`](super::Reachability), each with a number. Values refer to
/// each other by number: for example, a side contains the numbers of its rules.
#[derive(Clone, Debug, Default)]
pub(super) struct Values {
    pub(super) conditions: Interner<Condition>,
    pub(super) rules: Interner<CompiledRule>,
    pub(super) sides: Interner<Side>,
    pub(super) addresses: Interner<AddressClass>,
    pub(super) ends: Interner<EndClass>,
    /// The port names in egress rules.
    port_names: BTreeSet<(Protocol, Arc<str>)>,
}

/// A cluster with compiled policies.
#[derive(Debug)]
pub(super) struct CompiledCluster<'c> {
    pub(super) cluster: &'c OfflineCluster,
    pub(super) policies: BTreeMap<PolicyKey, CompiledPolicy>,
    /// The policies in [`OfflineCluster::most_permissive`], if the cluster has this state.
    most_permissive: Option<BTreeMap<PolicyKey, CompiledPolicy>>,
}

impl<'c> CompiledCluster<'c> {
    pub(super) fn new(cluster: &'c OfflineCluster, values: &mut Values) -> Self {
        let policies = compile(cluster.state(), &mut values.conditions);
        let most_permissive = cluster.most_permissive().map(|state| compile(state, &mut values.conditions));
        for rules in policies.values().chain(most_permissive.iter().flat_map(BTreeMap::values)) {
            let egress = rules[Direction::Egress as usize].iter().flatten();
            values.port_names.extend(egress.flat_map(|rule| rule.port_names.iter().cloned()));
        }
        Self { cluster, policies, most_permissive }
    }

    /// Returns the pods that policies can select, with the numbers of their ends.
    pub(super) fn pods(&self, values: &mut Values) -> BTreeMap<PodKey, u32> {
        let state = self.cluster.state();
        let (mut by_labels, mut by_address) = (HashMap::new(), HashMap::new());
        let mut found = BTreeMap::new();
        for pod in state.pods.values().filter(|pod| pod.is_selectable() && !pod.addresses.is_empty()) {
            let sides = Direction::BOTH.map(|direction| self.side(pod, direction, values));
            let mut addresses = [None, None];
            for address in &pod.addresses {
                let class = cached_address_class(state, *address, values, &mut by_labels, &mut by_address);
                addresses[usize::from(address.is_ipv6())].get_or_insert(class);
            }
            let is_shared = pod.addresses.iter().any(|address| {
                state.peer_at(*address).is_none_or(|peer| peer.key != pod.key)
                    || state.pods_with_address(*address).nth(1).is_some()
            });
            let shared = is_shared.then(|| (pod.key.clone(), pod.addresses.clone()));
            let end = values.ends.number(EndClass { sides: Some(sides), addresses, shared });
            found.insert(pod.key.clone(), end);
        }
        found
    }

    fn side(&self, pod: &Pod, direction: Direction, values: &mut Values) -> u32 {
        let isolating: Vec<&PolicyKey> =
            reference::isolating(self.cluster.state(), pod, direction).map(|policy| &policy.key).collect();
        let named: &[NamedPort] = if direction == Direction::Ingress { &pod.ports } else { &[] };
        let mut rules_in = |policies: &BTreeMap<PolicyKey, CompiledPolicy>| {
            let rules_of = |key: &&PolicyKey| policies.get(*key).and_then(|policy| policy[direction as usize].as_ref());
            let rules = isolating.iter().filter_map(rules_of).flatten();
            let mut numbers: Vec<u32> = rules
                .map(|rule| match direction {
                    Direction::Ingress => values.rules.number(rule.resolved_at(named)),
                    Direction::Egress => values.rules.number(rule.clone()),
                })
                .collect();
            numbers.sort_unstable();
            numbers.dedup();
            (!isolating.is_empty()).then_some(numbers)
        };
        let rules = rules_in(&self.policies);
        let possible_rules = self.most_permissive.as_ref().map_or_else(|| rules.clone(), rules_in);
        let unevaluated = self.cluster.unevaluated_for_pod(pod, direction).into_iter();
        let mut unevaluated: Vec<u64> = unevaluated.map(|index| self.cluster.unevaluated()[index].content).collect();
        unevaluated.sort_unstable();
        values.sides.number(Side { rules, possible_rules, unevaluated })
    }
}

/// The bits of the conditions on pods, by namespace and labels of a pod.
type BitsByLabels = HashMap<(NamespaceName, Labels), Vec<u64>>;
/// The bits of the conditions on blocks, by address.
type BitsByAddress = HashMap<IpAddr, Vec<u64>>;

/// Returns the number of the class of an address in a state.
pub(super) fn address_class(state: &ClusterState, address: IpAddr, values: &mut Values) -> u32 {
    cached_address_class(state, address, values, &mut HashMap::new(), &mut HashMap::new())
}

/// Returns the number of the class of an address in a state. `by_labels` and `by_address` are caches.
fn cached_address_class(
    state: &ClusterState,
    address: IpAddr,
    values: &mut Values,
    by_labels: &mut BitsByLabels,
    by_address: &mut BitsByAddress,
) -> u32 {
    let remote = Remote::of(state, address);
    let mut conditions =
        by_address.entry(address).or_insert_with(|| matching_blocks(&values.conditions, address)).clone();
    let mut named_ports = Vec::new();
    if let Some(pod) = remote.pod {
        let key = (pod.key.namespace.clone(), pod.labels.clone());
        let of_labels = by_labels.entry(key).or_insert_with(|| matching_pods(&values.conditions, state, pod));
        conditions.iter_mut().zip(of_labels).for_each(|(all, matching)| *all |= *matching);
        let is_used = |port: &&NamedPort| values.port_names.contains(&(port.protocol, port.name.clone()));
        named_ports = pod.ports.iter().filter(is_used).cloned().collect();
        named_ports.sort_unstable();
        named_ports.dedup();
    }
    values.addresses.number(AddressClass { conditions, named_ports })
}

/// Returns a bit for each condition, set if `holds` returns true.
fn bits(conditions: &Interner<Condition>, holds: impl Fn(&Condition) -> bool) -> Vec<u64> {
    let mut bits = vec![0_u64; conditions.len().div_ceil(64)];
    for (index, _) in conditions.iter().enumerate().filter(|(_, condition)| holds(condition)) {
        bits[index / 64] |= 1 << (index % 64);
    }
    bits
}

fn matching_blocks(conditions: &Interner<Condition>, address: IpAddr) -> Vec<u64> {
    bits(conditions, |condition| matches!(condition, Condition::Block(block) if block.contains(address)))
}

fn matching_pods(conditions: &Interner<Condition>, state: &ClusterState, pod: &Pod) -> Vec<u64> {
    let namespace = state.namespace_labels(&pod.key.namespace);
    bits(conditions, |condition| match condition {
        Condition::PodsOf(name, pods) => *name == pod.key.namespace && pods.matches(&pod.labels),
        Condition::Pods(namespaces, pods) => namespaces.matches(&namespace) && pods.matches(&pod.labels),
        Condition::Block(_) => false,
    })
}

impl AddressClass {
    /// Returns whether the peers of a rule match the addresses of this class.
    pub(super) fn matches(&self, rule: &CompiledRule) -> bool {
        let holds = |number: &u32| self.conditions[*number as usize / 64] & (1 << (*number % 64)) != 0;
        rule.peers.as_ref().is_none_or(|peers| peers.iter().any(holds))
    }
}

/// An end without pods: addresses that no pod has. Each pod can connect with all of them at the same ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutsideAddresses {
    /// The addresses. The set may include addresses of pods and Services, which do not belong to this end.
    pub addresses: AddressSet,
    /// An address of the set that no pod and no Service has.
    pub example: IpAddr,
    pub(super) end: u32,
}

/// All addresses of each family.
const FAMILIES: [IpNet; 2] = [
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0)),
    IpNet::V6(Ipv6Net::new_assert(Ipv6Addr::UNSPECIFIED, 0)),
];

/// Splits all addresses at the edges of the blocks in all policies, and returns the parts as ends. Omits address
/// families in which no pod has an address.
pub(super) fn outside(states: &[&ClusterState], inside: &AddressSet, values: &mut Values) -> Vec<OutsideAddresses> {
    let mut parts: BTreeMap<u32, Vec<(IpAddr, IpAddr)>> = BTreeMap::new();
    let pods = || states.iter().flat_map(|state| state.pods.values()).filter(|pod| pod.is_selectable());
    let has_pod = |family: &IpNet| {
        let mut addresses = pods().flat_map(|pod| &pod.addresses);
        addresses.any(|address| address.is_ipv4() == family.addr().is_ipv4())
    };
    let all = AddressSet::of(FAMILIES.into_iter().filter(has_pod));
    for (first, last) in all.split_at(blocks_and_exceptions(&values.conditions)) {
        let conditions = matching_blocks(&values.conditions, first);
        let class = values.addresses.number(AddressClass { conditions, named_ports: Vec::new() });
        let addresses = if first.is_ipv4() { [Some(class), None] } else { [None, Some(class)] };
        let end = values.ends.number(EndClass { sides: None, addresses, shared: None });
        parts.entry(end).or_default().push((first, last));
    }
    let found = parts.into_iter().filter_map(|(end, ranges)| {
        let addresses = AddressSet::of_ranges(ranges);
        let example = addresses.difference(inside).first()?;
        Some(OutsideAddresses { addresses, example, end })
    });
    found.collect()
}

/// Returns the addresses of pods and Services, and all placeholders (addresses that netpol assigns to pods and Services
/// with unknown addresses).
pub(super) fn addresses_inside(states: &[&ClusterState]) -> AddressSet {
    let pods = states.iter().flat_map(|state| state.pods.values()).filter(|pod| pod.is_selectable());
    let services = states.iter().flat_map(|state| state.services.values());
    let services = services.flat_map(|service| service.addresses.iter().copied());
    let addresses = AddressSet::of_addresses(pods.flat_map(|pod| pod.addresses.iter().copied()).chain(services));
    addresses.union(&AddressSet::of(crate::offline::addresses::placeholder_ranges()))
}

/// Returns the blocks of the conditions, and their exceptions.
fn blocks_and_exceptions(conditions: &Interner<Condition>) -> impl Iterator<Item = &IpNet> {
    let blocks = conditions.iter().filter_map(|condition| match condition {
        Condition::Block(block) => Some(block),
        Condition::PodsOf(..) | Condition::Pods(..) => None,
    });
    let nets = blocks.flat_map(|block| std::iter::once(&block.cidr).chain(&block.except));
    // netpol has added ranges of placeholders to blocks and exceptions. These ranges are not in the manifests.
    nets.filter(|net| !is_placeholder(net.addr()))
}
