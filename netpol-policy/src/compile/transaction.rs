//! One event's work: what is new first, then the flips, then what is unused.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use netpol_common::{AllowEntry, ClassId, Direction, DirectionPolicy, RuleSetId};

use super::Engine;
use super::allow::Contents;
use super::atoms::{Atom, AtomId};
use super::classes::Signature;
use super::evolve::Evolution;
use super::parts::{PartId, RuleAt};
use super::rules::rules;
use crate::model::{Frontend, NamespaceName, Pod, PodKey, Policy, PolicyKey};
use crate::tables::{Change, EndpointPolicy};
use crate::world::Event;

/// A rule set, and the rules and named ports that decide at an address.
pub(super) type ContentsKey = (RuleSetId, Vec<RuleAt>, Vec<(AtomId, u16)>);

/// What an event touches, and the writes made so far.
#[derive(Default)]
pub(super) struct Transaction {
    pub(super) changes: Vec<Change>,
    pub(super) addresses: BTreeSet<IpAddr>,
    pub(super) prefixes: BTreeSet<IpNet>,
    pub(super) new_rule_sets: BTreeSet<RuleSetId>,
    pub(super) unused_classes: BTreeSet<ClassId>,
    pub(super) frontends: BTreeSet<Frontend>,
    pub(super) unused_frontend_classes: BTreeSet<ClassId>,
    /// The egress rule sets that pods will have.
    pub(super) flipping: BTreeMap<PodKey, RuleSetId>,
    /// The egress rule sets that pods had.
    pub(super) parted: BTreeSet<RuleSetId>,
    pub(super) unused_rule_sets: BTreeSet<RuleSetId>,
    /// Addresses are touched by atoms alone that are new or unused.
    pub(super) renaming: bool,
    /// A block with exceptions is new. Its prefixes are written before any endpoint asks for it: if one of the exceptions does not fit
    /// into its map, the block must not be in force.
    pub(super) new_exceptions: bool,
    /// The rule sets that change in place.
    pub(super) evolving: Vec<Evolution>,
    /// Rule sets that only get more.
    pub(super) growing: BTreeSet<RuleSetId>,
    /// What rule sets allow by these rules and named ports; `None`: what they allow to anyone.
    pub(super) known_contents: HashMap<ContentsKey, Option<AllowEntry>>,
}

impl Engine {
    pub(super) fn pod_event(&mut self, key: &PodKey, event: Event) -> Vec<Change> {
        let claimed = |engine: &Self| engine.world.pods.get(key).map(|pod| pod.addresses.clone()).unwrap_or_default();
        let hosted = |engine: &Self| -> BTreeSet<Frontend> {
            let pod = engine.world.pods.get(key).into_iter();
            pod.flat_map(Pod::host_frontends).map(|(frontend, _)| frontend).collect()
        };
        let here = |engine: &Self| engine.world.pods.get(key).is_some_and(|pod| engine.scope.covers(pod));
        let mut transaction = Transaction::default();
        let (mut claims, host_ports, was_here) = (claimed(self), hosted(self), here(self));
        self.world.apply(event);
        self.budget.note_pod(key, here(self));
        claims.extend(claimed(self));
        for address in claims {
            if self.identities.assign(address, &self.atoms, &self.world) {
                transaction.addresses.insert(address);
            }
            // A pod of this node reaches itself, also through a Service.
            if was_here || here(self) {
                transaction.frontends.extend(self.world.frontends_towards(address));
            }
        }
        self.touch(&mut transaction, &host_ports, &hosted(self));
        self.commit(transaction, BTreeSet::from([key.clone()]))
    }

    pub(super) fn namespace_event(&mut self, name: &NamespaceName, event: Event) -> Vec<Change> {
        self.world.apply(event);
        let labels = self.world.namespace_labels(name);
        let addresses = self.identities.reevaluate(name, &self.atoms, &labels).into_iter().collect();
        self.commit(Transaction { addresses, ..Transaction::default() }, BTreeSet::new())
    }

    pub(super) fn policy_event(&mut self, key: &PolicyKey, event: Event) -> Vec<Change> {
        let old = self.world.policies.get(key).cloned();
        self.world.apply(event);
        self.budget.note_policy(key, self.world.policies.get(key));
        let new = self.world.policies.get(key).cloned();
        for direction in Direction::BOTH {
            let before = old.as_ref().and_then(|policy| rules(policy, direction));
            if before != new.as_ref().and_then(|policy| rules(policy, direction)) {
                self.parts.outdate(key, direction);
            }
        }
        let selects = |policy: Option<&Policy>, pod: &PodKey| {
            let pod = self.world.pods.get(pod);
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
            self.settle_memory(&mut transaction);
            changes.append(&mut transaction.changes);
        }
        if let Some(old) = old {
            self.rule_names.retire(&old, new.as_ref());
        }
        changes
    }

    pub(super) fn own_addresses(&mut self, addresses: Vec<IpAddr>) -> Vec<Change> {
        let old: BTreeSet<_> = self.world.own_addresses.iter().copied().collect();
        self.world.apply(Event::OwnAddresses(addresses));
        let new = self.world.own_addresses.iter().copied().collect();
        let addresses: BTreeSet<_> = old.symmetric_difference(&new).copied().collect();
        for address in &addresses {
            self.identities.assign(*address, &self.atoms, &self.world);
        }
        self.commit(Transaction { addresses, ..Transaction::default() }, BTreeSet::new())
    }

    pub(super) fn commit(&mut self, mut transaction: Transaction, mut pods: BTreeSet<PodKey>) -> Vec<Change> {
        pods.append(&mut self.balance().1);
        let evolving = std::mem::take(&mut transaction.evolving);
        self.begin_evolutions(&evolving);
        transaction.growing = evolving.iter().map(|evolution| evolution.rule_set).collect();
        let flips: Vec<_> = pods.into_iter().map(|pod| self.resolve(&mut transaction, pod)).collect();
        let egress =
            |(pod, policy): &(PodKey, Option<EndpointPolicy>)| Some((pod.clone(), policy.as_ref()?.egress.rule_set));
        transaction.flipping = flips.iter().filter_map(egress).collect();
        let moves = self.classify(&mut transaction);
        self.allow_to_new_rule_sets(&mut transaction);
        self.grow(&mut transaction, &evolving);
        let frontends = self.classify_frontends(&mut transaction, &moves);
        self.allow_frontends_to_new_rule_sets(&mut transaction);
        self.put_frontends(&mut transaction, &frontends);
        self.make(&mut transaction, &moves);
        self.delete_frontends(&mut transaction, &frontends);
        for (pod, policy) in flips {
            self.flip(&mut transaction, &pod, policy);
        }
        self.rejudge(&mut transaction, &moves, &frontends);
        self.release(&mut transaction, &moves);
        self.release_frontends(&mut transaction, &frontends);
        let dead = self.retire_rule_sets(&mut transaction);
        self.disallow_parted(&mut transaction);
        self.retire_frontend_classes(&mut transaction);
        self.retire_classes(&mut transaction);
        self.forget(&mut transaction, &dead);
        if evolving.is_empty() {
            self.settle_memory(&mut transaction);
        }
        transaction.changes
    }

    /// Makes a write.
    pub(super) fn write(&mut self, transaction: &mut Transaction, change: Change) {
        let applied = self.tables.apply(&change);
        debug_assert!(applied.is_ok(), "{applied:?}");
        transaction.changes.push(change);
    }

    /// A pod's policy by its rules, whose atoms touch the addresses that answer to them.
    fn resolve(&mut self, transaction: &mut Transaction, key: PodKey) -> (PodKey, Option<EndpointPolicy>) {
        let Some(pod) = self.world.pods.get(&key).filter(|pod| self.scope.covers(pod)).cloned() else {
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
        // Whether it is incomplete is known once it is compiled.
        (key, Some(EndpointPolicy { ingress, egress, incomplete: false }))
    }

    /// The parts of the policies that isolate a pod in a direction.
    fn parts_of(&mut self, transaction: &mut Transaction, pod: &Pod, direction: Direction) -> Vec<PartId> {
        let first = PolicyKey::new(pod.key.namespace.clone(), "");
        let policies = self.world.policies.range(first..).map(|(_, policy)| policy);
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

    /// A policy's part for a pod, if it isolates it in this direction.
    pub(super) fn part(
        &mut self,
        transaction: &mut Transaction,
        policy: &PolicyKey,
        direction: Direction,
        pod: &PodKey,
    ) -> Option<PartId> {
        let Self { world, parts, rule_names, atoms, budget, .. } = self;
        let (policy, pod) = world.policies.get(policy).zip(world.pods.get(pod))?;
        if !policy.pods.isolates(&pod.labels) || rules(policy, direction).is_none() {
            return None;
        }
        let numbers = match parts.find(policy, direction, pod) {
            Ok(part) => return Some(part),
            Err(numbers) => numbers,
        };
        let mut room = budget.room(&policy.key, direction);
        let resolved = rule_names.resolve(policy, direction, &numbers, &mut room);
        let mut new_atoms = Vec::new();
        let part = parts.add(policy, direction, numbers, (resolved, room.is_exceeded()), |atom| {
            let (id, new) = atoms.acquire(atom.clone());
            if new {
                new_atoms.push((id, atom));
            }
            id
        });
        for (id, atom) in new_atoms {
            self.add_atom(transaction, id, &atom);
        }
        Some(part)
    }

    fn add_rule_set(
        &mut self,
        transaction: &mut Transaction,
        direction: Direction,
        parts: &Arc<[PartId]>,
    ) -> DirectionPolicy {
        let any = self.for_anyone(parts);
        let namespace = parts.first().and_then(|part| self.parts.get(*part)).map(|part| part.policy.namespace.clone());
        let namespace = namespace.filter(|namespace| self.has_room(namespace, (self.port_sets.missing(&any), 0)));
        let any_set = namespace.map(|namespace| self.intern(transaction, &any, &namespace).port_set);
        let policy = self.rule_sets.add(direction, parts, &mut self.parts, any, any_set);
        transaction.new_rule_sets.insert(policy.rule_set);
        policy
    }

    /// What parts allow to anyone.
    fn for_anyone(&self, parts: &[PartId]) -> Contents {
        let parts = parts.iter().filter_map(|part| Some((*part, self.parts.get(*part)?)));
        let open: Vec<_> =
            parts.flat_map(|(part, body)| body.open.iter().map(move |index| RuleAt { part, index: *index })).collect();
        self.contents(BTreeMap::new(), &open, &Signature::default())
    }

    /// The port set with these contents, with a user more.
    pub(super) fn intern(
        &mut self,
        transaction: &mut Transaction,
        contents: &Contents,
        owner: &NamespaceName,
    ) -> AllowEntry {
        let (entry, ports) = self.port_sets.acquire(contents, owner);
        for change in ports {
            self.write(transaction, change);
        }
        entry
    }

    /// A rule set less has a part; the atoms that nothing asks for any more.
    pub(super) fn release_part(&mut self, part: PartId, dead: &mut Vec<(AtomId, Atom)>) {
        let Some(part) = self.parts.release(part) else { return };
        for atom in part.atoms() {
            dead.extend(self.atoms.release(atom).map(|gone| (atom, gone)));
        }
    }

    fn add_atom(&mut self, transaction: &mut Transaction, id: AtomId, atom: &Atom) {
        if let Atom::Block(block) = atom {
            transaction.new_exceptions |= !block.except.is_empty();
            transaction.prefixes.extend(self.blocks.add(id, block));
            transaction.addresses.extend(self.addresses_in(block.cidr));
        } else {
            transaction.addresses.extend(self.identities.add_atom(id, atom, &self.world));
        }
    }

    /// Addresses with an entry of their own inside a block.
    fn addresses_in(&self, net: IpNet) -> Vec<IpAddr> {
        let (first, last) = (net.network(), net.broadcast());
        self.tables.addresses_between(first, last).collect()
    }

    fn flip(&mut self, transaction: &mut Transaction, pod: &PodKey, policy: Option<EndpointPolicy>) {
        let rule_sets = policy.map(|policy| [policy.ingress.rule_set, policy.egress.rule_set]);
        let before = self.endpoints.get(pod);
        match policy {
            Some(policy) if before != rule_sets => {
                // What a rule set allows to anyone may have changed in place meanwhile.
                let policy = rule_sets.map_or(policy, |ids| self.endpoint_policy(ids));
                self.write(transaction, Change::PutEndpoint(pod.clone(), policy));
            }
            None if before.is_some() => self.write(transaction, Change::DeleteEndpoint(pod.clone())),
            _ => {}
        }
        transaction.parted.extend(before.map(|[_, egress]| egress));
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

    /// Takes away unused rule sets; the atoms that nothing asks for any more.
    fn retire_rule_sets(&mut self, transaction: &mut Transaction) -> Vec<(AtomId, Atom)> {
        let mut dead = Vec::new();
        for id in std::mem::take(&mut transaction.unused_rule_sets) {
            let Some(rule_set) = self.rule_sets.retire(id) else { continue };
            for class in self.classes_decided(&rule_set) {
                self.disallow(transaction, id, class);
            }
            self.disallow_all_frontends(transaction, id);
            for change in self.port_sets.release(rule_set.policy.any) {
                self.write(transaction, change);
            }
            for part in rule_set.parts().iter() {
                self.release_part(*part, &mut dead);
            }
        }
        dead
    }

    /// Merges the classes that only dead atoms told apart. No endpoint asks for them any more: no verdict changes.
    pub(super) fn forget(&mut self, transaction: &mut Transaction, dead: &[(AtomId, Atom)]) {
        if dead.is_empty() {
            return;
        }
        transaction.new_rule_sets.clear();
        transaction.renaming = true;
        for (id, atom) in dead {
            if let Atom::Block(block) = atom {
                transaction.prefixes.extend(self.blocks.remove(*id, block));
                transaction.addresses.extend(self.addresses_in(block.cidr));
            } else {
                transaction.addresses.extend(self.identities.remove_atom(*id, atom, &self.world));
            }
        }
        for (_, atom) in dead {
            let Atom::Block(block) = atom else { continue };
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
        self.make(transaction, &moves);
        self.release(transaction, &moves);
        self.release_frontends(transaction, &frontends);
        self.retire_frontend_classes(transaction);
        self.retire_classes(transaction);
    }
}
