//! One event's work: what is new first, then the flips, then what is unused.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use netpol_common::{ClassId, Direction, DirectionPolicy, RuleSetId};

use super::Engine;
use super::atoms::{Atom, AtomId};
use super::rules::{RuleSetKey, Source};
use crate::model::{Frontend, NamespaceName, Pod, PodKey, Policy, PolicyKey};
use crate::tables::{Change, EndpointPolicy};
use crate::world::Event;

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
        self.rule_sets.forget_sources(key);
        let new = self.world.policies.get(key);
        let selects = |policy: Option<&Policy>, pod: &PodKey| {
            let pod = self.world.pods.get(pod);
            policy.is_some_and(|policy| pod.is_some_and(|pod| policy.pods.isolates(&pod.labels)))
        };
        let pods = self.endpoints.of_namespace(&key.namespace);
        let pods = pods.filter(|pod| selects(old.as_ref(), pod) || selects(new, pod)).cloned().collect();
        let changes = self.commit(Transaction::default(), pods);
        if let Some(old) = old {
            self.rule_names.retire(&old, self.world.policies.get(key));
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

    pub(super) fn commit(&mut self, mut transaction: Transaction, pods: BTreeSet<PodKey>) -> Vec<Change> {
        let flips: Vec<_> = pods.into_iter().map(|pod| self.resolve(&mut transaction, pod)).collect();
        let egress =
            |(pod, policy): &(PodKey, Option<EndpointPolicy>)| Some((pod.clone(), policy.as_ref()?.egress.rule_set));
        transaction.flipping = flips.iter().filter_map(egress).collect();
        let moves = self.classify(&mut transaction);
        self.allow_to_new_rule_sets(&mut transaction);
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
            let first = PolicyKey::new(key.namespace.clone(), "");
            let policies = self.world.policies.range(first..).map(|(_, policy)| policy);
            let policies = policies.take_while(|policy| policy.key.namespace == key.namespace);
            let selecting = policies.filter(|policy| policy.pods.isolates(&pod.labels));
            let Some(source) = Source::of(&pod, direction, selecting) else { return DirectionPolicy::OPEN };
            if let Some(policy) = self.rule_sets.acquire_by_source(&source) {
                return policy;
            }
            let rules = self.rule_names.resolve(&pod, &source, &self.world.policies);
            let known = self.rule_sets.acquire(&rules);
            let policy = known.unwrap_or_else(|| self.add_rule_set(transaction, rules));
            self.rule_sets.set_source(source, policy.rule_set);
            policy
        });
        (key, Some(EndpointPolicy { ingress, egress }))
    }

    fn add_rule_set(&mut self, transaction: &mut Transaction, rules: RuleSetKey) -> DirectionPolicy {
        let mut atoms = Vec::new();
        let mut ports = Vec::new();
        let (id, policy) = self.rule_sets.add(
            rules,
            |atom| {
                let (id, new) = self.atoms.acquire(atom.clone());
                if new {
                    atoms.push((id, atom));
                }
                id
            },
            |contents| {
                let (entry, changes) = self.port_sets.acquire(contents);
                ports = changes;
                entry.port_set
            },
        );
        for change in ports {
            self.write(transaction, change);
        }
        for (id, atom) in atoms {
            self.add_atom(transaction, id, &atom);
        }
        transaction.new_rule_sets.insert(id);
        policy
    }

    fn add_atom(&mut self, transaction: &mut Transaction, id: AtomId, atom: &Atom) {
        if let Atom::Block(block) = atom {
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
                self.write(transaction, Change::PutEndpoint(pod.clone(), policy));
            }
            None if before.is_some() => self.write(transaction, Change::DeleteEndpoint(pod.clone())),
            _ => {}
        }
        transaction.parted.extend(before.map(|[_, egress]| egress));
        for rule_set in self.endpoints.set(pod, rule_sets).into_iter().flatten() {
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
            let classes: BTreeSet<_> =
                rule_set.deciding_atoms().flat_map(|atom| self.classes.answering(atom)).collect();
            for class in classes {
                self.disallow(transaction, id, class);
            }
            self.disallow_all_frontends(transaction, id);
            for change in self.port_sets.release(rule_set.policy.any) {
                self.write(transaction, change);
            }
            for atom in rule_set.atoms() {
                dead.extend(self.atoms.release(atom).map(|gone| (atom, gone)));
            }
        }
        dead
    }

    /// Merges the classes that only dead atoms told apart. No endpoint asks for them any more: no verdict changes.
    fn forget(&mut self, transaction: &mut Transaction, dead: &[(AtomId, Atom)]) {
        if dead.is_empty() {
            return;
        }
        transaction.new_rule_sets.clear();
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
