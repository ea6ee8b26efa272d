//! Workloads: objects with a pod template, from which controllers create pods.

use std::fmt;
use std::sync::Arc;

use super::{NamespaceName, Pod, PodKey};

/// Maximum number of pods of one `StatefulSet`. Without a limit, one manifest could use all memory.
pub const MAX_ORDINALS: u32 = 1000;
/// Maximum number of pods of all `StatefulSets` in the input together.
pub const MAX_ALL_ORDINALS: usize = 10_000;

/// A kind of workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WorkloadKind {
    /// `Deployment`.
    Deployment,
    /// `StatefulSet`.
    StatefulSet,
    /// `DaemonSet`.
    DaemonSet,
    /// `CronJob`.
    CronJob,
    /// `Job`.
    Job,
    /// `ReplicaSet`.
    ReplicaSet,
    /// `ReplicationController`.
    ReplicationController,
}

impl WorkloadKind {
    /// All kinds.
    pub const ALL: [Self; 7] = [
        Self::Deployment,
        Self::StatefulSet,
        Self::DaemonSet,
        Self::CronJob,
        Self::Job,
        Self::ReplicaSet,
        Self::ReplicationController,
    ];

    /// Returns the name of the kind: `Deployment`.
    pub const fn name(self) -> &'static str {
        self.names()[0]
    }

    /// Returns the name of the resource in the singular, as `kubectl` prints it: `deployment`.
    pub const fn resource(self) -> &'static str {
        self.names()[1]
    }

    /// Returns the kind with this name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// Returns the kind of a resource name that `kubectl` accepts: `deployment`, `deployments` or `deploy`.
    pub fn from_resource(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.names()[1..].contains(&text))
    }

    /// Returns the name of the kind, and the resource names: singular, plural and short.
    const fn names(self) -> [&'static str; 4] {
        match self {
            Self::Deployment => ["Deployment", "deployment", "deployments", "deploy"],
            Self::StatefulSet => ["StatefulSet", "statefulset", "statefulsets", "sts"],
            Self::DaemonSet => ["DaemonSet", "daemonset", "daemonsets", "ds"],
            Self::CronJob => ["CronJob", "cronjob", "cronjobs", "cj"],
            Self::Job => ["Job", "job", "jobs", "job"],
            Self::ReplicaSet => ["ReplicaSet", "replicaset", "replicasets", "rs"],
            Self::ReplicationController => {
                ["ReplicationController", "replicationcontroller", "replicationcontrollers", "rc"]
            }
        }
    }
}

/// Key of a workload.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkloadKey {
    /// The namespace.
    pub namespace: NamespaceName,
    /// The kind.
    pub kind: WorkloadKind,
    /// The name within the namespace and kind.
    pub name: Arc<str>,
}

/// Writes `deployment/namespace/name`.
impl fmt::Display for WorkloadKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.kind.resource(), self.namespace, self.name)
    }
}

impl WorkloadKey {
    /// Creates a key.
    pub fn new(kind: WorkloadKind, namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        Self { namespace: namespace.into(), kind, name: name.into() }
    }

    /// Returns `Deployment shop/web`, for messages.
    pub fn title(&self) -> String {
        format!("{} {}/{}", self.kind.name(), self.namespace, self.name)
    }
}

/// A workload.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Workload {
    /// Kind, namespace and name.
    pub key: WorkloadKey,
    /// The ordinals of the pods of a `StatefulSet`: only these pods have names that are known before they exist. `None`
    /// for other kinds.
    pub ordinals: Option<std::ops::Range<u32>>,
    /// The workload that controls this one, such as the Deployment of a `ReplicaSet`.
    pub controller: Option<WorkloadKey>,
    /// A pod as the template describes it, without an address.
    pub pod: Pod,
}

impl PodKey {
    /// Returns the key of the assumed pod that represents all pods of a workload (docs/semantics.md, item 39). The name
    /// in this key contains `/`, which is not valid in the name of a pod, so no real pod has this key.
    pub fn of_workload(workload: &WorkloadKey) -> Self {
        let name = format!("{}/{}", workload.kind.resource(), workload.name);
        Self { namespace: workload.namespace.clone(), name: name.into() }
    }

    /// Returns the key of a second assumed pod of a workload. `self` must be the key of the first one, from
    /// [`PodKey::of_workload`]. The second pod is needed to evaluate connections between two pods of the workload.
    #[must_use]
    pub fn second_of_workload(&self) -> Self {
        Self { namespace: self.namespace.clone(), name: format!("{}/2", self.name).into() }
    }

    /// Returns the workload if this key is from [`PodKey::of_workload`] or [`PodKey::second_of_workload`]. Otherwise
    /// returns `None`.
    pub fn workload(&self) -> Option<WorkloadKey> {
        let (resource, name) = self.name.split_once('/')?;
        let kind = WorkloadKind::from_resource(resource)?;
        // The name in the key of a second assumed pod ends with `/2`.
        let name = name.split_once('/').map_or(name, |(name, _)| name);
        Some(WorkloadKey { namespace: self.namespace.clone(), kind, name: name.into() })
    }

    /// Returns a text for messages: `pod shop/web-0`, or `Deployment shop/web` if the pod is an assumed pod.
    pub fn title(&self) -> String {
        self.workload().map_or_else(|| format!("pod {self}"), |workload| workload.title())
    }
}

/// Writes `namespace/name`, or `deployment/namespace/name` for an assumed pod of a Deployment.
impl fmt::Display for PodKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.workload() {
            Some(workload) => workload.fmt(f),
            None => write!(f, "{}/{}", self.namespace, self.name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_assumed_pods_contain_the_workload() {
        let workload = WorkloadKey::new(WorkloadKind::StatefulSet, "shop", "db");
        let pod = PodKey::of_workload(&workload);
        for key in [&pod, &pod.second_of_workload()] {
            assert_eq!(key.workload().as_ref(), Some(&workload));
            assert_eq!((key.to_string(), key.title()), ("statefulset/shop/db".into(), "StatefulSet shop/db".into()));
        }
        let real = PodKey::new("shop", "db-0");
        assert_eq!(
            (real.workload(), real.to_string(), real.title()),
            (None, "shop/db-0".into(), "pod shop/db-0".into())
        );
    }

    #[test]
    fn kinds_have_the_resource_names_of_kubectl() {
        for (text, kind) in [("deploy", "Deployment"), ("sts", "StatefulSet"), ("cronjobs", "CronJob"), ("job", "Job")]
        {
            assert_eq!(WorkloadKind::from_resource(text).map(WorkloadKind::name), Some(kind));
            assert_eq!(WorkloadKind::from_name(kind).map(WorkloadKind::name), Some(kind));
        }
        assert_eq!(WorkloadKind::from_resource("Deployment"), None);
    }
}
