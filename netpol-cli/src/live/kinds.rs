//! The kinds of objects that the commands list from the API server.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Result, anyhow};
use kube::api::ApiResource;
use netpol_policy::model::WorkloadKind;

use crate::remote::{Kube, within};

/// The time limit for the list of API groups. The list is short, so it takes little time.
const GROUPS_TIME: Duration = Duration::from_secs(10);

/// A kind of objects, with the data for a request.
#[derive(Clone, Debug)]
pub(super) struct Kind {
    group: String,
    version: String,
    /// The `kind` of the objects.
    name: &'static str,
    /// The plural in URLs.
    plural: &'static str,
    /// The plural in messages.
    pub(super) title: &'static str,
    pub(super) is_namespaced: bool,
    /// Whether objects of this kind are policies that netpol does not evaluate.
    pub(super) is_unevaluated: bool,
}

impl Kind {
    pub(super) fn resource(&self) -> ApiResource {
        let api_version =
            if self.group.is_empty() { self.version.clone() } else { format!("{}/{}", self.group, self.version) };
        ApiResource {
            group: self.group.clone(),
            version: self.version.clone(),
            api_version,
            kind: self.name.to_owned(),
            plural: self.plural.to_owned(),
        }
    }
}

/// Group, version, kind, plural, plural in messages, and whether the kind is namespaced.
type Row = (&'static str, &'static str, &'static str, &'static str, &'static str, bool);

/// The kinds that netpol evaluates.
const EVALUATED: [Row; 6] = [
    ("", "v1", "Namespace", "namespaces", "Namespaces", false),
    ("", "v1", "Node", "nodes", "Nodes", false),
    ("", "v1", "Pod", "pods", "Pods", true),
    ("", "v1", "Service", "services", "Services", true),
    ("discovery.k8s.io", "v1", "EndpointSlice", "endpointslices", "EndpointSlices", true),
    ("networking.k8s.io", "v1", "NetworkPolicy", "networkpolicies", "NetworkPolicies", true),
];

/// Policies that netpol does not evaluate: group, kind, plural, plural in messages, and whether the kind is namespaced.
/// They are listed in the version that the API server prefers.
const UNEVALUATED: [(&str, &str, &str, &str, bool); 11] = [
    ("cilium.io", "CiliumNetworkPolicy", "ciliumnetworkpolicies", "CiliumNetworkPolicies", true),
    (
        "cilium.io",
        "CiliumClusterwideNetworkPolicy",
        "ciliumclusterwidenetworkpolicies",
        "CiliumClusterwideNetworkPolicies",
        false,
    ),
    ("projectcalico.org", "NetworkPolicy", "networkpolicies", "Calico NetworkPolicies", true),
    ("projectcalico.org", "GlobalNetworkPolicy", "globalnetworkpolicies", "Calico GlobalNetworkPolicies", false),
    ("crd.projectcalico.org", "NetworkPolicy", "networkpolicies", "Calico NetworkPolicies", true),
    ("crd.projectcalico.org", "GlobalNetworkPolicy", "globalnetworkpolicies", "Calico GlobalNetworkPolicies", false),
    ("crd.antrea.io", "NetworkPolicy", "networkpolicies", "Antrea NetworkPolicies", true),
    ("crd.antrea.io", "ClusterNetworkPolicy", "clusternetworkpolicies", "Antrea ClusterNetworkPolicies", false),
    ("policy.networking.k8s.io", "AdminNetworkPolicy", "adminnetworkpolicies", "AdminNetworkPolicies", false),
    (
        "policy.networking.k8s.io",
        "BaselineAdminNetworkPolicy",
        "baselineadminnetworkpolicies",
        "BaselineAdminNetworkPolicies",
        false,
    ),
    ("policy.networking.k8s.io", "ClusterNetworkPolicy", "clusternetworkpolicies", "ClusterNetworkPolicies", false),
];

/// Returns the kind of a row.
fn kind_of_row((group, version, name, plural, title, is_namespaced): &Row) -> Kind {
    Kind {
        group: (*group).to_owned(),
        version: (*version).to_owned(),
        name,
        plural,
        title,
        is_namespaced: *is_namespaced,
        is_unevaluated: false,
    }
}

/// Returns the kinds that netpol evaluates, and the unevaluated kinds in API groups that the cluster has.
pub(super) async fn all(kube: &Kube, limit: Duration) -> Result<Vec<Kind>> {
    let groups = within(limit.min(GROUPS_TIME), "", kube.client.list_api_groups()).await;
    let groups = groups.map_err(|error| anyhow!("cannot list the API groups: {error}"))?.groups;
    let version = |name: &str| {
        let group = groups.iter().find(|group| group.name == name)?;
        let preferred = group.preferred_version.as_ref().or_else(|| group.versions.first())?;
        Some(preferred.version.clone())
    };
    // If Calico's API server is installed, it serves the same objects as the custom resources, in another group.
    let is_duplicate = |group: &str| group == "crd.projectcalico.org" && version("projectcalico.org").is_some();
    let unevaluated = UNEVALUATED.iter().filter(|(group, ..)| !is_duplicate(group)).filter_map(
        |&(group, name, plural, title, is_namespaced)| {
            let version = version(group)?;
            let group = group.to_owned();
            Some(Kind { group, version, name, plural, title, is_namespaced, is_unevaluated: true })
        },
    );
    Ok(EVALUATED.iter().map(kind_of_row).chain(unevaluated).collect())
}

/// Returns the kinds to list in addition to [`all`], so that the pods of workloads can be found. `workloads`: the kinds
/// of these workloads. Owner references lead from a pod to its workload, for example through a `ReplicaSet` to a
/// Deployment.
pub(super) fn of_workloads(workloads: &BTreeSet<WorkloadKind>) -> Vec<Kind> {
    let deployments = ("apps", "v1", "Deployment", "deployments", "Deployments", true);
    let replica_sets = ("apps", "v1", "ReplicaSet", "replicasets", "ReplicaSets", true);
    let jobs = ("batch", "v1", "Job", "jobs", "Jobs", true);
    let rows: BTreeSet<Row> = workloads
        .iter()
        .flat_map(|kind| match kind {
            WorkloadKind::Deployment => vec![deployments, replica_sets],
            WorkloadKind::ReplicaSet => vec![replica_sets],
            WorkloadKind::StatefulSet => vec![("apps", "v1", "StatefulSet", "statefulsets", "StatefulSets", true)],
            WorkloadKind::DaemonSet => vec![("apps", "v1", "DaemonSet", "daemonsets", "DaemonSets", true)],
            WorkloadKind::Job => vec![jobs],
            WorkloadKind::CronJob => vec![("batch", "v1", "CronJob", "cronjobs", "CronJobs", true), jobs],
            WorkloadKind::ReplicationController => {
                vec![("", "v1", "ReplicationController", "replicationcontrollers", "ReplicationControllers", true)]
            }
        })
        .collect();
    rows.iter().map(kind_of_row).collect()
}
