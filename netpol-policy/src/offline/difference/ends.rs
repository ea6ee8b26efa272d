//! Matches the ends of the old cluster with those of the new cluster: workload by workload. An end is a set of pods or
//! addresses with the same allowed connections (to and from the same other ends, at the same ports).

use std::collections::{BTreeMap, BTreeSet};

use super::{NEW, OLD};
use crate::model::{NamespaceName, PodKey};
use crate::offline::{AddressSet, EndId, Reachability, UnitKey, units};

/// Which of the two clusters has a workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Presence {
    /// The old and the new cluster.
    Both,
    /// Only the old cluster.
    Removed,
    /// Only the new cluster.
    Added,
}

/// The members of an end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Members {
    /// Workloads, and pods without a workload, of one namespace.
    Units(NamespaceName, Vec<UnitKey>),
    /// Addresses that no pod has.
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

/// Workloads or addresses that are compared as one end. Their connections with every other end change in the same way.
#[derive(Clone, Debug)]
pub struct DifferenceEnd {
    /// The workloads or addresses.
    pub members: Members,
    /// Which of the two clusters have the members.
    pub presence: Presence,
    /// For each cluster, the end in [`Reachability`] that the members belong to.
    pub(super) ids: [Option<EndId>; 2],
    /// For each cluster, one pod of the members. All other pods of the members have the same verdicts.
    pub(super) pods: [Option<PodKey>; 2],
    /// Whether a cluster has at least two pods of this end. If not, a connection within the end is hairpin traffic.
    pub(super) has_second_pod: bool,
}

impl DifferenceEnd {
    /// Returns whether the members are addresses, not pods.
    pub const fn is_outside(&self) -> bool {
        matches!(self.members, Members::Addresses(_))
    }

    /// Returns whether the members belong to the same end in both clusters.
    pub(super) fn is_unchanged(&self) -> bool {
        self.ids[OLD] == self.ids[NEW]
    }
}

/// What the workloads of a [`Group`] have in common: the namespace, the clusters that have them, and their end in each
/// cluster.
type GroupKey = (NamespaceName, Presence, [Option<EndId>; 2]);

/// Workloads that have a common end in the old cluster, and a common end in the new cluster.
#[derive(Default)]
struct Group {
    units: BTreeSet<UnitKey>,
    /// The pods of the workloads in each cluster.
    pods: [BTreeSet<PodKey>; 2],
}

/// Groups the workloads of both clusters by their ends in the old and the new cluster. Returns the groups, and then the
/// addresses that no pod has.
pub(super) fn joined(reachability: &Reachability<'_>) -> Vec<DifferenceEnd> {
    let [old, new] = [OLD, NEW].map(|cluster| units(reachability.cluster(cluster)));
    let keys: BTreeSet<&UnitKey> = old.keys().chain(new.keys()).collect();
    let mut groups: BTreeMap<GroupKey, Group> = BTreeMap::new();
    for unit in keys {
        let pods = [&old, &new].map(|units| units.get(unit).map(Vec::as_slice).unwrap_or_default());
        let presence = match pods.map(<[PodKey]>::is_empty) {
            [_, true] => Presence::Removed,
            [true, _] => Presence::Added,
            _ => Presence::Both,
        };
        for pair in old_and_new_pods(reachability, pods) {
            let id = |cluster: usize| pair[cluster].and_then(|pod| reachability.end_of(cluster, pod));
            let key = (unit.namespace().clone(), presence, [id(OLD), id(NEW)]);
            let group = groups.entry(key).or_default();
            group.units.insert(unit.clone());
            for (pods, pod) in group.pods.iter_mut().zip(pair) {
                pods.extend(pod.cloned());
            }
        }
    }
    let of_pods = groups.into_iter().map(|((namespace, presence, ids), group)| DifferenceEnd {
        // A pod with a workload in its key stands for all pods of this workload.
        has_second_pod: group.pods.iter().any(|pods| pods.len() > 1 || pods.iter().any(|pod| pod.workload().is_some())),
        members: Members::Units(namespace, group.units.into_iter().collect()),
        presence,
        ids,
        pods: group.pods.map(|pods| pods.into_iter().next()),
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

/// Pairs the pods of a workload in the old cluster with its pods in the new cluster. A pod that is in both clusters is
/// paired with itself. Of the pods that are only in the old cluster, one pod of each end is enough. The same holds for
/// the pods that are only in the new cluster. Each of these old pods is paired with each of these new pods.
fn old_and_new_pods<'p>(
    reachability: &Reachability<'_>,
    [old, new]: [&'p [PodKey]; 2],
) -> Vec<[Option<&'p PodKey>; 2]> {
    let old_keys: BTreeSet<&PodKey> = old.iter().collect();
    let in_both: Vec<&PodKey> = new.iter().filter(|pod| old_keys.contains(*pod)).collect();
    let others = |pods: &'p [PodKey], cluster: usize| {
        let only_here: Vec<&PodKey> = pods.iter().filter(|pod| !in_both.contains(pod)).collect();
        let all = pods.iter().collect();
        // If all pods of this cluster are also in the other cluster, uses all of them: each pod that only the other
        // cluster has is paired with one pod of each end in this cluster.
        one_pod_per_end(reachability, cluster, if only_here.is_empty() { all } else { only_here })
    };
    let has_others = old.len() > in_both.len() || new.len() > in_both.len();
    let mut found: Vec<[Option<&PodKey>; 2]> = in_both.iter().map(|pod| [Some(*pod), Some(*pod)]).collect();
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

/// Returns one pod of each end that these pods belong to.
fn one_pod_per_end<'p>(reachability: &Reachability<'_>, cluster: usize, pods: Vec<&'p PodKey>) -> Vec<&'p PodKey> {
    let mut by_end: BTreeMap<Option<EndId>, &PodKey> = BTreeMap::new();
    for pod in pods {
        by_end.entry(reachability.end_of(cluster, pod)).or_insert(pod);
    }
    by_end.into_values().collect()
}
