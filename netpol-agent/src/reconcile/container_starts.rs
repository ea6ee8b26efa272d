//! When the containers of pods could start, as reported by the start gate, which delays containers until the pod's
//! policies are enforced.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use netpol_policy::model::PodKey;

/// Maximum number of pods in [`ContainerStarts`]. When one more pod is recorded, all others are removed. The
/// unprotected time (without enforcement) of a removed pod is counted from the time when its interface appeared,
/// because the start of its containers is no longer recorded.
const MAX_PODS: usize = 4_096;

/// When the first container of a pod could start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ContainerStart {
    /// The container runtime waits for the agent, so no container runs.
    Held,
    /// The container can start from this time on. The pod's policies were not enforced yet at this time.
    Possible(Instant),
}

/// The pods that the gate delays now, and the pods that could start before their policies were enforced. All clones
/// share one state.
#[derive(Clone, Debug, Default)]
pub struct ContainerStarts(Arc<Mutex<BTreeMap<PodKey, ContainerStart>>>);

impl ContainerStarts {
    /// Records that the container runtime waits before it starts the containers of a pod.
    pub fn hold(&self, pod: &PodKey) {
        self.insert(pod, ContainerStart::Held);
    }

    /// Records that the containers of a pod can start now, although the pod's policies are not enforced.
    pub fn release(&self, pod: &PodKey) {
        self.insert(pod, ContainerStart::Possible(Instant::now()));
    }

    fn insert(&self, pod: &PodKey, start: ContainerStart) {
        let mut pods = self.lock();
        if pods.len() >= MAX_PODS && !pods.contains_key(pod) {
            pods.clear();
        }
        pods.insert(pod.clone(), start);
    }

    /// Records that the container runtime no longer waits for the agent before it starts the containers of any pod,
    /// because its connection to the agent has ended.
    pub fn release_all(&self) {
        let now = Instant::now();
        for start in self.lock().values_mut().filter(|start| **start == ContainerStart::Held) {
            *start = ContainerStart::Possible(now);
        }
    }

    /// Removes a pod: its policies are enforced, or its sandbox has stopped.
    pub fn remove(&self, pod: &PodKey) {
        self.lock().remove(pod);
    }

    /// Returns when the first container of a pod could start. `None`: the gate did not report the pod, or the pod was
    /// removed.
    pub(super) fn of(&self, pod: &PodKey) -> Option<ContainerStart> {
        self.lock().get(pod).copied()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<PodKey, ContainerStart>> {
        // The map is consistent even if a thread panicked while it held the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_held_until_it_is_released_or_removed() {
        let starts = ContainerStarts::default();
        let [one, other] = ["one", "other"].map(|name| PodKey::new("shop", name));
        starts.hold(&one);
        starts.hold(&other);
        assert_eq!(starts.of(&one), Some(ContainerStart::Held));
        starts.release(&one);
        let released = starts.of(&one);
        assert!(matches!(released, Some(ContainerStart::Possible(_))));
        starts.release_all();
        assert_eq!(starts.of(&one), released, "the pod was already released");
        assert!(matches!(starts.of(&other), Some(ContainerStart::Possible(_))));
        starts.remove(&one);
        assert_eq!(starts.of(&one), None);
    }

    #[test]
    fn the_number_of_pods_is_limited() {
        let starts = ContainerStarts::default();
        for number in 0..3 * MAX_PODS / 2 {
            let pod = PodKey::new("shop", format!("pod-{number}").as_str());
            starts.release(&pod);
        }
        assert_eq!(starts.lock().len(), MAX_PODS / 2);
    }
}
