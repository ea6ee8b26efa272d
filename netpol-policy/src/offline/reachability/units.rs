//! Units: a unit is a workload (such as a Deployment), or a pod without a workload. Output has the names of units, not
//! of all pods.

use std::collections::BTreeMap;
use std::fmt;

use crate::model::{NamespaceName, PodKey, WorkloadKey};
use crate::offline::OfflineCluster;

/// A workload, or a pod without a workload.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum UnitKey {
    /// A workload.
    Workload(WorkloadKey),
    /// A pod without a workload.
    Pod(PodKey),
}

impl UnitKey {
    /// Returns the unit of a pod.
    pub fn of(cluster: &OfflineCluster, pod: &PodKey) -> Self {
        cluster
            .workloads()
            .of_pod(pod)
            .map_or_else(|| Self::Pod(pod.clone()), |workload| Self::Workload(workload.clone()))
    }

    /// Returns the namespace.
    pub const fn namespace(&self) -> &NamespaceName {
        match self {
            Self::Workload(key) => &key.namespace,
            Self::Pod(key) => &key.namespace,
        }
    }

    /// Returns the name within the namespace: `deployment/web`, or the name of the pod.
    pub fn short_name(&self) -> String {
        match self {
            Self::Workload(key) => format!("{}/{}", key.kind.resource(), key.name),
            Self::Pod(key) => key.name.to_string(),
        }
    }
}

/// Writes `shop/deployment/web` or `shop/web-0`.
impl fmt::Display for UnitKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace(), self.short_name())
    }
}

/// Returns all units of a cluster with their pods. Omits pods without an address, and pods that policies cannot select
/// (host-network and finished pods).
pub fn units(cluster: &OfflineCluster) -> BTreeMap<UnitKey, Vec<PodKey>> {
    let mut units: BTreeMap<UnitKey, Vec<PodKey>> = BTreeMap::new();
    let pods = cluster.state().pods.values();
    for pod in pods.filter(|pod| pod.is_selectable() && !pod.addresses.is_empty()) {
        units.entry(UnitKey::of(cluster, &pod.key)).or_default().push(pod.key.clone());
    }
    units
}
