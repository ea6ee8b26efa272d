//! The ends of both clusters, joined by workload.

use std::collections::{BTreeMap, BTreeSet};

use super::{NEW, OLD};
use crate::model::{NamespaceName, PodKey};
use crate::offline::{AddressSet, EndId, Reachability, UnitKey, units};

/// The cluster in which workloads exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Presence {
    /// In both.
    Both,
    /// Only in the old one.
    Removed,
    /// Only in the new one.
    Added,
}

/// What an end stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Members {
    /// Workloads and pods of one namespace.
    Units(NamespaceName, Vec<UnitKey>),
    /// Addresses outside of pods.
    Addresses(AddressSet),
}

impl Members {
    /// Returns the first workload or pod.
    fn first(&self) -> Option<&UnitKey> {
        match self {
            Self::Units(_, units) => units.first(),
            Self::Addresses(_) => None,
        }
    }
}

/// Workloads or addresses with the same changes with every other end.
#[derive(Clone, Debug)]
pub struct DifferenceEnd {
    /// The workloads or addresses.
    pub members: Members,
    /// Where they exist.
    pub presence: Presence,
    pub(super) ids: [Option<EndId>; 2],
    /// A pod that stands for all of them, in each cluster.
    pub(super) pods: [Option<PodKey>; 2],
    /// Whether there is a connection of the end to itself that is not hairpin traffic.
    pub(super) has_second_pod: bool,
}

impl DifferenceEnd {
    /// Returns whether the end is not a pod.
    pub const fn is_outside(&self) -> bool {
        matches!(self.members, Members::Addresses(_))
    }

    pub(super) fn is_unchanged(&self) -> bool {
        self.ids[OLD] == self.ids[NEW]
    }
}

type ClassKey = (NamespaceName, Presence, [Option<EndId>; 2]);

/// The members of a class, and the pods that stand for it.
#[derive(Default)]
struct Class {
    units: BTreeSet<UnitKey>,
    pods: [BTreeSet<PodKey>; 2],
}

/// Joins the workloads of both clusters, and the addresses outside of them.
pub(super) fn joined(reachability: &Reachability<'_>) -> Vec<DifferenceEnd> {
    let [old, new] = [OLD, NEW].map(|cluster| units(reachability.cluster(cluster)));
    let keys: BTreeSet<&UnitKey> = old.keys().chain(new.keys()).collect();
    let mut classes: BTreeMap<ClassKey, Class> = BTreeMap::new();
    for unit in keys {
        let pods = [&old, &new].map(|units| units.get(unit).map(Vec::as_slice).unwrap_or_default());
        let presence = match pods.map(<[PodKey]>::is_empty) {
            [_, true] => Presence::Removed,
            [true, _] => Presence::Added,
            _ => Presence::Both,
        };
        for pair in pairs(reachability, pods) {
            let id = |cluster: usize| pair[cluster].and_then(|pod| reachability.end_of(cluster, pod));
            let key = (unit.namespace().clone(), presence, [id(OLD), id(NEW)]);
            let class = classes.entry(key).or_default();
            class.units.insert(unit.clone());
            for (pods, pod) in class.pods.iter_mut().zip(pair) {
                pods.extend(pod.cloned());
            }
        }
    }
    let of_pods = classes.into_iter().map(|((namespace, presence, ids), class)| DifferenceEnd {
        has_second_pod: class.pods.iter().any(|pods| pods.len() > 1 || pods.iter().any(|pod| pod.workload().is_some())),
        members: Members::Units(namespace, class.units.into_iter().collect()),
        presence,
        ids,
        pods: class.pods.map(|pods| pods.into_iter().next()),
    });
    let outside = reachability.outside().iter().map(|outside| DifferenceEnd {
        members: Members::Addresses(outside.addresses.clone()),
        presence: Presence::Both,
        ids: [Some(outside.end()); 2],
        pods: [None, None],
        has_second_pod: false,
    });
    let mut ends: Vec<DifferenceEnd> = of_pods.collect();
    ends.sort_by_cached_key(|end| end.members.first().map(|unit| (unit.namespace().clone(), unit.short_name())));
    ends.extend(outside);
    ends
}

/// Pairs the old and new pods of a workload: those with the same name, and the others with each of the other cluster
/// that differs.
fn pairs<'p>(reachability: &Reachability<'_>, [old, new]: [&'p [PodKey]; 2]) -> Vec<[Option<&'p PodKey>; 2]> {
    let names: BTreeSet<&PodKey> = old.iter().collect();
    let both: Vec<&PodKey> = new.iter().filter(|pod| names.contains(*pod)).collect();
    let others = |pods: &'p [PodKey], cluster: usize| {
        let left: Vec<&PodKey> = pods.iter().filter(|pod| !both.contains(pod)).collect();
        let all = pods.iter().collect();
        // If only one cluster has other pods, all pods of the other cluster are their predecessors or successors.
        distinct(reachability, cluster, if left.is_empty() { all } else { left })
    };
    let has_others = old.len() > both.len() || new.len() > both.len();
    let mut found: Vec<[Option<&PodKey>; 2]> = both.iter().map(|pod| [Some(*pod), Some(*pod)]).collect();
    if !has_others {
        return found;
    }
    let (old, new) = (others(old, OLD), others(new, NEW));
    match (&old[..], &new[..]) {
        ([], new) => found.extend(new.iter().map(|pod| [None, Some(*pod)])),
        (old, []) => found.extend(old.iter().map(|pod| [Some(*pod), None])),
        (old, new) => found.extend(old.iter().flat_map(|old| new.iter().map(|new| [Some(*old), Some(*new)]))),
    }
    found
}

/// Returns one pod of each end.
fn distinct<'p>(reachability: &Reachability<'_>, cluster: usize, pods: Vec<&'p PodKey>) -> Vec<&'p PodKey> {
    let mut by_end: BTreeMap<Option<EndId>, &PodKey> = BTreeMap::new();
    for pod in pods {
        by_end.entry(reachability.end_of(cluster, pod)).or_insert(pod);
    }
    by_end.into_values().collect()
}
