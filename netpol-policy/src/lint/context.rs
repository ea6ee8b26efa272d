//! The objects of the input, indexed for the checks of the linter. All pods of a namespace with the same labels are in
//! one group, so that a selector is evaluated once for all of them.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::egress::EgressIsolation;
use crate::cluster_state::ClusterState;
use crate::manifest::{Details, Parsed, PodDetails};
use crate::model::{
    Labels, NamespaceName, Object, Peer, Pod, PodKey, Policy, PolicyKey, Protocol, Requirement, Selector, ServiceKey,
};
use crate::offline::OfflineCluster;

/// Namespaces that every cluster has.
const STANDARD_NAMESPACES: [&str; 4] = ["default", "kube-system", "kube-public", "kube-node-lease"];

/// The objects, and indexes of them. Pods that do not exist yet have unknown addresses, and it is not known which
/// ipBlocks match such an address. So there are two variants of the cluster state.
pub(super) struct Context<'a> {
    /// The state in which unknown addresses match the fewest blocks.
    pub(super) state: &'a ClusterState,
    /// The state in which unknown addresses match the most blocks.
    pub(super) most_permissive: &'a ClusterState,
    pub(super) cluster: &'a OfflineCluster,
    /// Parts of the manifests that the cluster state does not have, such as the text of policies.
    pub(super) details: &'a Details,
    /// The policies as they are written in the manifests.
    pub(super) policies: Vec<PolicyView<'a>>,
    /// The policies that isolate each group for egress.
    pub(super) egress: EgressIsolation<'a>,
    /// The groups of pods that have not finished, by namespace.
    pub(super) groups: BTreeMap<&'a NamespaceName, Vec<Group<'a>>>,
    /// Finds the groups of a namespace that have a given label with a given value.
    by_label: LabelIndex<'a>,
    /// Whether the input has Namespaces. Otherwise it is unknown which namespaces exist.
    pub(super) has_namespaces: bool,
    /// Namespaces that exist: those with a Namespace object, a pod or a Service, and [`STANDARD_NAMESPACES`].
    pub(super) namespaces: BTreeSet<NamespaceName>,
    /// The Services that have a port or nodePort with this protocol and number.
    pub(super) services_by_port: HashMap<(Protocol, u16), Vec<&'a ServiceKey>>,
}

/// Indices of groups, by namespace, and by label and value.
type LabelIndex<'a> = BTreeMap<&'a NamespaceName, HashMap<(&'a str, &'a str), Vec<usize>>>;

/// Pods of a namespace with the same labels. Host-network pods are in other groups than the pods with their own network
/// namespace.
pub(super) struct Group<'a> {
    pub(super) labels: &'a Labels,
    /// Whether the pods are host-network pods.
    pub(super) host_network: bool,
    /// Never empty.
    pub(super) pods: Vec<&'a Pod>,
}

/// A policy and the pods that it selects.
pub(super) struct PolicyView<'a> {
    pub(super) policy: &'a Policy,
    /// The selected groups, as indices of the list of [`Context::groups`] for the policy's namespace. Groups of
    /// host-network pods are never selected.
    pub(super) selected: Vec<usize>,
}

impl<'a> Context<'a> {
    pub(super) fn new(parsed: &'a Parsed, cluster: &'a OfflineCluster) -> Self {
        let state = cluster.state();
        let groups = groups(state);
        let by_label = by_label(&groups);
        let mut policies: BTreeMap<&PolicyKey, &Policy> = BTreeMap::new();
        for located in &parsed.objects {
            if let Object::Policy(policy) = &located.object {
                policies.insert(&policy.key, policy);
            }
        }
        let view = |policy: &'a Policy| {
            let groups = groups.get(&policy.key.namespace).map(Vec::as_slice).unwrap_or_default();
            let selected = candidates(&by_label, &policy.key.namespace, groups, &policy.pods);
            let is_selected = |index: &usize| {
                !groups[*index].host_network && policy.pods.matches_or_is_invalid(groups[*index].labels)
            };
            PolicyView { policy, selected: selected.filter(is_selected).collect() }
        };
        let policies: Vec<PolicyView<'_>> = policies.into_values().map(view).collect();
        let most_permissive = cluster.most_permissive().unwrap_or(state);
        let egress = EgressIsolation::new(state, most_permissive, &groups, &policies);
        Self {
            state,
            most_permissive,
            egress,
            cluster,
            details: &parsed.details,
            policies,
            groups,
            by_label,
            has_namespaces: !state.namespaces.is_empty(),
            namespaces: namespaces(state),
            services_by_port: services_by_port(state),
        }
    }

    /// Returns the groups of a namespace.
    pub(super) fn groups_of(&self, namespace: &NamespaceName) -> &[Group<'a>] {
        self.groups.get(namespace).map(Vec::as_slice).unwrap_or_default()
    }

    /// Returns the groups that a policy selects.
    pub(super) fn selected(&self, view: &PolicyView<'_>) -> Vec<&Group<'a>> {
        let groups = self.groups_of(&view.policy.key.namespace);
        view.selected.iter().map(|index| &groups[*index]).collect()
    }

    /// Returns the namespaces that have pods and that a namespace selector matches, with the groups of these pods.
    /// Without a selector, returns the policy's own namespace.
    pub(super) fn pod_namespaces(
        &self,
        policy: &Policy,
        selector: Option<&Selector>,
    ) -> impl Iterator<Item = (&'a NamespaceName, &[Group<'a>])> {
        let own = policy.key.namespace.clone();
        let matches = move |name: &NamespaceName| match selector {
            Some(selector) => selector.matches(&self.state.namespace_labels(name)),
            None => *name == own,
        };
        self.groups.iter().filter(move |(name, _)| matches(name)).map(|(name, groups)| (*name, groups.as_slice()))
    }

    /// Returns the groups with labels that a peer matches. This includes groups of host-network pods, although
    /// selectors of peers do not match these pods.
    pub(super) fn peer_groups(&self, policy: &Policy, peer: &Peer) -> Vec<&Group<'a>> {
        let Peer::Pods { namespaces, pods } = peer else { return Vec::new() };
        let namespaces = self.pod_namespaces(policy, namespaces.as_ref());
        let groups = namespaces
            .flat_map(|(name, groups)| candidates(&self.by_label, name, groups, pods).map(move |index| &groups[index]));
        groups.filter(|group| pods.matches(group.labels)).collect()
    }

    /// Returns the details of a pod, or of the template of its workload.
    pub(super) fn details_of(&self, pod: &PodKey) -> Option<&PodDetails> {
        let of_workload = || {
            let workload = self.cluster.workloads().of_pod(pod)?;
            self.details.pods.get(&PodKey::of_workload(workload))
        };
        self.details.pods.get(pod).or_else(of_workload)
    }

    /// Returns whether the input probably has all objects of a cluster: it has the namespace `kube-system`.
    pub(super) fn is_whole_cluster(&self) -> bool {
        self.state.namespaces.keys().any(|name| **name == *"kube-system")
    }

    /// Returns whether a namespace selector matches a namespace that exists.
    pub(super) fn selects_a_namespace(&self, selector: &Selector) -> bool {
        self.namespaces.iter().any(|name| selector.matches(&self.state.namespace_labels(name)))
    }
}

fn groups(state: &ClusterState) -> BTreeMap<&NamespaceName, Vec<Group<'_>>> {
    let mut groups: BTreeMap<&NamespaceName, Vec<Group<'_>>> = BTreeMap::new();
    let mut indices: HashMap<(&NamespaceName, &Labels, bool), usize> = HashMap::new();
    for pod in state.pods.values().filter(|pod| !pod.finished) {
        let of_namespace = groups.entry(&pod.key.namespace).or_default();
        let index = *indices.entry((&pod.key.namespace, &pod.labels, pod.host_network)).or_insert_with(|| {
            of_namespace.push(Group { labels: &pod.labels, host_network: pod.host_network, pods: Vec::new() });
            of_namespace.len() - 1
        });
        of_namespace[index].pods.push(pod);
    }
    groups
}

fn by_label<'a>(groups: &BTreeMap<&'a NamespaceName, Vec<Group<'a>>>) -> LabelIndex<'a> {
    let of_namespace = |groups: &Vec<Group<'a>>| {
        let mut index: HashMap<(&'a str, &'a str), Vec<usize>> = HashMap::new();
        for (position, group) in groups.iter().enumerate() {
            for (key, value) in group.labels.iter() {
                index.entry((key, value)).or_default().push(position);
            }
        }
        index
    };
    groups.iter().map(|(name, groups)| (*name, of_namespace(groups))).collect()
}

/// Returns the indices of the groups that a selector may match. If the selector requires one certain value of a label,
/// returns only the groups with this value. With several such labels, the one with the fewest groups is used. Without
/// such a label, returns all groups.
fn candidates<'i>(
    index: &'i LabelIndex<'_>,
    namespace: &NamespaceName,
    groups: &[Group<'_>],
    selector: &'i Selector,
) -> impl Iterator<Item = usize> + use<'i> {
    let lists = selector.requirements.iter().filter_map(|requirement| {
        let Requirement::In(key, values) = requirement else { return None };
        let [value] = values.as_slice() else { return None };
        let list = index.get(namespace).and_then(|labels| labels.get(&(key.as_ref(), value.as_ref())));
        Some(list.map(Vec::as_slice).unwrap_or_default())
    });
    let shortest = lists.min_by_key(|list| list.len());
    let all = if shortest.is_none() { 0..groups.len() } else { 0..0 };
    shortest.into_iter().flatten().copied().chain(all)
}

/// Returns the names of all namespaces that exist. Pods and Services can be in a namespace that has no Namespace object
/// (docs/semantics.md, item 39).
fn namespaces(state: &ClusterState) -> BTreeSet<NamespaceName> {
    let of_pods = state.pods.keys().map(|key| &key.namespace);
    let of_services = state.services.keys().map(|key| &key.namespace);
    let named = state.namespaces.keys().chain(of_pods).chain(of_services).cloned();
    named.chain(STANDARD_NAMESPACES.map(NamespaceName::from)).collect()
}

fn services_by_port(state: &ClusterState) -> HashMap<(Protocol, u16), Vec<&ServiceKey>> {
    let mut by_port: HashMap<(Protocol, u16), Vec<&ServiceKey>> = HashMap::new();
    for service in state.services.values() {
        let numbers = service.ports.iter().flat_map(|port| {
            [Some(port.port), port.node_port].into_iter().flatten().map(|number| (port.protocol, number))
        });
        for number in numbers.collect::<BTreeSet<_>>() {
            by_port.entry(number).or_default().push(&service.key);
        }
    }
    by_port
}

/// The maximum number of names in a message; further names are counted.
const NAMES_SHOWN: usize = 3;

/// Returns a list of names as text: `a` or `a, b, c and 7 more pods`. `what`: the plural of the noun, such as `pods`.
pub(super) fn shortened_list(names: &[String], what: &str) -> String {
    match names.len().checked_sub(NAMES_SHOWN) {
        None | Some(0) => names.join(", "),
        Some(1) => format!("{} and 1 more {}", names[..NAMES_SHOWN].join(", "), what.trim_end_matches('s')),
        Some(more) => format!("{} and {more} more {what}", names[..NAMES_SHOWN].join(", ")),
    }
}
