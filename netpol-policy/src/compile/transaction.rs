//! Handles one event: adds new entries, then updates endpoints, then removes unused entries.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use netpol_common::{AllowEntry, ClassId, Direction, DirectionPolicy, RuleSetId};

use super::Engine;
use super::allow::AllowEntries;
use super::classes::Signature;
use super::evolve::Evolution;
use super::parts::{PartId, RuleAt};
use super::rules::rules;
use super::selectors::{PeerSelector, PeerSelectorId};
use crate::cluster_state::Event;
use crate::model::{Frontend, NamespaceName, Pod, PodKey, Policy, PolicyKey};
use crate::tables::{Change, EndpointPolicy};

/// A rule set with the matching rules and named ports, which determine its entry for a class.
pub(super) type AllowKey = (RuleSetId, Vec<RuleAt>, Vec<(PeerSelectorId, u16)>);

/// The objects that an event touches, and the changes made so far.
#[derive(Default)]
pub(super) struct Transaction {
    pub(super) changes: Vec<Change>,
    pub(super) addresses: BTreeSet<IpAddr>,
    pub(super) prefixes: BTreeSet<IpNet>,
    pub(super) new_rule_sets: BTreeSet<RuleSetId>,
    pub(super) unused_classes: BTreeSet<ClassId>,
    pub(super) frontends: BTreeSet<Frontend>,
    pub(super) unused_backend_sets: BTreeSet<ClassId>,
    /// The egress rule set that each changed pod will have.
    pub(super) next_egress: BTreeMap<PodKey, RuleSetId>,
    /// The egress rule sets that changed pods had.
    pub(super) previous_egress: BTreeSet<RuleSetId>,
    pub(super) unused_rule_sets: BTreeSet<RuleSetId>,
    /// All touched addresses are touched only by new or unused peer selectors.
    pub(super) renaming: bool,
    /// A new block has exceptions. Its prefixes must be written before an endpoint uses it: if an exception does not
    /// fit into the map, the block must not be in force.
    pub(super) new_exceptions: bool,
    /// Rule sets that change in place.
    pub(super) evolving: Vec<Evolution>,
    /// Rule sets that change in place; in this step they only allow more.
    pub(super) growing: BTreeSet<RuleSetId>,
    /// Cache of entries by rule set, rules and named ports; `None`: the same as for any peer.
    pub(super) known_contents: HashMap<AllowKey, Option<AllowEntry>>,
}

impl Engine {
    pub(super) fn pod_event(&mut self, key: &PodKey, event: Event) -> Vec<Change> {
        let addresses_of =
            |engine: &Self| engine.cluster_state.pods.get(key).map(|pod| pod.addresses.clone()).unwrap_or_default();
        let host_ports_of = |engine: &Self| -> BTreeSet<Frontend> {
            let pod = engine.cluster_state.pods.get(key).into_iter();
            pod.flat_map(Pod::host_frontends).map(|(frontend, _)| frontend).collect()
        };
        let is_local = |engine: &Self| engine.cluster_state.pods.get(key).is_some_and(|pod| engine.scope.covers(pod));
        let mut transaction = Transaction::default();
        let (mut addresses, host_ports, was_local) = (addresses_of(self), host_ports_of(self), is_local(self));
        self.cluster_state.apply(event);
        self.budget.record_pod(key, is_local(self));
        addresses.extend(addresses_of(self));
        for address in addresses {
            if self.identities.assign(address, &self.selectors, &self.cluster_state) {
                transaction.addresses.insert(address);
            }
            // A pod of this node may reach itself through a Service (hairpin).
            if was_local || is_local(self) {
                transaction.frontends.extend(self.cluster_state.frontends_with_backend_at(address));
            }
        }
        self.touch_frontends(&mut transaction, &host_ports, &host_ports_of(self));
        self.commit(transaction, BTreeSet::from([key.clone()]))
    }

    pub(super) fn namespace_event(&mut self, name: &NamespaceName, event: Event) -> Vec<Change> {
        self.cluster_state.apply(event);
        let labels = self.cluster_state.namespace_labels(name);
        let addresses = self.identities.reevaluate(name, &self.selectors, &labels).into_iter().collect();
        self.commit(Transaction { addresses, ..Transaction::default() }, BTreeSet::new())
    }

    pub(super) fn policy_event(&mut self, key: &PolicyKey, event: Event) -> Vec<Change> {
        let old = self.cluster_state.policies.get(key).cloned();
        self.cluster_state.apply(event);
        self.budget.record_policy(key, self.cluster_state.policies.get(key));
        let new = self.cluster_state.policies.get(key).cloned();
        for direction in Direction::BOTH {
            let before = old.as_ref().and_then(|policy| rules(policy, direction));
            if before != new.as_ref().and_then(|policy| rules(policy, direction)) {
                self.parts.invalidate(key, direction);
            }
        }
        let selects = |policy: Option<&Policy>, pod: &PodKey| {
            let pod = self.cluster_state.pods.get(pod);
            policy.is_some_and(|policy| pod.is_some_and(|pod| policy.pods.isolates(&pod.labels)))
        };
        let pods = self.endpoints.of_namespace(&key.namespace);
        let pods = pods.filter(|pod| selects(old.as_ref(), pod) || selects(new.as_ref(), pod)).cloned().collect();
        let mut transaction = Transaction { renaming: true, ..Transaction::default() };
        let (balanced, others) = self.balance();
        let (evolutions, pods) = if balanced {
            // Parts of other policies change, too.
            (Vec::new(), &pods | &others)
        } else {
            self.evolutions(&mut transaction, key, pods)
        };
        transaction.evolving.clone_from(&evolutions);
        let mut changes = self.commit(transaction, pods);
        if !evolutions.is_empty() {
            changes.extend(self.shrink(&evolutions));
            let mut transaction = Transaction::default();
            self.retry_refused(&mut transaction);
            changes.append(&mut transaction.changes);
        }
        if let Some(old) = old {
            self.rule_names.retire(&old, new.as_ref());
        }
        changes
    }

    pub(super) fn local_addresses(&mut self, addresses: Vec<IpAddr>) -> Vec<Change> {
        let old: BTreeSet<_> = self.cluster_state.local_addresses.iter().copied().collect();
        self.cluster_state.apply(Event::LocalAddresses(addresses));
        let new = self.cluster_state.local_addresses.iter().copied().collect();
        let addresses: BTreeSet<_> = old.symmetric_difference(&new).copied().collect();
        for address in &addresses {
            self.identities.assign(*address, &self.selectors, &self.cluster_state);
        }
        self.commit(Transaction { addresses, ..Transaction::default() }, BTreeSet::new())
    }

    pub(super) fn commit(&mut self, mut transaction: Transaction, mut pods: BTreeSet<PodKey>) -> Vec<Change> {
        pods.append(&mut self.balance().1);
        let evolving = std::mem::take(&mut transaction.evolving);
        self.begin_evolutions(&evolving);
        transaction.growing = evolving.iter().map(|evolution| evolution.rule_set).collect();
        let endpoints: Vec<_> = pods.into_iter().map(|pod| self.resolve(&mut transaction, pod)).collect();
        let egress =
            |(pod, policy): &(PodKey, Option<EndpointPolicy>)| Some((pod.clone(), policy.as_ref()?.egress.rule_set));
        transaction.next_egress = endpoints.iter().filter_map(egress).collect();
        let moves = self.classify(&mut transaction);
        self.allow_to_new_rule_sets(&mut transaction);
        self.grow(&mut transaction, &evolving);
        let frontends = self.classify_frontends(&mut transaction, &moves);
        self.allow_frontends_to_new_rule_sets(&mut transaction);
        self.put_frontends(&mut transaction, &frontends);
        self.write_moves(&mut transaction, &moves);
        self.delete_frontends(&mut transaction, &frontends);
        for (pod, policy) in endpoints {
            self.write_endpoint(&mut transaction, &pod, policy);
        }
        self.reevaluate(&mut transaction, &moves, &frontends);
        self.release_classes(&mut transaction, &moves);
        self.release_frontends(&mut transaction, &frontends);
        let unused = self.retire_rule_sets(&mut transaction);
        self.disallow_previous(&mut transaction);
        self.retire_backend_sets(&mut transaction);
        self.retire_classes(&mut transaction);
        self.forget(&mut transaction, &unused);
        if evolving.is_empty() {
            self.retry_refused(&mut transaction);
        }
        transaction.changes
    }

    /// Applies a change to the tables and appends it to the transaction.
    pub(super) fn write(&mut self, transaction: &mut Transaction, change: Change) {
        let applied = self.tables.apply(&change);
        debug_assert!(applied.is_ok(), "{applied:?}");
        transaction.changes.push(change);
    }

    /// Resolves a pod's policies into rule sets. New peer selectors touch the addresses that match them.
    fn resolve(&mut self, transaction: &mut Transaction, key: PodKey) -> (PodKey, Option<EndpointPolicy>) {
        let Some(pod) = self.cluster_state.pods.get(&key).filter(|pod| self.scope.covers(pod)).cloned() else {
            return (key, None);
        };
        let [ingress, egress] = Direction::BOTH.map(|direction| {
            let parts = self.parts_of(transaction, &pod, direction);
            if parts.is_empty() {
                return DirectionPolicy::OPEN;
            }
            let parts: Arc<[PartId]> = parts.into();
            let known = self.rule_sets.find(direction, &parts).and_then(|id| self.rule_sets.acquire(id));
            known.unwrap_or_else(|| self.add_rule_set(transaction, direction, &parts))
        });
        // Whether the policy is incomplete is known only after compilation.
        (key, Some(EndpointPolicy { ingress, egress, incomplete: false }))
    }

    /// Returns the parts of all policies that isolate a pod in a direction.
    fn parts_of(&mut self, transaction: &mut Transaction, pod: &Pod, direction: Direction) -> Vec<PartId> {
        let first = PolicyKey::new(pod.key.namespace.clone(), "");
        let policies = self.cluster_state.policies.range(first..).map(|(_, policy)| policy);
        let policies = policies.take_while(|policy| policy.key.namespace == pod.key.namespace);
        let isolating =
            policies.filter(|policy| policy.pods.isolates(&pod.labels) && rules(policy, direction).is_some());
        let mut parts: Vec<_> =
            isolating.map(|policy| self.parts.find(policy, direction, pod).map_err(|_| policy.key.clone())).collect();
        for part in &mut parts {
            if let Err(policy) = part {
                *part = self.part(transaction, policy, direction, &pod.key).ok_or_else(|| policy.clone());
            }
        }
        parts.into_iter().filter_map(Result::ok).collect()
    }

    /// Returns a policy's part for a pod, if the policy isolates the pod in this direction.
    pub(super) fn part(
        &mut self,
        transaction: &mut Transaction,
        policy: &PolicyKey,
        direction: Direction,
        pod: &PodKey,
    ) -> Option<PartId> {
        let Self { cluster_state, parts, rule_names, selectors, budget, .. } = self;
        let (policy, pod) = cluster_state.policies.get(policy).zip(cluster_state.pods.get(pod))?;
        if !policy.pods.isolates(&pod.labels) || rules(policy, direction).is_none() {
            return None;
        }
        let numbers = match parts.find(policy, direction, pod) {
            Ok(part) => return Some(part),
            Err(numbers) => numbers,
        };
        let mut room = budget.room(&policy.key, direction);
        let resolved = rule_names.resolve(policy, direction, &numbers, &mut room);
        let mut new_selectors = Vec::new();
        let part = parts.add(policy, direction, numbers, (resolved, room.is_exceeded()), |selector| {
            let (id, new) = selectors.acquire(selector.clone());
            if new {
                new_selectors.push((id, selector));
            }
            id
        });
        for (id, selector) in new_selectors {
            self.add_selector(transaction, id, &selector);
        }
        Some(part)
    }

    fn add_rule_set(
        &mut self,
        transaction: &mut Transaction,
        direction: Direction,
        parts: &Arc<[PartId]>,
    ) -> DirectionPolicy {
        let any = self.for_any_peer(parts);
        let namespace = parts.first().and_then(|part| self.parts.get(*part)).map(|part| part.policy.namespace.clone());
        let namespace = namespace.filter(|namespace| self.has_room(namespace, (self.port_sets.missing(&any), 0)));
        let any_set = namespace.map(|namespace| self.intern(transaction, &any, &namespace).port_set);
        let policy = self.rule_sets.add(direction, parts, &mut self.parts, any, any_set);
        transaction.new_rule_sets.insert(policy.rule_set);
        policy
    }

    /// Returns what parts allow to any peer.
    fn for_any_peer(&self, parts: &[PartId]) -> AllowEntries {
        let parts = parts.iter().filter_map(|part| Some((*part, self.parts.get(*part)?)));
        let open: Vec<_> =
            parts.flat_map(|(part, body)| body.open.iter().map(move |index| RuleAt { part, index: *index })).collect();
        self.contents(BTreeMap::new(), &open, &Signature::default())
    }

    /// Returns the port set with these contents, with one more user.
    pub(super) fn intern(
        &mut self,
        transaction: &mut Transaction,
        contents: &AllowEntries,
        owner: &NamespaceName,
    ) -> AllowEntry {
        let (entry, ports) = self.port_sets.acquire(contents, owner);
        for change in ports {
            self.write(transaction, change);
        }
        entry
    }

    /// Removes one user of a part. Appends the peer selectors that are no longer used to `unused`.
    pub(super) fn release_part(&mut self, part: PartId, unused: &mut Vec<(PeerSelectorId, PeerSelector)>) {
        let Some(part) = self.parts.release(part) else { return };
        for selector in part.selectors() {
            unused.extend(self.selectors.release(selector).map(|gone| (selector, gone)));
        }
    }

    fn add_selector(&mut self, transaction: &mut Transaction, id: PeerSelectorId, selector: &PeerSelector) {
        if let PeerSelector::Block(block) = selector {
            transaction.new_exceptions |= !block.except.is_empty();
            transaction.prefixes.extend(self.blocks.add(id, block));
            transaction.addresses.extend(self.addresses_in(block.cidr));
        } else {
            transaction.addresses.extend(self.identities.add_selector(id, selector, &self.cluster_state));
        }
    }

    /// Returns the addresses inside a block that have an entry of their own.
    fn addresses_in(&self, net: IpNet) -> Vec<IpAddr> {
        let (first, last) = (net.network(), net.broadcast());
        self.tables.addresses_between(first, last).collect()
    }

    fn write_endpoint(&mut self, transaction: &mut Transaction, pod: &PodKey, policy: Option<EndpointPolicy>) {
        let rule_sets = policy.map(|policy| [policy.ingress.rule_set, policy.egress.rule_set]);
        let before = self.endpoints.get(pod);
        match policy {
            Some(policy) if before != rule_sets => {
                // What a rule set allows to any peer may have changed in place in this transaction.
                let policy = rule_sets.map_or(policy, |ids| self.endpoint_policy(ids));
                self.write(transaction, Change::PutEndpoint(pod.clone(), policy));
            }
            None if before.is_some() => self.write(transaction, Change::DeleteEndpoint(pod.clone())),
            _ => {}
        }
        transaction.previous_egress.extend(before.map(|[_, egress]| egress));
        for rule_set in self.endpoints.set(pod, rule_sets).into_iter().flatten() {
            if rule_sets.is_none() {
                self.rule_sets.freeze(rule_set);
                let any = self.rule_sets.get(rule_set).map(|rule_set| rule_set.policy.any);
                if let Some(any) = any {
                    self.port_sets.freeze(any);
                }
            }
            if self.rule_sets.release(rule_set) {
                transaction.unused_rule_sets.insert(rule_set);
            }
        }
    }

    /// Removes unused rule sets. Returns the peer selectors that are no longer used.
    fn retire_rule_sets(&mut self, transaction: &mut Transaction) -> Vec<(PeerSelectorId, PeerSelector)> {
        let mut unused = Vec::new();
        for id in std::mem::take(&mut transaction.unused_rule_sets) {
            let Some(rule_set) = self.rule_sets.retire(id) else { continue };
            for class in self.classes_with_entries(&rule_set) {
                self.disallow(transaction, id, class);
            }
            self.disallow_all_frontends(transaction, id);
            for change in self.port_sets.release(rule_set.policy.any) {
                self.write(transaction, change);
            }
            for part in rule_set.parts().iter() {
                self.release_part(*part, &mut unused);
            }
        }
        unused
    }

    /// Merges the classes that only unused peer selectors distinguished. No endpoint uses these any more, so no verdict
    /// changes.
    pub(super) fn forget(&mut self, transaction: &mut Transaction, unused: &[(PeerSelectorId, PeerSelector)]) {
        if unused.is_empty() {
            return;
        }
        transaction.new_rule_sets.clear();
        transaction.renaming = true;
        for (id, selector) in unused {
            if let PeerSelector::Block(block) = selector {
                transaction.prefixes.extend(self.blocks.remove(*id, block));
                transaction.addresses.extend(self.addresses_in(block.cidr));
            } else {
                transaction.addresses.extend(self.identities.remove_selector(*id, selector, &self.cluster_state));
            }
        }
        for (_, selector) in unused {
            let PeerSelector::Block(block) = selector else { continue };
            for (net, class) in self.blocks.retire(block) {
                transaction.prefixes.remove(&net);
                transaction.frontends.extend(self.frontends_into(net));
                self.write(transaction, Change::DeletePrefix(net));
                if self.classes.release(class) {
                    transaction.unused_classes.insert(class);
                }
            }
        }
        let moves = self.classify(transaction);
        let frontends = self.classify_frontends(transaction, &moves);
        self.put_frontends(transaction, &frontends);
        self.write_moves(transaction, &moves);
        self.release_classes(transaction, &moves);
        self.release_frontends(transaction, &frontends);
        self.retire_backend_sets(transaction);
        self.retire_classes(transaction);
    }
}
