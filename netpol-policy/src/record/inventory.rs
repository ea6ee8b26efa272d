//! Groups pods by the workload that controls them, and finds labels that select the pods of a group.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use super::observation::{ObservedEnd, Recorder};
use super::{SelectorLabels, labels_in_common, selector};
use crate::model::{Labels, Pod, PodKey};
use crate::offline::OfflineCluster;

/// The key of a group: a workload, or a pod that no workload controls.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct GroupKey {
    /// The namespace.
    pub namespace: Arc<str>,
    /// The name of the workload or pod.
    pub name: Arc<str>,
    /// `Deployment`, …, or `Pod`.
    pub kind: Arc<str>,
}

/// Writes `Deployment shop/web`.
impl fmt::Display for GroupKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
    }
}

/// A group of pods: the pods of a workload, or a single pod.
#[derive(Clone, Debug, Default)]
pub(super) struct Group {
    /// The labels of its pods. Pods with equal labels have one entry. Empty if no labels are known.
    labels: BTreeSet<Labels>,
    /// The labels that select its pods.
    pub(super) selector: SelectorLabels,
    /// Other groups that have pods with the labels in `selector`.
    pub(super) also_selects: Vec<GroupKey>,
}

impl Group {
    /// Returns whether the labels of its pods are known.
    pub(super) fn is_known(&self) -> bool {
        !self.labels.is_empty()
    }

    /// Returns the labels of one of its pods; `None` if no labels are known.
    pub(super) fn any_labels(&self) -> Option<Labels> {
        self.labels.first().cloned()
    }
}

/// All pods with their groups. Host-network pods have no group, because selectors do not match them.
#[derive(Clone, Debug, Default)]
pub(super) struct Inventory {
    groups: BTreeMap<GroupKey, Group>,
    /// The group of each pod.
    by_pod: BTreeMap<PodKey, GroupKey>,
    host_network: BTreeSet<PodKey>,
}

impl Inventory {
    /// Groups the pods of the cluster, and the pods that are a source or destination of recorded flows. The latter may
    /// have been deleted from the cluster.
    pub(super) fn new(cluster: &OfflineCluster, recorder: &Recorder) -> Self {
        let mut inventory = Self::default();
        for pod in cluster.state().pods.values() {
            if pod.host_network {
                inventory.host_network.insert(pod.key.clone());
                continue;
            }
            let group = group_of(pod, cluster);
            inventory.add(pod.key.clone(), group, Some(&pod.labels));
        }
        for (observation, _) in recorder.observations() {
            for end in [&observation.from, &observation.to] {
                if let Some(pod) = &end.pod {
                    let existing = inventory.by_pod.get(pod).cloned();
                    let group = existing.unwrap_or_else(|| group_of_end(pod, end));
                    inventory.add(pod.clone(), group, end.labels.as_ref());
                }
            }
        }
        inventory.choose_selectors();
        inventory
    }

    fn add(&mut self, pod: PodKey, key: GroupKey, labels: Option<&Labels>) {
        let group = self.groups.entry(key.clone()).or_default();
        group.labels.extend(labels.cloned());
        self.by_pod.insert(pod, key);
    }

    /// Chooses the selector of each group: labels that all pods of the group have. If possible, no other pods of the
    /// namespace have these labels.
    fn choose_selectors(&mut self) {
        let mut by_namespace: BTreeMap<&Arc<str>, Vec<(&GroupKey, &Labels)>> = BTreeMap::new();
        for (key, group) in &self.groups {
            by_namespace.entry(&key.namespace).or_default().extend(group.labels.iter().map(|labels| (key, labels)));
        }
        let mut chosen = Vec::new();
        for (key, group) in &self.groups {
            let others = by_namespace.get(&key.namespace).into_iter().flatten().filter(|(other, _)| *other != key);
            let other_labels: Vec<&Labels> = others.clone().map(|(_, labels)| *labels).collect();
            let selector = selector::choose(&labels_in_common(&group.labels), &other_labels);
            let selected = others.filter(|(_, labels)| selector::selects(&selector, labels));
            let also_selects: BTreeSet<GroupKey> = selected.map(|(other, _)| (*other).clone()).collect();
            chosen.push((key.clone(), selector, also_selects));
        }
        for (key, selector, also_selects) in chosen {
            if let Some(group) = self.groups.get_mut(&key) {
                (group.selector, group.also_selects) = (selector, also_selects.into_iter().collect());
            }
        }
    }

    pub(super) fn groups(&self) -> impl Iterator<Item = (&GroupKey, &Group)> {
        self.groups.iter()
    }

    pub(super) fn get(&self, key: &GroupKey) -> Option<&Group> {
        self.groups.get(key)
    }

    /// Returns the group of a pod; `None` for a host-network pod.
    pub(super) fn of_pod(&self, pod: &PodKey) -> Option<&GroupKey> {
        self.by_pod.get(pod)
    }

    pub(super) fn is_host_network(&self, pod: &PodKey) -> bool {
        self.host_network.contains(pod)
    }
}

/// Returns the group of a pod of the cluster. The pod's object usually contains the workload. For an assumed pod
/// (created from a template), the pod's key or `cluster.workloads()` contains the workload.
fn group_of(pod: &Pod, cluster: &OfflineCluster) -> GroupKey {
    let namespace = pod.key.namespace.clone();
    if let Some(workload) = &pod.workload {
        return GroupKey { namespace, kind: workload.kind.clone(), name: workload.name.clone() };
    }
    match pod.key.workload().as_ref().or_else(|| cluster.workloads().of_pod(&pod.key)) {
        Some(workload) => GroupKey { namespace, kind: workload.kind.name().into(), name: workload.name.clone() },
        None => GroupKey { namespace, kind: "Pod".into(), name: pod.key.name.clone() },
    }
}

/// Returns the group of a pod that is a source or destination of a flow, but is not in the cluster.
fn group_of_end(pod: &PodKey, end: &ObservedEnd) -> GroupKey {
    let namespace = pod.namespace.clone();
    match &end.workload {
        Some(workload) => GroupKey { namespace, kind: workload.kind.clone(), name: workload.name.clone() },
        None => GroupKey { namespace, kind: "Pod".into(), name: pod.name.clone() },
    }
}
