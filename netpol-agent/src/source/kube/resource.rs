//! What is watched: one line per resource.

use std::fmt;

/// A resource of the API server, watched in the whole cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Resource {
    /// Namespaces.
    Namespaces,
    /// Nodes.
    Nodes,
    /// Network policies.
    NetworkPolicies,
    /// Pods.
    Pods,
    /// Services.
    Services,
    /// `EndpointSlices`.
    EndpointSlices,
}

impl Resource {
    /// All that are watched.
    pub const ALL: [Self; 6] =
        [Self::Namespaces, Self::Nodes, Self::NetworkPolicies, Self::Pods, Self::Services, Self::EndpointSlices];

    /// API group, kind and plural name.
    const fn names(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::Namespaces => ("", "Namespace", "namespaces"),
            Self::Nodes => ("", "Node", "nodes"),
            Self::NetworkPolicies => ("networking.k8s.io", "NetworkPolicy", "networkpolicies"),
            Self::Pods => ("", "Pod", "pods"),
            Self::Services => ("", "Service", "services"),
            Self::EndpointSlices => ("discovery.k8s.io", "EndpointSlice", "endpointslices"),
        }
    }

    /// Its API group; empty for the core one.
    pub const fn group(self) -> &'static str {
        self.names().0
    }

    /// The `kind` of its objects.
    pub const fn kind(self) -> &'static str {
        self.names().1
    }

    /// The plural name, as URLs and roles have it.
    pub const fn plural(self) -> &'static str {
        self.names().2
    }

    /// The URL's path of all of them.
    pub(super) fn path(self) -> String {
        format!("{}/{}", self.base(), self.plural())
    }

    /// The URL's path of one of them.
    pub(super) fn path_of(self, namespace: Option<&str>, name: &str) -> String {
        match namespace {
            Some(namespace) => format!("{}/namespaces/{namespace}/{}/{name}", self.base(), self.plural()),
            None => format!("{}/{name}", self.path()),
        }
    }

    fn base(self) -> String {
        if self.group().is_empty() { "/api/v1".to_owned() } else { format!("/apis/{}/v1", self.group()) }
    }

    /// The lines that a `ClusterRole` needs for it.
    pub(super) fn rule(self) -> String {
        let group = if self.group().is_empty() { "\"\"" } else { self.group() };
        format!("- apiGroups: [{group}]\n  resources: [{}]\n  verbs: [get, list, watch]", self.plural())
    }
}

/// The plural name.
impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.plural())
    }
}
