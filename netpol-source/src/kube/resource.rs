//! The resources of the API server that the source watches.

use std::fmt;

/// A watched resource. The source watches its objects in all namespaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Resource {
    /// Namespaces.
    Namespaces,
    /// Nodes.
    Nodes,
    /// `NetworkPolicies`.
    NetworkPolicies,
    /// Pods.
    Pods,
    /// Services.
    Services,
    /// `EndpointSlices`.
    EndpointSlices,
}

impl Resource {
    /// All watched resources.
    pub const ALL: [Self; 6] =
        [Self::Namespaces, Self::Nodes, Self::NetworkPolicies, Self::Pods, Self::Services, Self::EndpointSlices];

    /// Returns API group, kind and plural name.
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

    /// Returns the API group; empty for the core group.
    pub const fn group(self) -> &'static str {
        self.names().0
    }

    /// Returns the `kind` of the objects.
    pub const fn kind(self) -> &'static str {
        self.names().1
    }

    /// Returns the plural name, as used in URLs and roles.
    pub const fn plural(self) -> &'static str {
        self.names().2
    }

    /// Returns the URL path of the list of the objects in all namespaces.
    pub(super) fn path(self) -> String {
        format!("{}/{}", self.base(), self.plural())
    }

    /// Returns the URL path of one object.
    pub(super) fn path_of(self, namespace: Option<&str>, name: &str) -> String {
        match namespace {
            Some(namespace) => format!("{}/namespaces/{namespace}/{}/{name}", self.base(), self.plural()),
            None => format!("{}/{name}", self.path()),
        }
    }

    /// Returns the URL path of the API group and version.
    fn base(self) -> String {
        if self.group().is_empty() { "/api/v1".to_owned() } else { format!("/apis/{}/v1", self.group()) }
    }

    /// Returns the rule that a `ClusterRole` needs for the resource, as YAML.
    pub(super) fn rule(self) -> String {
        let group = if self.group().is_empty() { "\"\"" } else { self.group() };
        format!("- apiGroups: [{group}]\n  resources: [{}]\n  verbs: [get, list, watch]", self.plural())
    }
}

/// Formats the plural name.
impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.plural())
    }
}
