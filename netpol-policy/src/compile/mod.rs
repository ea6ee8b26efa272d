//! The incremental compiler: an event goes in, a list of map changes comes out.
//!
//! ```text
//! event ─► cluster state ─┬─► pods of this node ─► rules (rules.rs) ─► rule sets (rule_sets.rs) ─► endpoints
//!                         └─► peers: identity (identities.rs) and blocks (blocks.rs) of each address
//!                                    ─► signature ─► class (classes.rs) ─► addresses, prefixes
//!                             rule set × class ─► allow (allow.rs) ─► port sets (port_sets.rs)
//! ```
//!
//! * A **part** is the resolved rules of one policy in one direction. A **rule set** consists of the parts of all
//!   policies that isolate a pod in one direction. Pods with the same rules share a rule set.
//! * An **endpoint** is the interface of a pod under enforcement.
//! * A **peer selector** is one distinct peer condition: pods with these labels, addresses in this block, pods with a
//!   port of this name. Only peer selectors of rule sets in use exist.
//! * An **identity** is the namespace, labels and named ports of a pod. Pods with the same identity match the same peer
//!   selectors.
//! * A **signature** is the set of peer selectors that an address matches. A **class** is a signature with an ID: an
//!   equivalence class of addresses.
//! * Everything is reference-counted. Entries without users are removed after the endpoints are updated. Then classes
//!   are merged if only unused peer selectors distinguish them. No endpoint uses these selectors any more, so this
//!   changes no verdict.
//!
//! The cost of an event depends on what it changes. A new pod with the labels and ports of existing pods takes one
//! write for its address, and one for its endpoint if the pod is on this node. A label change takes writes for the
//! pod's address and endpoint. A policy takes writes for the pods that it selects on this node, and for the addresses
//! that get another class because of its peers.

mod admission;
mod allow;
mod blocks;
mod classes;
mod difference;
mod endpoints;
mod entry_counts;
mod events;
mod frontends;
mod identities;
mod ids;
mod interned;
mod memory_limit;
mod modes;
mod parts;
mod policies;
mod port_sets;
mod reclassify;
mod resolve;
mod rule_sets;
mod rules;
mod selector_set;
mod selectors;
mod services;
mod transaction;
mod update_in_place;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use netpol_common::{Evaluation, RuleId, RuleSetId};

pub use ids::{FirstIds, UsedIds};
pub use memory_limit::{ALLOW_ENTRY, Omitted};
pub use policies::ListedPolicy;
pub use rules::RuleName;

use crate::cluster_state::{ClusterState, Event};
use crate::model::{EndpointSlice, Mode, NamespaceName, Object, ObjectKey, Pod, PodKey, PolicyKey};
use crate::reference::Packet;
use crate::tables::{Change, EndpointPolicy, Tables};

/// If more than this number of IDs of one kind are used, the engine should be replaced, see
/// [`Engine::needs_successor`].
const MAX_IDS: u32 = u32::MAX / 4;

/// The pods that get endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeScope {
    /// All pods, to answer queries about a whole cluster.
    All,
    /// The pods of one node.
    Node(Arc<str>),
}

impl NodeScope {
    fn covers(&self, pod: &Pod) -> bool {
        pod.is_selectable()
            && match self {
                Self::All => true,
                Self::Node(name) => pod.node.as_ref() == Some(name),
            }
    }
}

/// The cluster state, and the tables compiled from it.
#[derive(Clone, Debug)]
pub struct Engine {
    scope: NodeScope,
    cluster_state: ClusterState,
    tables: Tables,
    selectors: selectors::PeerSelectors,
    identities: identities::Identities,
    blocks: blocks::Blocks,
    classes: classes::Classes,
    backend_sets: frontends::BackendSets,
    rule_names: rules::RuleNames,
    parts: parts::Parts,
    rule_sets: rule_sets::RuleSets,
    port_sets: port_sets::PortSets,
    endpoints: endpoints::Endpoints,
    memory_limit: memory_limit::MemoryLimit,
}

impl Engine {
    /// Creates an engine for an empty cluster, with IDs that start at `ids`.
    pub fn new(scope: NodeScope, ids: FirstIds) -> Self {
        Self {
            scope,
            cluster_state: ClusterState::default(),
            tables: Tables::default(),
            selectors: selectors::PeerSelectors::default(),
            identities: identities::Identities::default(),
            blocks: blocks::Blocks::default(),
            classes: classes::Classes::new(ids.class),
            backend_sets: frontends::BackendSets::default(),
            rule_names: rules::RuleNames::new(ids.rule),
            parts: parts::Parts::default(),
            rule_sets: rule_sets::RuleSets::new(ids.rule_set),
            port_sets: port_sets::PortSets::new(ids.port_set),
            endpoints: endpoints::Endpoints::default(),
            memory_limit: memory_limit::MemoryLimit::default(),
        }
    }

    /// Limits the kernel memory for policies to about this many bytes. If policies need more, blocks and ports of the
    /// largest policies are left out. Call this before the first event.
    #[must_use]
    pub fn with_policy_memory(mut self, limit: Option<u64>) -> Self {
        self.memory_limit = memory_limit::MemoryLimit::of(limit);
        self
    }

    /// Sets the namespace in which agents run, see [`ClusterState::with_agent_namespace`]. Call this before the first
    /// event.
    #[must_use]
    pub fn with_agent_namespace(mut self, name: NamespaceName) -> Self {
        self.cluster_state = std::mem::take(&mut self.cluster_state).with_agent_namespace(name);
        self
    }

    /// Applies events one after the other; see [`Engine::apply`].
    pub fn apply_all(&mut self, events: impl IntoIterator<Item = Event>) -> Vec<Change> {
        events.into_iter().flat_map(|event| self.apply(event)).collect()
    }

    /// Applies an event and returns the changes in the order in which they must be written.
    ///
    /// After each change, each verdict is either the one before or the one after the event. A reset has the same effect
    /// as single events that are applied one after the other. If the states between these events must not be visible,
    /// use a [`successor`](Engine::successor). An event that changes nothing returns no changes.
    ///
    /// # Panics
    /// Panics when all four billion IDs of a kind are used, long after [`Engine::needs_successor`] returns true.
    pub fn apply(&mut self, event: Event) -> Vec<Change> {
        match event {
            Event::Apply(object) => self.apply_object(object),
            Event::Delete(key) => self.delete_object(&key),
            Event::Reset(objects) => self.reset(objects),
            Event::LocalAddresses(addresses) => self.local_addresses(addresses),
            Event::Clock(time) => self.clock_event(time),
        }
    }

    /// Returns an engine for the state after these events, with new IDs. The new engine also keeps the names of the
    /// rules and rule sets of this engine.
    #[must_use]
    pub fn successor(&self, events: Vec<Event>, ids: FirstIds) -> Self {
        let mut cluster_state = self.cluster_state.clone();
        for event in events {
            cluster_state.apply(event);
        }
        let mut next = Self::new(self.scope.clone(), ids)
            .with_policy_memory(self.memory_limit.bytes())
            .with_agent_namespace(cluster_state.agent_namespace().into());
        next.apply(Event::Clock(cluster_state.clock));
        next.apply(Event::LocalAddresses(cluster_state.local_addresses.clone()));
        next.apply(Event::Reset(cluster_state.into_objects().collect()));
        next.rule_names.inherit(&self.rule_names);
        next.rule_sets.inherit(&self.rule_sets);
        next
    }

    /// Returns whether so many IDs are used that a [`successor`](Engine::successor) is due. If a thousand IDs of
    /// one kind are allocated each second, this takes 12 days.
    pub fn needs_successor(&self) -> bool {
        let allocated = [
            self.classes.ids_allocated(),
            self.rule_names.ids_allocated(),
            self.rule_sets.ids_allocated(),
            self.port_sets.ids_allocated(),
        ];
        allocated.into_iter().any(|allocated| allocated > MAX_IDS)
    }

    /// Sorts events so that no verdict depends on a mixed state, in which only some of the events are applied.
    ///
    /// Returns `None` if more than one event changes existing state, if an event changes both the labels and the modes
    /// of a namespace, or if an event is a reset. In these cases, a [`successor`](Engine::successor) is needed.
    ///
    /// Policies come before new pods, so that no new pod is unprotected. Deletions of pods come last. They do not
    /// count as changes of existing state, because they cannot cause a mixed state, except if the pod is a backend of a
    /// Service. A new Service comes after its pods and slices, so that its backends are complete.
    pub fn in_safe_order(&self, mut events: Vec<Event>) -> Option<Vec<Event>> {
        let cluster_state = &self.cluster_state;
        let has_service =
            |slice: &EndpointSlice| slice.service_key().is_some_and(|key| cluster_state.services.contains_key(&key));
        let is_backend = |pod: &Pod| {
            pod.addresses.iter().any(|address| !cluster_state.frontends_with_backend_at(*address).is_empty())
        };
        let changes_existing_state = |event: &&Event| match event {
            Event::Apply(object) if cluster_state.contains_unchanged(object) => false,
            Event::Apply(Object::Pod(pod)) => cluster_state.pods.contains_key(&pod.key) || is_backend(pod),
            Event::Apply(Object::Slice(slice)) => {
                has_service(slice) || cluster_state.slices.get(&slice.key).is_some_and(has_service)
            }
            Event::Delete(ObjectKey::Pod(key)) => cluster_state.pods.get(key).is_some_and(is_backend),
            Event::Delete(ObjectKey::Slice(key)) => cluster_state.slices.get(key).is_some_and(has_service),
            Event::Delete(key) => cluster_state.contains(key),
            Event::Clock(time) => self.changes_modes(*time),
            Event::Apply(_) | Event::Reset(_) | Event::LocalAddresses(_) => true,
        };
        let changes_labels_and_modes = events.iter().any(|event| self.separate_mode_change(event).is_some());
        if changes_labels_and_modes
            || events.iter().filter(changes_existing_state).count() > 1
            || events.iter().any(|event| matches!(event, Event::Reset(_)))
        {
            return None;
        }
        events.sort_by_key(|event| match event {
            Event::Apply(Object::Pod(_)) => 1,
            Event::Apply(Object::Slice(_)) => 2,
            Event::Apply(Object::Service(_)) => 3,
            Event::Delete(ObjectKey::Pod(_) | ObjectKey::Node(_)) => 4,
            _ => 0,
        });
        Some(events)
    }

    /// Returns the cluster state.
    pub fn cluster_state(&self) -> &ClusterState {
        &self.cluster_state
    }

    /// Returns the compiled tables.
    pub fn tables(&self) -> &Tables {
        &self.tables
    }

    /// Returns the name of a rule. Names of deleted rules are kept for some time.
    pub fn rule(&self, id: RuleId) -> Option<&RuleName> {
        self.rule_names.get(id)
    }

    /// Returns the policies of a rule set. Policies of deleted rule sets are kept for some time.
    pub fn rule_set(&self, id: RuleSetId) -> Option<&[PolicyKey]> {
        self.rule_sets.policies(id)
    }

    /// Returns the compiled policy of a pod in scope.
    pub fn endpoint(&self, pod: &PodKey) -> Option<EndpointPolicy> {
        self.tables.endpoint(pod)
    }

    /// Evaluates a packet with the tables. Returns `None` if its pod has no endpoint.
    pub fn evaluate(&self, packet: &Packet) -> Option<Evaluation> {
        let addresses = self.cluster_state.pods.get(&packet.pod).map(|pod| &pod.addresses[..]).unwrap_or_default();
        Some(self.tables.evaluate(self.endpoint(&packet.pod)?, addresses, packet))
    }

    /// Returns the policies that lack blocks, ports or entries because of the memory limit.
    pub fn omitted(&self) -> BTreeMap<PolicyKey, Omitted> {
        let mut omitted: BTreeMap<PolicyKey, Omitted> =
            self.memory_limit.cuts().map(|(policy, omitted)| (policy.clone(), omitted)).collect();
        for rule_set in self.rule_sets.refusals(Mode::Enforce) {
            for policy in self.rule_sets.policies(rule_set).unwrap_or_default() {
                omitted.entry(policy.clone()).or_default().entries += 1;
            }
        }
        omitted
    }

    /// Returns the pod that an interface with this address belongs to.
    pub fn pod_at(&self, address: IpAddr) -> Option<PodKey> {
        self.cluster_state.pod_with_address(address).map(|pod| pod.key.clone())
    }

    /// Applies an object. An unchanged object causes no changes, so a source can list all objects again at little cost.
    fn apply_object(&mut self, object: Object) -> Vec<Change> {
        if self.cluster_state.contains_unchanged(&object) {
            return Vec::new();
        }
        self.object_event(&object.key(), Event::Apply(object))
    }

    fn delete_object(&mut self, key: &ObjectKey) -> Vec<Change> {
        if !self.cluster_state.contains(key) {
            return Vec::new();
        }
        self.object_event(key, Event::Delete(key.clone()))
    }

    /// Applies a change of an object. If the change concerns both the labels and the modes of a namespace, the modes
    /// are changed first, in a step of their own.
    fn object_event(&mut self, key: &ObjectKey, event: Event) -> Vec<Change> {
        if let Some(namespace) = self.separate_mode_change(&event) {
            let first = Event::Apply(Object::Namespace(namespace));
            let mut changes = self.single_object_event(key, first);
            changes.extend(self.single_object_event(key, event));
            return changes;
        }
        self.single_object_event(key, event)
    }

    fn single_object_event(&mut self, key: &ObjectKey, event: Event) -> Vec<Change> {
        match key {
            ObjectKey::Pod(key) => self.pod_event(key, event),
            ObjectKey::Namespace(name) => self.namespace_event(name, event),
            ObjectKey::Policy(key) => self.policy_event(key, event),
            ObjectKey::Node(name) => self.node_event(name, event),
            ObjectKey::Service(key) => self.service_event(key, event),
            ObjectKey::Slice(key) => self.slice_event(key, event),
        }
    }

    /// Replaces all objects. Policies are added before pods and deleted after pods, so that no pod is unprotected.
    /// Services are added last, when all of their backends exist.
    fn reset(&mut self, objects: Vec<Object>) -> Vec<Change> {
        let rank = |kind: &ObjectKey| match kind {
            ObjectKey::Namespace(_) => 0,
            ObjectKey::Node(_) => 1,
            ObjectKey::Policy(_) => 2,
            ObjectKey::Slice(_) => 3,
            ObjectKey::Pod(_) => 4,
            ObjectKey::Service(_) => 5,
        };
        let next_state = ClusterState::from_objects(objects);
        let mut deleted: Vec<_> = self.cluster_state.keys().filter(|key| !next_state.contains(key)).collect();
        let mut new_or_changed: Vec<_> =
            next_state.into_objects().filter(|object| !self.cluster_state.contains_unchanged(object)).collect();
        deleted.sort_by_key(|key| std::cmp::Reverse(rank(key)));
        new_or_changed.sort_by_key(|object| rank(&object.key()));
        let mut changes = Vec::new();
        for object in new_or_changed {
            changes.extend(self.apply_object(object));
        }
        for key in deleted {
            changes.extend(self.delete_object(&key));
        }
        changes
    }
}

#[cfg(test)]
mod tests;
