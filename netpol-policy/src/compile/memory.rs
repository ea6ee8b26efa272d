//! Keeps to the memory for policies while rules are compiled: see [`super::budget`].

use std::collections::{BTreeSet, HashSet};

use netpol_common::{AllowKey, Direction, PortSetId, RuleSetId};

use super::Engine;
use super::allow::{Contents, Ports};
use super::evolve::Evolution;
use super::parts::{CompiledRule, RuleAt};
use super::rule_sets::RuleSet;
use super::transaction::Transaction;
use crate::model::{NamespaceName, PodKey};
use crate::tables::{Change, EndpointPolicy};

impl Engine {
    /// Whether a namespace may have so many ports and entries more.
    pub(super) fn has_room(&self, namespace: &NamespaceName, needed: (u64, u64)) -> bool {
        let charges = (self.port_sets.charges(), self.rule_sets.charges());
        needed == (0, 0) || self.budget.has_room(namespace, charges, needed)
    }

    /// Whether there is room for whatever rule sets of a namespace may come to while they change in place. If there is not, their
    /// pods get other rule sets, of which each entry is admitted or refused.
    pub(super) fn have_room<'a>(
        &self,
        namespace: &NamespaceName,
        evolutions: impl Iterator<Item = &'a Evolution>,
    ) -> bool {
        self.budget.limit().is_none() || self.has_room(namespace, self.most_needed(evolutions))
    }

    /// Ports and entries that rule sets come to at most beside what they have.
    fn most_needed<'a>(&self, evolutions: impl Iterator<Item = &'a Evolution>) -> (u64, u64) {
        let (mut ports, mut entries) = (0, 0);
        let mut counted: HashSet<(RuleSetId, PortSetId, Vec<RuleAt>)> = HashSet::new();
        for Evolution { rule_set: id, new, gone, .. } in evolutions {
            let Some(rule_set) = self.rule_sets.get(*id) else { continue };
            let Contents::Of(any) = &rule_set.any else { continue };
            let new_ports = new.and_then(|new| self.parts.get(new)).map_or(0, |part| {
                part.rules.iter().map(|rule| rule.ports_at(None).count()).sum::<usize>() + part.rules.len()
            });
            for (part_id, is_new) in new.iter().map(|part| (*part, true)).chain(gone.iter().map(|part| (*part, false)))
            {
                let Some(part) = self.parts.get(part_id) else { continue };
                let mut classes = self.classes_asked(&part.deciding);
                if !part.open.is_empty() {
                    ports += any.len() + new_ports;
                    for class in self.classes_decided(rule_set) {
                        classes.entry(class).or_default();
                    }
                }
                for (class, indices) in classes {
                    let Some(signature) = self.classes.signature(class) else { continue };
                    let entry = self.tables.allow(&AllowKey { rule_set: *id, class });
                    entries += u64::from(entry.is_none() && !self.is_prefix(signature));
                    let base = entry.map_or(rule_set.policy.any, |entry| entry.port_set);
                    let own = indices.iter().chain(&part.open).map(|index| RuleAt { part: part_id, index: *index });
                    let rules: Vec<RuleAt> = if is_new { own.collect() } else { rule_set.matching(signature) };
                    let found = || rules.iter().filter_map(|at| self.parts.rule(*at));
                    let has_names = found().any(CompiledRule::has_names);
                    let count = found().map(|rule| rule.ports_at(Some(signature)).count()).sum::<usize>();
                    let before = if is_new { self.port_sets.ports(base).map_or(0, Ports::len) } else { any.len() };
                    // Classes that are alike share a set.
                    if has_names || counted.insert((*id, base, rules)) {
                        ports += before + count + if is_new { 0 } else { new_ports };
                    }
                }
            }
        }
        (ports as u64, entries)
    }

    /// Shares the memory for policies after a change; whether more or less of some policies is left out now, and the pods with
    /// these, which are resolved again.
    pub(super) fn balance(&mut self) -> (bool, BTreeSet<PodKey>) {
        let policies = self.budget.balance(&self.world);
        let mut pods = BTreeSet::new();
        for key in &policies {
            for direction in Direction::BOTH {
                self.parts.outdate(key, direction);
            }
            let Some(policy) = self.world.policies.get(key) else { continue };
            let selects =
                |pod: &&PodKey| self.world.pods.get(*pod).is_some_and(|pod| policy.pods.isolates(&pod.labels));
            pods.extend(self.endpoints.of_namespace(&key.namespace).filter(selects).cloned());
        }
        (!policies.is_empty(), pods)
    }

    /// Writes what there is room for now, and marks the endpoints of which something is left out.
    pub(super) fn settle_memory(&mut self, transaction: &mut Transaction) {
        if self.budget.limit().is_none() {
            return;
        }
        self.admit_refused(transaction);
        self.mark_incomplete(transaction);
        let again = self.replace_refused();
        if !again.is_empty() {
            transaction.changes.extend(self.commit(Transaction::default(), again));
        }
    }

    /// Writes entries for which there was no room and is now; in each namespace up to the first that does not fit.
    fn admit_refused(&mut self, transaction: &mut Transaction) {
        let refused: Vec<_> = self.rule_sets.refused().collect();
        transaction.known_contents.clear();
        let mut full = BTreeSet::new();
        for (rule_set, class) in refused {
            let namespace = self.rule_sets.get(rule_set).and_then(|rule_set| rule_set.namespace()).cloned();
            if full.contains(&namespace) {
                continue;
            }
            // A rule set that changed in place has an entry for its new rules alone.
            self.disallow(transaction, rule_set, class);
            if !self.allow(transaction, rule_set, class) {
                full.insert(namespace);
            }
        }
    }

    /// Where there is room now for what a rule set allows to anyone: its pods, which are to get another one.
    fn replace_refused(&mut self) -> BTreeSet<PodKey> {
        let has_room = |rule_set: &RuleSet| {
            let needed = (self.port_sets.missing(&rule_set.any), 0);
            rule_set.namespace().is_some_and(|namespace| self.has_room(namespace, needed))
        };
        let ids: BTreeSet<_> =
            self.rule_sets.without_any().filter(|(_, rule_set)| has_room(rule_set)).map(|(id, _)| id).collect();
        let has_one = |(_, rule_sets): &(&PodKey, [RuleSetId; 2])| rule_sets.iter().any(|id| ids.contains(id));
        let pods = self.endpoints.iter().filter(has_one).map(|(pod, _)| pod.clone()).collect();
        for id in ids {
            self.rule_sets.replace(id);
        }
        pods
    }

    /// Writes endpoints of which less or more is left out now, though their rule sets are the same.
    fn mark_incomplete(&mut self, transaction: &mut Transaction) {
        let changed = |(pod, rule_sets): (&PodKey, [RuleSetId; 2])| {
            let incomplete = rule_sets.into_iter().any(|rule_set| self.rule_sets.is_incomplete(rule_set));
            let policy = self.tables.endpoint(pod).filter(|policy| policy.incomplete != incomplete)?;
            Some((pod.clone(), EndpointPolicy { incomplete, ..policy }))
        };
        let changed: Vec<_> = self.endpoints.iter().filter_map(changed).collect();
        for (pod, policy) in changed {
            self.write(transaction, Change::PutEndpoint(pod, policy));
        }
    }
}
