//! The pods of workloads (docs/semantics.md, item 39).

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use crate::cluster_state::ClusterState;
use crate::manifest::{Parsed, beyond_pod_limit};
use crate::model::{Pod, PodKey, Workload, WorkloadKey, WorkloadKind};

/// Workloads and their pods. A pod is in the input, or is an assumed pod: netpol created it from the template of its
/// workload.
#[derive(Clone, Debug, Default)]
pub struct Workloads {
    pods: BTreeMap<WorkloadKey, Vec<PodKey>>,
    workload_by_pod: BTreeMap<PodKey, WorkloadKey>,
    /// The assumed pods.
    assumed: Vec<Pod>,
}

impl Workloads {
    pub(super) fn new(parsed: &Parsed, state: &ClusterState) -> Self {
        let objects: BTreeMap<&WorkloadKey, &Workload> =
            parsed.workloads.iter().map(|located| (&located.object.key, &located.object)).collect();
        // Together, the StatefulSets may have too many replicas. Then some of them get only one assumed pod, which
        // stands for all pods of the StatefulSet.
        let beyond_limit: BTreeSet<&WorkloadKey> =
            beyond_pod_limit(&parsed.workloads).map(|located| &located.object.key).collect();
        let mut result = Self::default();
        for (pod, controller) in &parsed.controllers {
            let is_running = state.pods.get(pod).is_some_and(|pod| !pod.finished);
            if is_running {
                result.add(top_controller(&objects, controller), pod.clone());
            }
        }
        let with_pods: BTreeSet<WorkloadKey> = result.pods.keys().cloned().collect();
        for workload in objects.values() {
            let is_controlled = top_controller(&objects, &workload.key) != workload.key;
            if is_controlled || with_pods.contains(&workload.key) {
                continue;
            }
            let ordinals = workload.ordinals.clone().filter(|_| !beyond_limit.contains(&workload.key));
            for pod in assumed_pods(workload, ordinals) {
                // The input can contain a pod with this name that was not found above, because the pod has no owner
                // reference or has finished.
                if !state.pods.contains_key(&pod.key) {
                    result.assumed.push(pod.clone());
                }
                result.add(workload.key.clone(), pod.key);
            }
        }
        for pods in result.pods.values_mut() {
            pods.sort_unstable();
            pods.dedup();
        }
        result
    }

    fn add(&mut self, workload: WorkloadKey, pod: PodKey) {
        self.workload_by_pod.insert(pod.clone(), workload.clone());
        self.pods.entry(workload).or_default().push(pod);
    }

    /// Returns the assumed pods, which the caller adds to the cluster state. They have no addresses.
    pub(super) fn pods_to_add(&self) -> &[Pod] {
        &self.assumed
    }

    /// Returns the pods of a workload: the pods in the input, the named pods of a `StatefulSet`, or the pod that stands
    /// for all pods of the workload. Empty if neither the workload nor any of its pods is in the input, or if another
    /// workload of the input controls this workload.
    pub fn pods(&self, workload: &WorkloadKey) -> &[PodKey] {
        self.pods.get(workload).map(Vec::as_slice).unwrap_or_default()
    }

    /// Returns the workload of a pod; `None` if no workload controls the pod.
    pub fn of_pod(&self, pod: &PodKey) -> Option<&WorkloadKey> {
        self.workload_by_pod.get(pod)
    }
}

/// Returns the workload that controls the workload `key`, such as the `CronJob` of a Job or the Deployment of a
/// `ReplicaSet`. Returns `key` if no workload of the input controls it.
fn top_controller(objects: &BTreeMap<&WorkloadKey, &Workload>, key: &WorkloadKey) -> WorkloadKey {
    let controller = objects.get(key).and_then(|workload| workload.controller.as_ref());
    let controller = controller.filter(|controller| objects.contains_key(controller));
    // One level is enough: a CronJob or a Deployment has no controller.
    controller.unwrap_or(key).clone()
}

/// Returns an assumed pod for each ordinal of a `StatefulSet`. Without ordinals, returns the pod that stands for all
/// pods of the workload.
fn assumed_pods(workload: &Workload, ordinals: Option<Range<u32>>) -> Vec<Pod> {
    let Some(ordinals) = ordinals else { return vec![workload.pod.clone()] };
    let pod = |ordinal: u32| {
        let name = format!("{}-{ordinal}", workload.key.name);
        // Source: <https://kubernetes.io/docs/concepts/workloads/controllers/statefulset/#pod-name-label>.
        let labels = workload.pod.labels.with("statefulset.kubernetes.io/pod-name".into(), name.as_str().into());
        let labels = labels.with("apps.kubernetes.io/pod-index".into(), ordinal.to_string().into());
        Pod { key: PodKey::new(workload.key.namespace.clone(), name), labels, ..workload.pod.clone() }
    };
    debug_assert_eq!(workload.key.kind, WorkloadKind::StatefulSet, "only pods of a StatefulSet have ordinals");
    ordinals.map(pod).collect()
}
