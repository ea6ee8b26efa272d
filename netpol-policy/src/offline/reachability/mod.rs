//! Computes at which ports each source can connect to each destination. The result is exact, for all pods, addresses
//! and ports.
//!
//! An **end** is a class of pods, or of addresses that no pod has. A **condition** is what a peer of a rule requires
//! (selectors or an `ipBlock`). All members of an end have the same rules and match the same conditions. So the ports
//! between two ends are computed once for all of their members. A **side** is the policies of a pod in one direction. A
//! connection must be allowed by two sides: egress at its source and ingress at its destination.
//!
//! ```text
//! policies ─► rules: a number for each condition ─► ends: a number for each set of rules and matching conditions
//!                                                     └► for each pair of ends: the set of ports
//! ```
//!
//! Several clusters (such as the old and the new version for `netpol diff`) can be compiled with the same numbers. Then
//! an end that has the same number in two clusters has the same rules and matches the same conditions in both clusters.

mod ends;
mod rules;
mod units;

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use netpol_common::Direction;

use ends::{CompiledCluster, EndClass, Side, Values};
use rules::CompiledRule;

pub use ends::OutsideAddresses;
pub use units::{UnitKey, units};

use crate::model::{PodKey, PolicyKey};
use crate::offline::intern::Interner;
use crate::offline::{AddressSet, OfflineCluster, PortSet};
use crate::reference::{self, RuleRef};

/// The number of an end: a class of pods or addresses. All members of an end have the same allowed ports to and from
/// each other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EndId(u32);

/// The numbers of two port sets: the allowed ports, and the possible ports (allowed, or the verdict is unknown).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortIds {
    allowed: u32,
    possible: u32,
}

/// Why one side allows ports.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RuleCause {
    /// No policy isolates the pod in this direction.
    NotIsolated,
    /// These rules allow some of the ports.
    Rules(Vec<RuleRef>),
}

/// The ports between all ends of one cluster, or of several.
#[derive(Debug)]
pub struct Reachability<'c> {
    clusters: Vec<CompiledCluster<'c>>,
    /// The pods of each cluster, with the numbers of their ends.
    pods: Vec<BTreeMap<PodKey, u32>>,
    outside: Vec<OutsideAddresses>,
    /// The addresses of pods and Services, and all placeholders (addresses that netpol assigns to pods and Services
    /// with unknown addresses).
    inside: AddressSet,
    /// The conditions, rules, sides, address classes and ends, by number.
    values: Values,
    /// The port sets, by number.
    sets: Interner<PortSet>,
    /// The ports that a side allows, by the side, the direction and the class of the remote address.
    ports_of_sides: HashMap<(u32, Direction, u32), PortIds>,
    /// The intersection of two port sets, by their numbers in ascending order.
    intersections: HashMap<(u32, u32), u32>,
}

impl<'c> Reachability<'c> {
    /// Compiles the policies of these clusters.
    pub fn new(clusters: &[&'c OfflineCluster]) -> Self {
        let mut values = Values::default();
        let clusters: Vec<_> = clusters.iter().map(|cluster| CompiledCluster::new(cluster, &mut values)).collect();
        let pods = clusters.iter().map(|cluster| cluster.pods(&mut values)).collect();
        let states: Vec<_> = clusters.iter().map(|compiled| compiled.cluster.state()).collect();
        let inside = ends::addresses_inside(&states);
        let outside = ends::outside(&states, &inside, &mut values);
        let mut sets = Interner::default();
        sets.number(PortSet::default());
        sets.number(PortSet::all());
        let (ports_of_sides, intersections) = (HashMap::new(), HashMap::new());
        Self { clusters, pods, outside, inside, values, sets, ports_of_sides, intersections }
    }

    /// Returns the cluster with this index.
    pub fn cluster(&self, cluster: usize) -> &'c OfflineCluster {
        self.clusters[cluster].cluster
    }

    /// Returns the end of a pod; `None` if it is not in the cluster, has finished, or is on the host network.
    pub fn end_of(&self, cluster: usize, pod: &PodKey) -> Option<EndId> {
        self.pods[cluster].get(pod).copied().map(EndId)
    }

    /// Returns the ends without pods, with their addresses. The ends are the same in all clusters. Each end has
    /// addresses of one family. Families in which no pod has an address are omitted.
    pub fn outside(&self) -> &[OutsideAddresses] {
        &self.outside
    }

    /// Returns the addresses of a set, without those of pods and Services, split into ends.
    pub fn outside_in(&self, set: &AddressSet) -> Vec<(EndId, AddressSet)> {
        let set = set.difference(&self.inside);
        let parts = self.outside.iter().map(|part| (part.end(), part.addresses.intersection(&set)));
        parts.filter(|(_, addresses)| !addresses.is_empty()).collect()
    }

    /// Returns the port sets with these numbers: the allowed ports, and the ports that are allowed or unknown.
    pub fn ports(&self, ids: PortIds) -> [&PortSet; 2] {
        [self.sets.value(ids.allowed), self.sets.value(ids.possible)]
    }

    /// Returns the end of one address. If a pod has this address, the end has the policies of the pod.
    pub fn end_at(&mut self, cluster: usize, address: IpAddr) -> EndId {
        let state = self.clusters[cluster].cluster.state();
        let pod = state.peer_at(address).and_then(|pod| self.pods[cluster].get(&pod.key));
        let pod = pod.map(|end| self.values.ends.value(*end).clone());
        let class = ends::address_class(state, address, &mut self.values);
        let addresses = if address.is_ipv4() { [Some(class), None] } else { [None, Some(class)] };
        let (sides, shared) = pod.map_or((None, None), |pod| (pod.sides, pod.shared));
        EndId(self.values.ends.number(EndClass { sides, addresses, shared }))
    }

    /// Returns the ports at which `from` can connect to `to` in every address family that they have in common; `None`
    /// if they have none in common. If `from` is `to`, these are the ports between two different pods of the end.
    pub fn between(&mut self, from: EndId, to: EndId) -> Option<PortIds> {
        let sides = self.sides(from, to);
        let mut result: Option<PortIds> = None;
        for [ingress, egress] in sides.into_iter().flatten() {
            let in_family = self.allowed_by_both(ingress, egress);
            result = Some(result.map_or(in_family, |result| self.allowed_by_both(result, in_family)));
        }
        result
    }

    /// Returns the ports that each side of a connection from `from` to `to` allows: ingress at `to`, then egress at
    /// `from`. The first result is for IPv4, the second one for IPv6; `None` for a family that the ends do not have in
    /// common.
    pub fn sides(&mut self, from: EndId, to: EndId) -> [Option<[PortIds; 2]>; 2] {
        let (source, destination) = (self.class_of(from), self.class_of(to));
        // A pod that shares an address with another pod has an end of its own, with `shared`. If `shared` is equal in
        // both ends, source and destination are the same pod: all hairpin traffic of this pod is allowed.
        let is_same_pod = source.shared.is_some() && source.shared == destination.shared;
        [0, 1].map(|family| {
            let (source_class, destination_class) = source.addresses[family].zip(destination.addresses[family])?;
            let egress = source.sides.filter(|_| !is_same_pod && !shares_address(&source, &destination, family));
            let ingress = destination.sides.filter(|_| !is_same_pod);
            let sides = [(ingress, Direction::Ingress, source_class), (egress, Direction::Egress, destination_class)];
            Some(sides.map(|(sides, direction, remote)| {
                sides.map_or(PortIds::ALL, |sides| self.ports_of_side(sides[direction as usize], direction, remote))
            }))
        })
    }

    /// Returns the ports that one side of a connection allows in every address family that the ends have in common. The
    /// side is egress at `from`, or ingress at `to`. The other side is ignored.
    pub fn side_between(&mut self, from: EndId, to: EndId, direction: Direction) -> PortIds {
        let (own, other) = if direction == Direction::Egress { (from, to) } else { (to, from) };
        let (own, other) = (self.class_of(own), self.class_of(other));
        let mut result = PortIds::ALL;
        let Some(sides) = own.sides else { return result };
        for family in [0, 1] {
            if let (Some(_), Some(remote)) = (own.addresses[family], other.addresses[family]) {
                let in_family = self.ports_of_side(sides[direction as usize], direction, remote);
                result = self.allowed_by_both(result, in_family);
            }
        }
        result
    }

    /// Returns what makes ports of a side unknown: the numbers of rules that depend on unknown addresses, and the
    /// hashes of policies that netpol does not evaluate. `None` for an end without pods.
    pub(super) fn unknown_part(&self, end: EndId, direction: Direction) -> Option<Vec<u64>> {
        let sides = self.values.ends.value(end.0).sides?;
        let Side { rules, possible_rules, unevaluated } = self.values.sides.value(sides[direction as usize]);
        let known = rules.as_deref().unwrap_or_default();
        let possible = possible_rules.iter().flatten().filter(|rule| known.binary_search(rule).is_err());
        Some(possible.map(|rule| u64::from(*rule)).chain(unevaluated.iter().copied()).collect())
    }

    /// Returns whether the addresses of two ends have the same classes: they match the same peers of rules, and have
    /// the same named ports.
    pub(super) fn have_same_address_classes(&self, one: EndId, other: EndId) -> bool {
        self.values.ends.value(one.0).addresses == self.values.ends.value(other.0).addresses
    }

    fn class_of(&self, end: EndId) -> EndClass {
        self.values.ends.value(end.0).clone()
    }

    /// Returns the ports that a side allows if the other end has an address of a class. `side` and `remote`: the
    /// numbers of the side and of the class.
    fn ports_of_side(&mut self, side: u32, direction: Direction, remote: u32) -> PortIds {
        if let Some(ids) = self.ports_of_sides.get(&(side, direction, remote)) {
            return *ids;
        }
        let Side { rules, possible_rules, unevaluated } = self.values.sides.value(side);
        let sets = if unevaluated.is_empty() {
            [rules, possible_rules].map(|rules| self.ports_of_rules(rules.as_deref(), direction, remote))
        } else {
            [PortSet::default(), PortSet::all()]
        };
        let [allowed, possible] = sets.map(|set| self.sets.number(set));
        let ids = PortIds { allowed, possible };
        self.ports_of_sides.insert((side, direction, remote), ids);
        ids
    }

    /// Returns the ports that any of these rules allows; all ports if no policy isolates the pod (`None`).
    fn ports_of_rules(&self, rules: Option<&[u32]>, direction: Direction, remote: u32) -> PortSet {
        let Some(rules) = rules else { return PortSet::all() };
        let rules = rules.iter().map(|rule| self.values.rules.value(*rule));
        let sets = rules.filter_map(|rule| self.ports_of_rule(rule, direction, remote));
        sets.reduce(|all, set| all.union(&set)).unwrap_or_default()
    }

    /// Returns the ports that a rule allows if the other end has an address of a class; `None` if the rule's peers do
    /// not match the class.
    fn ports_of_rule(&self, rule: &CompiledRule, direction: Direction, remote: u32) -> Option<PortSet> {
        let remote = self.values.addresses.value(remote);
        // Port names in an ingress rule were resolved when the rule was compiled for the pod.
        let named = if direction == Direction::Egress { &remote.named_ports[..] } else { &[] };
        remote.matches(rule).then(|| rule.ports_at(named))
    }

    fn allowed_by_both(&mut self, one: PortIds, other: PortIds) -> PortIds {
        let allowed = self.intersection(one.allowed, other.allowed);
        let possible = self.intersection(one.possible, other.possible);
        PortIds { allowed, possible }
    }

    /// Returns the number of the intersection of two port sets.
    fn intersection(&mut self, one: u32, other: u32) -> u32 {
        match (one.min(other), one.max(other)) {
            (NO_PORTS, _) => NO_PORTS,
            (ALL_PORTS, other) => other,
            (one, other) if one == other => one,
            key => {
                if let Some(set) = self.intersections.get(&key) {
                    return *set;
                }
                let set = self.sets.value(key.0).intersection(self.sets.value(key.1));
                let number = self.sets.number(set);
                self.intersections.insert(key, number);
                number
            }
        }
    }

    /// Returns the policies that isolate a pod.
    pub fn isolating(&self, cluster: usize, pod: &PodKey, direction: Direction) -> Vec<PolicyKey> {
        let state = self.cluster(cluster).state();
        let pod = state.pods.get(pod);
        let policies = pod.into_iter().flat_map(|pod| reference::isolating(state, pod, direction));
        policies.map(|policy| policy.key.clone()).collect()
    }

    /// Returns why the policies of a pod allow connections with the other end at some of these ports. If they allow
    /// none of the ports, the result is an empty list of rules.
    pub fn allowing(
        &self,
        cluster: usize,
        pod: &PodKey,
        direction: Direction,
        other: EndId,
        ports: &PortSet,
    ) -> RuleCause {
        let isolating = self.isolating(cluster, pod, direction);
        if isolating.is_empty() {
            return RuleCause::NotIsolated;
        }
        let named = self.cluster(cluster).state().pods.get(pod).map(|pod| &pod.ports[..]).unwrap_or_default();
        let remotes: Vec<u32> = self.values.ends.value(other.0).addresses.into_iter().flatten().collect();
        let allows = |rule: &CompiledRule| {
            let rule = if direction == Direction::Ingress { &rule.resolved_at(named) } else { rule };
            let mut sets = remotes.iter().filter_map(|remote| self.ports_of_rule(rule, direction, *remote));
            sets.any(|set| !set.intersection(ports).is_empty())
        };
        let mut found = Vec::new();
        for policy in isolating {
            let rules =
                self.clusters[cluster].policies.get(&policy).and_then(|rules| rules[direction as usize].as_ref());
            let indices = rules.into_iter().flatten().enumerate().filter(|(_, rule)| allows(rule));
            found.extend(indices.map(|(index, _)| RuleRef { policy: policy.clone(), direction, index }));
        }
        RuleCause::Rules(found)
    }
}

impl OutsideAddresses {
    /// Returns the end.
    pub const fn end(&self) -> EndId {
        EndId(self.end)
    }
}

/// The numbers of the empty port set and of the set of all ports. [`Reachability::new`] adds these sets first.
const NO_PORTS: u32 = 0;
const ALL_PORTS: u32 = 1;

impl PortIds {
    /// All ports are allowed.
    pub const ALL: Self = Self { allowed: ALL_PORTS, possible: ALL_PORTS };
    /// No port is allowed.
    pub const NONE: Self = Self { allowed: NO_PORTS, possible: NO_PORTS };

    /// Returns whether a port is unknown.
    pub const fn has_unknown(self) -> bool {
        self.allowed != self.possible
    }

    /// Returns whether all ports are allowed.
    pub const fn has_all(self) -> bool {
        self.allowed == ALL_PORTS
    }

    /// Returns whether no port is allowed or unknown.
    pub const fn is_none(self) -> bool {
        self.possible == NO_PORTS
    }
}

/// Returns whether the destination has an address of the source. If so, the source's egress policies do not apply:
/// packets of a pod to its own address are hairpin traffic.
fn shares_address(source: &EndClass, destination: &EndClass, family: usize) -> bool {
    let (Some((_, own)), Some((_, other))) = (&source.shared, &destination.shared) else { return false };
    let has_family = |address: &&IpAddr| usize::from(address.is_ipv6()) == family;
    other.iter().filter(has_family).any(|address| own.contains(address))
}

#[cfg(test)]
pub(crate) mod tests;
