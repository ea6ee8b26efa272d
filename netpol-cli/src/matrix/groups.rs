//! Groups pods that have the same verdicts. The groups are the rows and columns of the matrix.

use std::collections::BTreeMap;

use netpol_policy::model::{NamespaceName, Pod, PodKey, WorkloadKey};
use netpol_policy::offline::{EndId, OfflineCluster, Reachability};
use netpol_policy::reference::End;
use netpol_policy::text::Safe;
use serde::Serialize;

/// Pods of different workloads are in different groups, unless there would be more groups than this.
const MAX_GROUPS_BY_WORKLOAD: usize = 50;
/// Maximum number of workloads in the name of a group.
const MAX_NAMES: usize = 3;

/// An address, or pods of one namespace. The pods have the same verdicts, as sources and as destinations.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Group {
    /// The name, such as `shop/deployment/web (3 pods)`. It is unique.
    pub(super) name: String,
    /// The namespace; `None` for an address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) namespace: Option<NamespaceName>,
    /// The pods, or the address.
    pub(super) members: Vec<String>,
    /// The end that stands for all members as a source. If the only member is an assumed pod (it stands for all pods of
    /// a workload), the source is a second assumed pod of this workload.
    #[serde(skip)]
    pub(super) source: End,
    /// The end that stands for all members as a destination. It is equal to `source` only if the group is an
    /// address or has one actual pod.
    #[serde(skip)]
    pub(super) destination: End,
    /// The class of pods or addresses to which all members of the group belong. All members of a class have the same
    /// verdicts: if one of them can connect to or from an end at a port, all of them can.
    #[serde(skip)]
    pub(super) class: EndId,
    /// The pod of `source` and the pod of `destination`. For an address, both are the pod that has this address.
    #[serde(skip)]
    pods: [Option<PodKey>; 2],
}

/// The namespace, the class of the pods, the workload, and the pod. The pod is set only if it has no workload, and so
/// has its own group. If pods of different workloads share a group, the workload and the pod are `None`.
type GroupKey = (NamespaceName, EndId, Option<WorkloadKey>, Option<PodKey>);

/// Returns the groups of these ends: pods by namespace, then addresses. Pods with the same verdicts share a group if
/// they belong to the same workload. A pod without a workload has its own group. If there would be too many groups, all
/// pods of a namespace that have the same verdicts share a group, even if they belong to different workloads.
pub(super) fn group_ends(reachability: &mut Reachability<'_>, ends: &[End]) -> Vec<Group> {
    // `reachability` can have several clusters. A matrix has only one, with index 0.
    let cluster = reachability.cluster(0);
    let pods = ends.iter().filter_map(|end| match end {
        End::Pod(key) => Some((cluster.state().pods.get(key)?, reachability.end_of(0, key)?)),
        End::Address(_) | End::Service(_) => None,
    });
    let pods: Vec<(&Pod, EndId)> = pods.collect();
    let groups = group_pods(cluster, &pods, true);
    let mut groups = if groups.len() <= MAX_GROUPS_BY_WORKLOAD { groups } else { group_pods(cluster, &pods, false) };
    let addresses = ends.iter().filter_map(|end| {
        let End::Address(address) = end else { return None };
        let pod = cluster.state().peer_at(*address).map(|pod| pod.key.clone());
        Some(Group {
            name: end.to_string(),
            namespace: None,
            members: vec![end.to_string()],
            source: end.clone(),
            destination: end.clone(),
            class: reachability.end_at(0, *address),
            pods: [pod.clone(), pod],
        })
    });
    groups.extend(addresses);
    make_unique(&mut groups);
    groups
}

fn group_pods(cluster: &OfflineCluster, pods: &[(&Pod, EndId)], by_workload: bool) -> Vec<Group> {
    let mut groups: BTreeMap<GroupKey, Vec<&Pod>> = BTreeMap::new();
    for (pod, end) in pods {
        let workload = cluster.workloads().of_pod(&pod.key).filter(|_| by_workload);
        let single_pod = (by_workload && workload.is_none()).then(|| pod.key.clone());
        groups.entry((pod.key.namespace.clone(), *end, workload.cloned(), single_pod)).or_default().push(pod);
    }
    let groups = groups.into_iter().filter_map(|((_, end, ..), pods)| new_group(cluster, end, &pods));
    let mut groups: Vec<Group> = groups.collect();
    groups.sort_by(|one, other| (&one.namespace, &one.name).cmp(&(&other.namespace, &other.name)));
    groups
}

fn new_group(cluster: &OfflineCluster, class: EndId, pods: &[&Pod]) -> Option<Group> {
    let first = pods.first()?;
    // The source is another pod than the destination if the group has several pods, or if its only pod stands for all
    // pods of a workload. So a connection within the group is evaluated between two pods, not as hairpin traffic.
    let source = match pods.get(1) {
        Some(pod) => pod.key.clone(),
        None if first.key.workload().is_some() => first.key.second_of_workload(),
        None => first.key.clone(),
    };
    Some(Group {
        name: group_name(cluster, pods),
        namespace: Some(first.key.namespace.clone()),
        members: pods.iter().map(|pod| pod.key.to_string()).collect(),
        source: End::Pod(source.clone()),
        destination: End::Pod(first.key.clone()),
        class,
        pods: [Some(source), Some(first.key.clone())],
    })
}

/// Returns the names of the workloads, or of pods without a workload, and the number of pods.
fn group_name(cluster: &OfflineCluster, pods: &[&Pod]) -> String {
    let mut names: Vec<String> = Vec::new();
    for pod in pods {
        let workload = cluster.workloads().of_pod(&pod.key);
        let name = match workload {
            Some(workload) => format!("{}/{}", workload.kind.resource(), workload.name),
            None => pod.key.name.to_string(),
        };
        if names.last() != Some(&name) {
            names.push(name);
        }
    }
    let (count, namespace) = (names.len(), pods.first().map_or("", |pod| &pod.key.namespace));
    names.truncate(MAX_NAMES);
    let more = if count > MAX_NAMES { format!(" and {} more", count - MAX_NAMES) } else { String::new() };
    let pods = if pods.len() > 1 { format!(" ({} pods)", pods.len()) } else { String::new() };
    format!("{namespace}/{}{more}{pods}", names.join(", "))
}

/// Numbers groups that have the same name. This happens if pods of one workload have different labels.
fn make_unique(groups: &mut [Group]) {
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    for group in groups {
        let count = seen.entry(group.name.clone()).or_default();
        *count += 1;
        if *count > 1 {
            group.name = format!("{} #{count}", group.name);
        }
    }
}

impl Group {
    /// Returns whether a connection from this group to the group `to` has the same pod at both ends. Such a connection
    /// is always allowed.
    pub(super) fn is_same_pod(&self, to: &Self) -> bool {
        self.pods[0].is_some() && self.pods[0] == to.pods[1]
    }

    /// Returns the name without the namespace, for use below a heading with the namespace.
    pub(super) fn short_name(&self) -> String {
        let prefix = self.namespace.as_ref().map(|namespace| format!("{namespace}/"));
        let name = prefix.and_then(|prefix| self.name.strip_prefix(&*prefix)).unwrap_or(&self.name);
        Safe(name).to_string()
    }
}
