//! The incremental compiler: one event in, the writes it takes out.
//!
//! ```text
//! event ─► World ─┬─► pods of this node ─► rules (rules.rs) ─► rule sets (rule_sets.rs) ──► endpoints
//!                 └─► peers: who is an address? identities (identities.rs), blocks (blocks.rs)
//!                            ─► signature ─► class (classes.rs) ─► addresses, prefixes
//!                     rule set × class ─► allow (allow.rs) ─► port sets (port_sets.rs)
//! ```
//!
//! * An **atom** is one thing a rule can ask of an address: selected by these labels, inside this block, has a port of
//!   this name. Only atoms that a rule set in use asks for exist.
//! * A **signature** is the set of atoms an address answers to; a **class** is a signature with a number.
//! * Everything is counted and goes when nothing uses it, after the endpoints have flipped: merging classes changes no
//!   verdict then.
//!
//! An event costs what it touches: a pod like others one write, a label change that pod's address and endpoint, a policy the
//! pods it selects on this node and the addresses its peers name first.

mod allow;
mod atom_set;
mod atoms;
mod blocks;
mod budget;
mod charges;
mod classes;
mod difference;
mod endpoints;
mod evolve;
mod frontends;
mod identities;
mod ids;
mod memory;
mod parts;
mod port_sets;
mod reclassify;
mod rule_sets;
mod rules;
mod services;
mod transaction;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use netpol_common::{Judgement, RuleId, RuleSetId};

pub use budget::{ALLOW_ENTRY, LeftOut};
pub use ids::{FirstIds, UsedIds};
pub use rules::RuleName;

use crate::model::{EndpointSlice, Object, ObjectKey, Pod, PodKey, PolicyKey};
use crate::reference::Packet;
use crate::tables::{Change, EndpointPolicy, Tables};
use crate::world::{Event, World};

/// So many ids of a kind, and the engine is better replaced.
const WORN: u32 = u32::MAX / 4;

/// Which pods get endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeScope {
    /// Every pod: for answers about a whole cluster.
    All,
    /// The pods of one node.
    Node(Arc<str>),
}

impl NodeScope {
    fn covers(&self, pod: &Pod) -> bool {
        pod.participates()
            && match self {
                Self::All => true,
                Self::Node(name) => pod.node.as_ref() == Some(name),
            }
    }
}

/// The World, and the tables that say the same.
#[derive(Clone, Debug)]
pub struct Engine {
    scope: NodeScope,
    world: World,
    tables: Tables,
    atoms: atoms::Atoms,
    identities: identities::Identities,
    blocks: blocks::Blocks,
    classes: classes::Classes,
    frontend_classes: frontends::FrontendClasses,
    rule_names: rules::RuleNames,
    parts: parts::Parts,
    rule_sets: rule_sets::RuleSets,
    port_sets: port_sets::PortSets,
    endpoints: endpoints::Endpoints,
    budget: budget::Budget,
}

impl Engine {
    /// An engine of an empty world, whose ids start at `ids`.
    pub fn new(scope: NodeScope, ids: FirstIds) -> Self {
        Self {
            scope,
            world: World::default(),
            tables: Tables::default(),
            atoms: atoms::Atoms::default(),
            identities: identities::Identities::default(),
            blocks: blocks::Blocks::default(),
            classes: classes::Classes::new(ids.class),
            frontend_classes: frontends::FrontendClasses::default(),
            rule_names: rules::RuleNames::new(ids.rule),
            parts: parts::Parts::default(),
            rule_sets: rule_sets::RuleSets::new(ids.rule_set),
            port_sets: port_sets::PortSets::new(ids.port_set),
            endpoints: endpoints::Endpoints::default(),
            budget: budget::Budget::default(),
        }
    }

    /// Limits the kernel memory that policies may take to about so many bytes; where they need more, blocks and ports are
    /// left out of those that need most. Call before the first event.
    #[must_use]
    pub fn with_policy_memory(mut self, limit: Option<u64>) -> Self {
        self.budget = budget::Budget::of(limit);
        self
    }

    /// Takes events in, one after the other; see [`Engine::apply`].
    pub fn apply_all(&mut self, events: impl IntoIterator<Item = Event>) -> Vec<Change> {
        events.into_iter().flat_map(|event| self.apply(event)).collect()
    }

    /// Takes an event in. The writes it takes, in the order in which they are to be made: after each of them every endpoint
    /// is judged as before the event or as after it. A reset is the sum of the single events it stands for; where what is in
    /// between must not show, take a [`successor`](Engine::successor). An event that says what is known already takes none.
    ///
    /// # Panics
    /// When the four billion ids of a kind are used up, long after [`Engine::is_worn`] says so.
    pub fn apply(&mut self, event: Event) -> Vec<Change> {
        match event {
            Event::Apply(object) => self.put(object),
            Event::Delete(key) => self.delete(&key),
            Event::Reset(objects) => self.reset(objects),
            Event::OwnAddresses(addresses) => self.own_addresses(addresses),
        }
    }

    /// An engine of the world as it is after these events, with ids of its own. It knows the names of this one's rules too.
    #[must_use]
    pub fn successor(&self, events: Vec<Event>, ids: FirstIds) -> Self {
        let mut world = self.world.clone();
        for event in events {
            world.apply(event);
        }
        let mut next = Self::new(self.scope.clone(), ids).with_policy_memory(self.budget.limit());
        next.apply(Event::OwnAddresses(world.own_addresses.clone()));
        next.apply(Event::Reset(world.into_objects().collect()));
        next.rule_names.inherit(&self.rule_names);
        next.rule_sets.inherit(&self.rule_sets);
        next
    }

    /// Whether so many ids are used up that it is time for a [`successor`](Engine::successor): at a thousand changes a second,
    /// after some weeks.
    pub fn is_worn(&self) -> bool {
        let spent = [
            self.classes.ids_spent(),
            self.rule_names.ids_spent(),
            self.rule_sets.ids_spent(),
            self.port_sets.ids_spent(),
        ];
        spent.into_iter().any(|spent| spent > WORN)
    }

    /// These events in an order that shows nothing on the way which is neither how it was nor how it will be; `None` where
    /// more than one of them changes what was there, and a [`successor`](Engine::successor) is needed. Policies come before
    /// new pods, so that none is open meanwhile, and pods that go are last: they have nothing to mix with, unless they are behind a
    /// Service. A new one comes after its pods and slices, so that it is known at once who is behind it.
    pub fn one_step(&self, mut events: Vec<Event>) -> Option<Vec<Event>> {
        let world = &self.world;
        let is_served =
            |slice: &EndpointSlice| slice.service_key().is_some_and(|key| world.services.contains_key(&key));
        let is_behind = |pod: &Pod| pod.addresses.iter().any(|address| !world.frontends_towards(*address).is_empty());
        let changes = |event: &&Event| match event {
            Event::Apply(object) if world.holds(object) => false,
            Event::Apply(Object::Pod(pod)) => world.pods.contains_key(&pod.key) || is_behind(pod),
            Event::Apply(Object::Slice(slice)) => {
                is_served(slice) || world.slices.get(&slice.key).is_some_and(is_served)
            }
            Event::Delete(ObjectKey::Pod(key)) => world.pods.get(key).is_some_and(is_behind),
            Event::Delete(ObjectKey::Slice(key)) => world.slices.get(key).is_some_and(is_served),
            Event::Delete(key) => world.contains(key),
            Event::Apply(_) | Event::Reset(_) | Event::OwnAddresses(_) => true,
        };
        if events.iter().filter(changes).count() > 1 || matches!(events[..], [Event::Reset(_)]) {
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

    /// The objects.
    pub fn world(&self) -> &World {
        &self.world
    }

    /// The tables that say what the objects mean.
    pub fn tables(&self) -> &Tables {
        &self.tables
    }

    /// A rule's name. Rules that are gone keep theirs for a while.
    pub fn rule(&self, id: RuleId) -> Option<&RuleName> {
        self.rule_names.get(id)
    }

    /// The policies of a rule set. Rule sets that are gone keep theirs for a while.
    pub fn rule_set(&self, id: RuleSetId) -> Option<&[PolicyKey]> {
        self.rule_sets.policies(id)
    }

    /// What holds for a pod in scope.
    pub fn endpoint(&self, pod: &PodKey) -> Option<EndpointPolicy> {
        self.tables.endpoint(pod)
    }

    /// The tables' verdict on a packet; `None` where its pod has no endpoint.
    pub fn judge(&self, packet: &Packet) -> Option<Judgement> {
        let own = self.world.pods.get(&packet.pod).map(|pod| &pod.addresses[..]).unwrap_or_default();
        Some(self.tables.judge(self.endpoint(&packet.pod)?, own, packet))
    }

    /// The policies of which blocks or ports are left out for lack of memory.
    pub fn left_out(&self) -> BTreeMap<PolicyKey, LeftOut> {
        let mut left_out: BTreeMap<PolicyKey, LeftOut> =
            self.budget.cuts().map(|(policy, left_out)| (policy.clone(), left_out)).collect();
        for rule_set in self.rule_sets.refusals() {
            for policy in self.rule_sets.policies(rule_set).unwrap_or_default() {
                left_out.entry(policy.clone()).or_default().entries += 1;
            }
        }
        left_out
    }

    /// The pod behind an interface with this address.
    pub fn pod_at(&self, address: IpAddr) -> Option<PodKey> {
        self.world.claimant(address).map(|pod| pod.key.clone())
    }

    /// What is there already is no news: sources that list everything again cost a comparison.
    fn put(&mut self, object: Object) -> Vec<Change> {
        if self.world.holds(&object) {
            return Vec::new();
        }
        match object {
            Object::Pod(pod) => self.pod_event(&pod.key.clone(), Event::Apply(Object::Pod(pod))),
            Object::Namespace(namespace) => {
                let name = namespace.name.clone();
                self.namespace_event(&name, Event::Apply(Object::Namespace(namespace)))
            }
            Object::Policy(policy) => self.policy_event(&policy.key.clone(), Event::Apply(Object::Policy(policy))),
            Object::Node(node) => self.node_event(&node.name.clone(), Event::Apply(Object::Node(node))),
            Object::Service(service) => {
                self.service_event(&service.key.clone(), Event::Apply(Object::Service(service)))
            }
            Object::Slice(slice) => self.slice_event(&slice.key.clone(), Event::Apply(Object::Slice(slice))),
        }
    }

    fn delete(&mut self, key: &ObjectKey) -> Vec<Change> {
        if !self.world.contains(key) {
            return Vec::new();
        }
        let event = Event::Delete(key.clone());
        match key {
            ObjectKey::Pod(key) => self.pod_event(key, event),
            ObjectKey::Namespace(name) => self.namespace_event(name, event),
            ObjectKey::Policy(key) => self.policy_event(key, event),
            ObjectKey::Node(name) => self.node_event(name, event),
            ObjectKey::Service(key) => self.service_event(key, event),
            ObjectKey::Slice(key) => self.slice_event(key, event),
        }
    }

    /// Policies come before pods, so that no new pod is open meanwhile, and leave after them. Services come last: each finds all
    /// its backends.
    fn reset(&mut self, objects: Vec<Object>) -> Vec<Change> {
        let rank = |kind: &ObjectKey| match kind {
            ObjectKey::Namespace(_) => 0,
            ObjectKey::Node(_) => 1,
            ObjectKey::Policy(_) => 2,
            ObjectKey::Slice(_) => 3,
            ObjectKey::Pod(_) => 4,
            ObjectKey::Service(_) => 5,
        };
        let wanted = World::of(objects);
        let mut gone: Vec<_> = self.world.keys().filter(|key| !wanted.contains(key)).collect();
        let mut there: Vec<_> = wanted.into_objects().filter(|object| !self.world.holds(object)).collect();
        gone.sort_by_key(|key| std::cmp::Reverse(rank(key)));
        there.sort_by_key(|object| rank(&object.key()));
        let mut changes = Vec::new();
        for object in there {
            changes.extend(self.put(object));
        }
        for key in gone {
            changes.extend(self.delete(&key));
        }
        changes
    }
}

#[cfg(test)]
mod tests;
