//! Compares two versions of a cluster: which connections have another verdict in the new version, and why. The result
//! is exact, for all pods, addresses and ports.
//!
//! An end is a group of pods, or a group of addresses. All members of an end have the same allowed ports to and from
//! each of the other ends (see `reachability`).

mod causes;
mod ends;
mod rows;
mod services;

use std::collections::HashMap;

pub use causes::{ChangeCause, ChangeReason};
pub use ends::{DifferenceEnd, Members, Presence};
pub use rows::Row;
pub use services::{ServiceBackend, ServiceBackends, ServiceChange};

use crate::explain::Verdict;
use crate::offline::intern::Interner;
use crate::offline::{EndId, OfflineCluster, PortIds, PortSet, Reachability};

/// The ports at which the verdict on connections between two ends changes.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortChange {
    /// Denied before, allowed now.
    pub allowed: PortSet,
    /// Allowed before, denied now.
    pub denied: PortSet,
    /// The verdict was or is unknown, and may have changed.
    pub unknown: PortSet,
}

/// How the ports from one source to one destination change, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct PairChange {
    /// The source and the destination, as indices of [`Difference::ends`].
    from: usize,
    to: usize,
    /// The number of the [`PortChange`] in `Comparison::changes`.
    change: u32,
    /// The number of the list of [`ChangeCause`]s in `Comparison::causes`.
    causes: u32,
}

/// All changes between two clusters.
#[derive(Debug)]
pub struct Difference {
    /// Pods and addresses. [`Row`]s refer to them by index.
    pub ends: Vec<DifferenceEnd>,
    /// The changes, sorted by destination.
    pub rows: Vec<Row>,
    /// The changes of connections through Services that have other backends than before.
    pub services: Vec<ServiceChange>,
}

/// The indices of the old and the new cluster in a [`Reachability`].
const OLD: usize = 0;
const NEW: usize = 1;

impl Difference {
    /// Compares all connections of two clusters.
    pub fn new(old: &OfflineCluster, new: &OfflineCluster) -> Self {
        let reachability = Reachability::new(&[old, new]);
        let ends = ends::joined(&reachability);
        let mut comparison = Comparison::new(reachability, &ends);
        let pairs = comparison.pairs();
        let services = comparison.services();
        let rows = rows::grouped(&ends, &pairs, &comparison.changes, &comparison.causes);
        Self { ends, rows, services }
    }
}

/// The state of a comparison.
struct Comparison<'c, 'e> {
    reachability: Reachability<'c>,
    ends: &'e [DifferenceEnd],
    /// A cache of the policies that isolate an end, in one cluster and one direction.
    isolating: HashMap<causes::IsolatingKey, Vec<crate::model::PolicyKey>>,
    /// A cache of the results of [`Comparison::change`], by the old ports, the new ports, and whether the actual
    /// verdict at ports with an unknown verdict may have changed.
    changes_by_ports: HashMap<(PortIds, PortIds, bool), Option<u32>>,
    /// Each distinct change, with a number.
    changes: Interner<PortChange>,
    /// Each distinct list of causes, with a number.
    causes: Interner<Vec<ChangeCause>>,
}

impl<'c, 'e> Comparison<'c, 'e> {
    fn new(reachability: Reachability<'c>, ends: &'e [DifferenceEnd]) -> Self {
        Self {
            reachability,
            ends,
            isolating: HashMap::new(),
            changes_by_ports: HashMap::new(),
            changes: Interner::default(),
            causes: Interner::default(),
        }
    }

    /// Compares the ports of each pair of a source and a destination. Omits pairs of two unchanged ends, pairs of
    /// addresses that no pod has, and the pair of an end with itself if the end has only one pod.
    fn pairs(&mut self) -> Vec<PairChange> {
        let mut found = Vec::new();
        for (to, destination) in self.ends.iter().enumerate() {
            for (from, source) in self.ends.iter().enumerate() {
                let is_unchanged = source.is_unchanged() && destination.is_unchanged();
                let is_outside = source.is_outside() && destination.is_outside();
                if is_unchanged || is_outside || from == to && !source.has_second_pod {
                    continue;
                }
                let [old, new] = [OLD, NEW].map(|cluster| self.ports(source, destination, cluster));
                let Some(change) = self.change(source, destination, [old, new]) else { continue };
                let causes = self.causes(source, destination, change);
                let causes = self.causes.number(causes);
                found.push(PairChange { from, to, change, causes });
            }
        }
        found
    }

    /// Returns the ports between two ends in one cluster. No ports if the cluster does not have both ends.
    fn ports(&mut self, from: &DifferenceEnd, to: &DifferenceEnd, cluster: usize) -> PortIds {
        let ends = from.ids[cluster].zip(to.ids[cluster]);
        ends.and_then(|(from, to)| self.reachability.between(from, to)).unwrap_or(PortIds::NONE)
    }

    /// Returns the number of the [`PortChange`] between two ends; `None` if nothing changes.
    fn change(&mut self, from: &DifferenceEnd, to: &DifferenceEnd, [old, new]: [PortIds; 2]) -> Option<u32> {
        if old == new && !old.has_unknown() {
            return None;
        }
        let both_have_unknown = old.has_unknown() && new.has_unknown();
        let may_differ = both_have_unknown && self.unknown_differs(from, to);
        if let Some(cached) = self.changes_by_ports.get(&(old, new, may_differ)) {
            return *cached;
        }
        // Possible ports are allowed or unknown.
        let [allowed_before, possible_before] = self.reachability.ports(old);
        let [allowed_now, possible_now] = self.reachability.ports(new);
        let unknown_before = possible_before.difference(allowed_before);
        let unknown_now = possible_now.difference(allowed_now);
        let mut unknown = unknown_before.union(&unknown_now);
        if !may_differ {
            unknown = unknown.difference(&unknown_before.intersection(&unknown_now));
        }
        let change = PortChange {
            allowed: allowed_now.difference(possible_before),
            denied: allowed_before.difference(possible_now),
            unknown,
        };
        let number = (change != PortChange::default()).then(|| self.changes.number(change));
        self.changes_by_ports.insert((old, new, may_differ), number);
        number
    }

    /// Returns whether the actual verdict may have changed at ports of which the verdict is unknown in both clusters.
    fn unknown_differs(&self, from: &DifferenceEnd, to: &DifferenceEnd) -> bool {
        let ids = |cluster: usize| from.ids[cluster].zip(to.ids[cluster]);
        let (Some(old), Some(new)) = (ids(OLD), ids(NEW)) else { return true };
        self.reachability.unknown_differs(old, new)
    }
}

impl Difference {
    /// Returns whether a connection that was denied is allowed now, or the reverse.
    pub fn has_known_change(&self) -> bool {
        let known = |verdicts: &[Verdict; 2]| !verdicts.contains(&Verdict::Unknown);
        self.rows.iter().any(Row::has_known_change)
            || self.services.iter().any(|service| service.sources.keys().any(known))
    }

    /// Returns whether a verdict that was or is unknown may have changed.
    pub fn has_unknown(&self) -> bool {
        let unknown = |verdicts: &[Verdict; 2]| verdicts.contains(&Verdict::Unknown);
        self.rows.iter().any(|row| !row.change.unknown.is_empty())
            || self.services.iter().any(|service| service.sources.keys().any(unknown))
    }
}

impl Row {
    /// Returns whether a port that was denied is allowed now, or the reverse.
    fn has_known_change(&self) -> bool {
        !self.change.allowed.is_empty() || !self.change.denied.is_empty()
    }
}

/// The source and the destination in one cluster.
type Pair = (EndId, EndId);

impl Reachability<'_> {
    /// Returns whether the old pair and the new pair may have different actual verdicts at ports with unknown verdicts.
    /// This is so if the two pairs have different policies that netpol does not evaluate, or different rules that
    /// depend on unknown addresses. It is also so if these policies and rules are the same, but the remote addresses
    /// differ.
    fn unknown_differs(&self, old: Pair, new: Pair) -> bool {
        // Egress at the source, and ingress at the destination.
        let sides = [(old.0, old.1, new.0, new.1), (old.1, old.0, new.1, new.0)];
        let directions = [netpol_common::Direction::Egress, netpol_common::Direction::Ingress];
        sides.into_iter().zip(directions).any(|((old, old_remote, new, new_remote), direction)| {
            let [before, now] = [old, new].map(|end| self.unknown_part(end, direction));
            let is_same_remote = self.have_same_address_classes(old_remote, new_remote);
            before != now || !is_same_remote && before.is_some_and(|part| !part.is_empty())
        })
    }
}

#[cfg(test)]
mod tests;
