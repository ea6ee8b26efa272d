//! Groups of pods with the same verdicts: the rows and columns of the matrix.

use std::collections::BTreeMap;

use netpol_common::Direction;
use netpol_policy::model::{NamespaceName, Pod, PodKey, WorkloadKey};
use netpol_policy::reference::End;
use netpol_policy::text::Safe;
use serde::Serialize;

use crate::verdict::{EndClass, Evaluator};

/// Up to this number of groups, pods of different workloads are in different groups.
const MAX_GROUPS_BY_WORKLOAD: usize = 50;
/// Maximum number of workloads in the name of a group.
const MAX_NAMES: usize = 3;

/// An address, or pods of one namespace that have equal verdicts, both when they are the source and when they are the
/// destination.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Group {
    /// `shop/deployment/web (3 pods)`, unique.
    pub(super) name: String,
    /// The namespace; none for an address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) namespace: Option<NamespaceName>,
    /// The pods, or the address.
    pub(super) members: Vec<String>,
    /// The end that stands for all members as a source.
    #[serde(skip)]
    pub(super) source: End,
    /// The end that stands for all members as a destination. It differs from `source` if there are several pods.
    #[serde(skip)]
    pub(super) destination: End,
}

/// The namespace of a pod, and everything on which its verdicts depend.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Class {
    namespace: NamespaceName,
    end_classes: Vec<EndClass>,
    /// For each direction, the indices of the policies of other kinds that may change the verdicts.
    unevaluated_policies: [Vec<usize>; 2],
}

/// The class of a group, and its workload or its only pod.
type GroupKey = (Class, Option<WorkloadKey>, Option<PodKey>);

/// Returns the groups of these ends: pods by namespace, then addresses. Pods with the same verdicts share a group if
/// they belong to the same workload, and a pod without a workload has its own group. If there would be too many groups,
/// pods with the same verdicts share a group, whatever their workload.
pub(super) fn group_ends(evaluator: &Evaluator, ends: &[End]) -> Vec<Group> {
    let state = evaluator.cluster().state();
    let pods = || ends.iter().filter_map(|end| if let End::Pod(key) = end { state.pods.get(key) } else { None });
    let groups = grouped(evaluator, pods(), true);
    let groups = if groups.len() <= MAX_GROUPS_BY_WORKLOAD { groups } else { grouped(evaluator, pods(), false) };
    let addresses = ends.iter().filter(|end| !matches!(end, End::Pod(_))).map(|end| Group {
        name: end.to_string(),
        namespace: None,
        members: vec![end.to_string()],
        source: end.clone(),
        destination: end.clone(),
    });
    let mut groups: Vec<Group> = groups.into_iter().chain(addresses).collect();
    make_unique(&mut groups);
    groups
}

fn grouped<'p>(evaluator: &Evaluator, pods: impl Iterator<Item = &'p Pod>, by_workload: bool) -> Vec<Group> {
    let workloads = evaluator.cluster().workloads();
    let mut groups: BTreeMap<GroupKey, Vec<&Pod>> = BTreeMap::new();
    for pod in pods {
        let workload = workloads.of_pod(&pod.key).filter(|_| by_workload);
        let own = (by_workload && workload.is_none()).then(|| pod.key.clone());
        groups.entry((class(evaluator, pod), workload.cloned(), own)).or_default().push(pod);
    }
    let mut groups: Vec<Group> = groups.into_values().filter_map(|pods| group(evaluator, &pods)).collect();
    groups.sort_by(|one, other| (&one.namespace, &one.name).cmp(&(&other.namespace, &other.name)));
    groups
}

fn class(evaluator: &Evaluator, pod: &Pod) -> Class {
    let unevaluated_policies = Direction::BOTH.map(|direction| evaluator.cluster().may_change_pod(pod, direction));
    Class { namespace: pod.key.namespace.clone(), end_classes: evaluator.classes(pod), unevaluated_policies }
}

fn group(evaluator: &Evaluator, pods: &[&Pod]) -> Option<Group> {
    let first = pods.first()?;
    // A workload in a manifest has a second pod, so that connections between two of its pods are evaluated.
    let second = first.key.second_of_workload();
    let source = match pods.get(1) {
        Some(pod) => pod.key.clone(),
        None if evaluator.cluster().state().pods.contains_key(&second) => second,
        None => first.key.clone(),
    };
    Some(Group {
        name: name(evaluator, pods),
        namespace: Some(first.key.namespace.clone()),
        members: pods.iter().map(|pod| pod.key.to_string()).collect(),
        source: End::Pod(source),
        destination: End::Pod(first.key.clone()),
    })
}

/// The names of the workloads, or of pods without one, and the number of pods.
fn name(evaluator: &Evaluator, pods: &[&Pod]) -> String {
    let mut names: Vec<String> = Vec::new();
    for pod in pods {
        let workload = evaluator.cluster().workloads().of_pod(&pod.key);
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

/// Numbers groups with the same name: pods of one workload can have different labels.
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
    /// The name below the heading of the namespace.
    pub(super) fn short_name(&self) -> String {
        let prefix = self.namespace.as_ref().map(|namespace| format!("{namespace}/"));
        let name = prefix.and_then(|prefix| self.name.strip_prefix(&*prefix)).unwrap_or(&self.name);
        Safe(name).to_string()
    }
}
