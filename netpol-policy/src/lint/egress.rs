//! Which policies isolate pods for egress, and which backends of Services these policies allow.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use netpol_common::Direction;

use super::context::{Group, PolicyView};
use crate::cluster_state::ClusterState;
use crate::model::{Backend, Frontend, NamespaceName, Pod, Policy, PolicyKey, Protocol, Service, ServiceKey};
use crate::reference::{self, Remote};

/// A backend of a Service (address and port), and the protocol.
pub(super) type Target = (Backend, Protocol);

/// The index of a list of policies in [`EgressIsolation`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct ListId(usize);

/// For each group of pods (of one namespace, with the same labels), the list of the policies that isolate it for
/// egress. Groups with the same policies share a list. If addresses of pods are unknown, each policy has two versions:
/// see [`OfflineCluster::state`](crate::offline::OfflineCluster::state).
pub(super) struct EgressIsolation<'a> {
    state: &'a ClusterState,
    /// The policies of each list, in the state in which unknown addresses match the fewest blocks.
    lists: Vec<Vec<&'a Policy>>,
    /// The policies of each list, in the state in which unknown addresses match the most blocks.
    most_permissive: Vec<Vec<&'a Policy>>,
    /// The list of each group, by namespace.
    lists_of_groups: BTreeMap<&'a NamespaceName, Vec<ListId>>,
    /// The backends of each frontend, each with its pod if the backend is a pod.
    backends: HashMap<Frontend, Vec<(Backend, Option<&'a Pod>)>>,
    /// The addresses and ports to which Services forward, with the IP protocol number.
    forwarded: HashSet<(Backend, u8)>,
    /// The backends of each Service.
    targets: HashMap<&'a ServiceKey, BTreeSet<Target>>,
    /// Cached results of [`Self::reaches_service`].
    reached_services: RefCell<HashMap<(ListId, ServiceKey), bool>>,
    /// Cached results of [`allowed`], for each list of policies.
    allowed_targets: RefCell<HashMap<(ListId, Target), bool>>,
}

impl<'a> EgressIsolation<'a> {
    pub(super) fn new(
        state: &'a ClusterState,
        most_permissive: &'a ClusterState,
        groups: &BTreeMap<&'a NamespaceName, Vec<Group<'a>>>,
        policies: &[PolicyView<'a>],
    ) -> Self {
        // For each group of each namespace, the keys of the policies that isolate it for egress.
        let mut keys: BTreeMap<&NamespaceName, Vec<Vec<&PolicyKey>>> =
            groups.iter().map(|(name, groups)| (*name, vec![Vec::new(); groups.len()])).collect();
        for view in policies.iter().filter(|view| view.policy.egress.is_some()) {
            let Some(of_namespace) = keys.get_mut(&view.policy.key.namespace) else { continue };
            view.selected.iter().for_each(|group| of_namespace[*group].push(&view.policy.key));
        }
        let mut ids: HashMap<Vec<&PolicyKey>, ListId> = HashMap::new();
        let (mut lists, mut lists_most_permissive) = (Vec::new(), Vec::new());
        let policies_of = |state: &'a ClusterState, keys: &[&PolicyKey]| -> Vec<&'a Policy> {
            keys.iter().filter_map(|key| state.policies.get(*key)).collect()
        };
        let mut list_id = |keys: Vec<&'a PolicyKey>| {
            let next = ListId(ids.len());
            *ids.entry(keys).or_insert_with_key(|keys| {
                lists.push(policies_of(state, keys));
                lists_most_permissive.push(policies_of(most_permissive, keys));
                next
            })
        };
        let lists_of_groups =
            keys.into_iter().map(|(name, groups)| (name, groups.into_iter().map(&mut list_id).collect())).collect();
        let backends = state.services.values().flat_map(Service::frontends).map(|(frontend, _)| {
            let backends = state.backends(&frontend).into_iter();
            (frontend, backends.map(|backend| (backend, state.peer_at(backend.address))).collect())
        });
        let backends: HashMap<Frontend, Vec<(Backend, Option<&Pod>)>> = backends.collect();
        let forwarded = backends
            .iter()
            .flat_map(|(frontend, backends)| backends.iter().map(|(backend, _)| (*backend, frontend.protocol)));
        let forwarded = forwarded.collect();
        let targets = state.services.iter().map(|(key, service)| (key, targets(state, service, |_| true))).collect();
        Self {
            state,
            lists,
            most_permissive: lists_most_permissive,
            lists_of_groups,
            backends,
            forwarded,
            targets,
            reached_services: RefCell::default(),
            allowed_targets: RefCell::default(),
        }
    }

    /// Returns the list of each group of a namespace, in the order of the groups.
    pub(super) fn lists_of(&self, namespace: &NamespaceName) -> &[ListId] {
        self.lists_of_groups.get(namespace).map(Vec::as_slice).unwrap_or_default()
    }

    /// Returns the lists of the groups that a policy selects, each once.
    pub(super) fn lists_of_selected(&self, view: &PolicyView<'_>) -> BTreeSet<ListId> {
        let lists = self.lists_of(&view.policy.key.namespace);
        view.selected.iter().map(|group| lists[*group]).collect()
    }

    /// Returns the policies of a list, in the state in which unknown addresses match the most blocks.
    pub(super) fn most_permissive(&self, list: ListId) -> &[&'a Policy] {
        &self.most_permissive[list.0]
    }

    /// Returns whether a Service forwards connections to this address and port.
    pub(super) fn is_forwarded(&self, backend: Backend, protocol: Protocol) -> bool {
        self.forwarded.contains(&(backend, protocol.number()))
    }

    /// Returns the backends of a frontend, each with its pod if the backend is a pod.
    pub(super) fn backends(&self, frontend: &Frontend) -> &[(Backend, Option<&'a Pod>)] {
        self.backends.get(frontend).map(Vec::as_slice).unwrap_or_default()
    }

    /// Returns the backends of a Service; `None` if it has none.
    pub(super) fn targets(&self, service: &ServiceKey) -> Option<&BTreeSet<Target>> {
        self.targets.get(service).filter(|targets| !targets.is_empty())
    }

    /// Returns whether pods with the policies of this list can reach all of these backends. If the list is empty, pods
    /// are not isolated, and can reach all of them.
    pub(super) fn reaches(&self, list: ListId, targets: &BTreeSet<Target>) -> bool {
        let policies = &self.lists[list.0];
        let mut cached = self.allowed_targets.borrow_mut();
        let mut is_allowed =
            |target: &Target| *cached.entry((list, *target)).or_insert_with(|| allowed(self.state, policies, target));
        policies.is_empty() || targets.iter().all(&mut is_allowed)
    }

    /// Returns whether pods with the policies of this list can reach all backends of a Service.
    pub(super) fn reaches_service(&self, list: ListId, service: &ServiceKey) -> bool {
        let key = (list, service.clone());
        if let Some(cached) = self.reached_services.borrow().get(&key) {
            return *cached;
        }
        let reaches = self.targets.get(service).is_none_or(|targets| self.reaches(list, targets));
        self.reached_services.borrow_mut().insert(key, reaches);
        reaches
    }
}

/// Returns the backends of a Service, for the ports of the Service that `has_port` accepts.
pub(super) fn targets(
    cluster_state: &ClusterState,
    service: &Service,
    has_port: impl Fn(u16) -> bool,
) -> BTreeSet<Target> {
    let frontends = service.frontends().filter(|(_, port)| has_port(port.port));
    frontends
        .flat_map(|(frontend, port)| {
            cluster_state.backends(&frontend).into_iter().map(|backend| (backend, port.protocol))
        })
        .collect()
}

/// Returns whether a rule of one of these policies allows the backend.
pub(super) fn allowed(cluster_state: &ClusterState, policies: &[&Policy], (backend, protocol): &Target) -> bool {
    let remote = Remote::of(cluster_state, backend.address);
    let allows = |policy: &Policy| {
        reference::rules(policy, Direction::Egress).iter().any(|rule| {
            reference::allows_port(&rule.ports, protocol.number(), backend.port, remote.pod)
                && reference::allows_peer(cluster_state, policy, &rule.peers, &remote)
        })
    };
    policies.iter().any(|policy| allows(policy))
}
