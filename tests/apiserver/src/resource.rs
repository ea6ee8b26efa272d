//! The API resources and verbs that the fake API server supports.

use std::fmt;

/// A supported API resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Resource {
    /// `v1` Pods.
    Pods,
    /// `v1` Namespaces.
    Namespaces,
    /// `v1` Nodes.
    Nodes,
    /// `v1` Services.
    Services,
    /// `v1` Events.
    CoreEvents,
    /// `events.k8s.io/v1` Events.
    Events,
    /// `networking.k8s.io/v1` `NetworkPolicies`.
    NetworkPolicies,
    /// `discovery.k8s.io/v1` `EndpointSlices`.
    EndpointSlices,
    /// `apps/v1` Deployments.
    Deployments,
    /// `apps/v1` `ReplicaSets`.
    ReplicaSets,
    /// `apps/v1` `StatefulSets`.
    StatefulSets,
    /// `apps/v1` `DaemonSets`.
    DaemonSets,
    /// `batch/v1` Jobs.
    Jobs,
    /// `batch/v1` `CronJobs`.
    CronJobs,
    /// `v1` `ReplicationControllers`.
    ReplicationControllers,
    /// `cilium.io/v2` `CiliumNetworkPolicies`.
    CiliumNetworkPolicies,
}

/// The verb of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verb {
    /// Read one object.
    Get,
    /// Read a collection.
    List,
    /// Watch a collection.
    Watch,
    /// Create an object.
    Create,
    /// Replace an object.
    Update,
    /// Change parts of an object.
    Patch,
    /// Delete an object.
    Delete,
}

/// What the API defines for a resource.
struct Facts {
    group: &'static str,
    api_version: &'static str,
    kind: &'static str,
    plural: &'static str,
    namespaced: bool,
}

impl Resource {
    /// All resources.
    pub const ALL: [Self; 16] = [
        Self::Pods,
        Self::Namespaces,
        Self::Nodes,
        Self::Services,
        Self::CoreEvents,
        Self::Events,
        Self::NetworkPolicies,
        Self::EndpointSlices,
        Self::Deployments,
        Self::ReplicaSets,
        Self::StatefulSets,
        Self::DaemonSets,
        Self::Jobs,
        Self::CronJobs,
        Self::ReplicationControllers,
        Self::CiliumNetworkPolicies,
    ];

    const fn facts(self) -> Facts {
        let (group, api_version, kind, plural, namespaced) = match self {
            Self::Pods => ("", "v1", "Pod", "pods", true),
            Self::Namespaces => ("", "v1", "Namespace", "namespaces", false),
            Self::Nodes => ("", "v1", "Node", "nodes", false),
            Self::Services => ("", "v1", "Service", "services", true),
            Self::CoreEvents => ("", "v1", "Event", "events", true),
            Self::Events => ("events.k8s.io", "events.k8s.io/v1", "Event", "events", true),
            Self::NetworkPolicies => {
                ("networking.k8s.io", "networking.k8s.io/v1", "NetworkPolicy", "networkpolicies", true)
            }
            Self::EndpointSlices => {
                ("discovery.k8s.io", "discovery.k8s.io/v1", "EndpointSlice", "endpointslices", true)
            }
            Self::Deployments => ("apps", "apps/v1", "Deployment", "deployments", true),
            Self::ReplicaSets => ("apps", "apps/v1", "ReplicaSet", "replicasets", true),
            Self::StatefulSets => ("apps", "apps/v1", "StatefulSet", "statefulsets", true),
            Self::DaemonSets => ("apps", "apps/v1", "DaemonSet", "daemonsets", true),
            Self::Jobs => ("batch", "batch/v1", "Job", "jobs", true),
            Self::CronJobs => ("batch", "batch/v1", "CronJob", "cronjobs", true),
            Self::ReplicationControllers => ("", "v1", "ReplicationController", "replicationcontrollers", true),
            Self::CiliumNetworkPolicies => {
                ("cilium.io", "cilium.io/v2", "CiliumNetworkPolicy", "ciliumnetworkpolicies", true)
            }
        };
        Facts { group, api_version, kind, plural, namespaced }
    }

    /// Returns the API group; empty for the core group.
    pub const fn group(self) -> &'static str {
        self.facts().group
    }

    /// Returns `apiVersion` of the objects.
    pub const fn api_version(self) -> &'static str {
        self.facts().api_version
    }

    /// Returns `kind` of the objects.
    pub const fn kind(self) -> &'static str {
        self.facts().kind
    }

    /// Returns the plural name, as used in URL paths and RBAC roles.
    pub const fn plural(self) -> &'static str {
        self.facts().plural
    }

    /// Returns whether the objects are namespaced.
    pub const fn is_namespaced(self) -> bool {
        self.facts().namespaced
    }

    /// Finds a resource by `apiVersion` and `kind`.
    pub fn of_kind(api_version: &str, kind: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|resource| resource.api_version() == api_version && resource.kind() == kind)
    }

    /// Finds a resource by API version and plural name, as in a URL path.
    pub(crate) fn of_path(api_version: &str, plural: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|resource| resource.api_version() == api_version && resource.plural() == plural)
    }
}

/// The name in error messages: `pods`, `networkpolicies.networking.k8s.io`.
impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.plural())?;
        if self.group().is_empty() { Ok(()) } else { write!(f, ".{}", self.group()) }
    }
}

impl Verb {
    /// Returns the name, as used in RBAC roles.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::List => "list",
            Self::Watch => "watch",
            Self::Create => "create",
            Self::Update => "update",
            Self::Patch => "patch",
            Self::Delete => "delete",
        }
    }
}
