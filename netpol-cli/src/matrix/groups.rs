//! Groups of pods with the same verdicts: the rows and columns of the matrix.

use std::collections::BTreeMap;

use netpol_common::Direction;
use netpol_policy::model::{NamespaceName, Pod, PodKey, WorkloadKey};
use netpol_policy::reference::End;
use netpol_policy::text::Safe;
use serde::Serialize;

use crate::verdict::{EndClass, Evaluator};

/// Up to this number of rows, each pod without a workload has its own row.
const MAX_SINGLE_PODS: usize = 50;
/// The number of workloads in the name of a group.
const NAMES_SHOWN: usize = 3;

/// Pods with the same verdicts as source and as destination, in one namespace; or an address.
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
    /// The end that stands for all members as a destination. Another one than `source`, if there are several pods.
    #[serde(skip)]
    pub(super) destination: End,
}

/// What decides the verdicts on a pod, and the namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Class {
    namespace: NamespaceName,
    tables: Vec<EndClass>,
    unevaluated: [Vec<usize>; 2],
}

/// The class of a group, and its workload or its only pod.
type GroupKey = (Class, Option<WorkloadKey>, Option<PodKey>);

/// Returns the groups of these ends: pods by namespace, then addresses. A pod without a workload is in a group of its
/// own, unless there would be too many groups.
pub(super) fn of(evaluate: &Evaluator, ends: &[End]) -> Vec<Group> {
    let state = evaluate.cluster().state();
    let pods = || ends.iter().filter_map(|end| if let End::Pod(key) = end { state.pods.get(key) } else { None });
    let single = grouped(evaluate, pods(), true);
    let groups = if single.len() <= MAX_SINGLE_PODS { single } else { grouped(evaluate, pods(), false) };
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

fn grouped<'p>(evaluate: &Evaluator, pods: impl Iterator<Item = &'p Pod>, single_pods: bool) -> Vec<Group> {
    let workloads = evaluate.cluster().workloads();
    let mut groups: BTreeMap<GroupKey, Vec<&Pod>> = BTreeMap::new();
    for pod in pods {
        let workload = workloads.of_pod(&pod.key).filter(|_| single_pods);
        let own = (single_pods && workload.is_none()).then(|| pod.key.clone());
        groups.entry((class(evaluate, pod), workload.cloned(), own)).or_default().push(pod);
    }
    let mut groups: Vec<Group> = groups.into_values().filter_map(|pods| group(evaluate, &pods)).collect();
    groups.sort_by(|one, other| (&one.namespace, &one.name).cmp(&(&other.namespace, &other.name)));
    groups
}

fn class(evaluate: &Evaluator, pod: &Pod) -> Class {
    let unevaluated = Direction::BOTH.map(|direction| evaluate.cluster().may_change_pod(pod, direction));
    Class { namespace: pod.key.namespace.clone(), tables: evaluate.classes(pod), unevaluated }
}

fn group(evaluate: &Evaluator, pods: &[&Pod]) -> Option<Group> {
    let first = pods.first()?;
    let second = first.key.second_of_workload();
    let source = match pods.get(1) {
        Some(pod) => pod.key.clone(),
        None if evaluate.cluster().state().pods.contains_key(&second) => second,
        None => first.key.clone(),
    };
    Some(Group {
        name: name(evaluate, pods),
        namespace: Some(first.key.namespace.clone()),
        members: pods.iter().map(|pod| pod.key.to_string()).collect(),
        source: End::Pod(source),
        destination: End::Pod(first.key.clone()),
    })
}

/// The names of the workloads, or of pods without one, and the number of pods.
fn name(evaluate: &Evaluator, pods: &[&Pod]) -> String {
    let mut names: Vec<String> = Vec::new();
    for pod in pods {
        let workload = evaluate.cluster().workloads().of_pod(&pod.key);
        let name = match workload {
            Some(workload) => format!("{}/{}", workload.kind.resource(), workload.name),
            None => pod.key.name.to_string(),
        };
        if names.last() != Some(&name) {
            names.push(name);
        }
    }
    let (count, namespace) = (names.len(), pods.first().map_or("", |pod| &pod.key.namespace));
    names.truncate(NAMES_SHOWN);
    let more = if count > NAMES_SHOWN { format!(" and {} more", count - NAMES_SHOWN) } else { String::new() };
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
