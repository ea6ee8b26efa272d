//! Changes rule sets in place. A policy that comes to all pods of a rule set, changes or leaves costs what it says itself, however many
//! other policies these pods have.
//!
//! A change is made in two steps: first the rule set allows what it did and what it will, then only what it will. Within a step every
//! write only adds, or only takes away; so after each of them any packet is judged as before the change or as after it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use netpol_common::{AllowEntry, AllowKey, ClassId, Direction, DirectionPolicy, PortSetId, RuleId, RuleSetId};

use super::Engine;
use super::allow::Contents;
use super::difference::{Holder, Known, Work};
use super::parts::{Part, PartId};
use super::port_sets::Diff;
use super::rule_sets::{PartChange, RuleSet};
use super::transaction::Transaction;
use crate::model::{PodKey, PolicyKey};
use crate::tables::{Change, EndpointPolicy};

/// A rule set that gets a part, loses one, or both.
#[derive(Clone, Debug)]
pub(super) struct Evolution {
    pub(super) rule_set: RuleSetId,
    /// Its parts afterwards.
    parts: Arc<[PartId]>,
    pub(super) new: Option<PartId>,
    pub(super) gone: Option<PartId>,
}

impl Engine {
    /// Of these pods, whose parts of a policy change: the rule sets that can change in place, and the pods that need others.
    pub(super) fn evolutions(
        &mut self,
        transaction: &mut Transaction,
        policy: &PolicyKey,
        pods: BTreeSet<PodKey>,
    ) -> (Vec<Evolution>, BTreeSet<PodKey>) {
        let mut flips = BTreeSet::new();
        let mut groups: BTreeMap<(RuleSetId, Direction), BTreeMap<Option<PartId>, Vec<PodKey>>> = BTreeMap::new();
        for key in pods {
            let Some(rule_sets) = self.endpoints.get(&key) else {
                flips.insert(key);
                continue;
            };
            for (rule_set, direction) in rule_sets.into_iter().zip(Direction::BOTH) {
                let part = self.part(transaction, policy, direction, &key);
                groups.entry((rule_set, direction)).or_default().entry(part).or_default().push(key.clone());
            }
        }
        let mut evolutions: Vec<(Direction, Evolution, Vec<PodKey>)> = Vec::new();
        // Pods that come from several rule sets to the same one must meet in one of them.
        let mut goals: BTreeMap<(Direction, Arc<[PartId]>), usize> = BTreeMap::new();
        for ((id, direction), parts) in groups {
            let count = parts.len();
            for (new, pods) in parts {
                let rule_set = self.rule_sets.get(id);
                let before = rule_set.map(|rule_set| rule_set.parts().clone()).unwrap_or_default();
                let (after, gone) = self.replaced(&before, policy, new);
                if after == before {
                    continue;
                }
                *goals.entry((direction, after.clone())).or_default() += 1;
                let everything = |part: Option<PartId>| {
                    part.and_then(|part| self.parts.get(part)).is_some_and(Part::allows_everything)
                };
                let stays_apart = |rule_set: &RuleSet| {
                    let rest = || after.iter().any(|part| everything(Some(*part)));
                    let all = matches!(rule_set.any, Contents::All(_));
                    (everything(new) || everything(gone) || all).then(rest).unwrap_or(false) == all
                };
                let fits = rule_set.is_some_and(|rule_set| rule_set.may_change(pods.len()) && stays_apart(rule_set))
                    && !self.rule_sets.has_refused(id);
                let safe = new.is_none() || !transaction.new_exceptions;
                if safe && fits && count == 1 && !after.is_empty() && self.rule_sets.find(direction, &after).is_none() {
                    evolutions.push((direction, Evolution { rule_set: id, parts: after, new, gone }, pods));
                } else {
                    flips.extend(pods);
                }
            }
        }
        let mut alone = Vec::new();
        for (direction, evolution, pods) in evolutions {
            if goals.get(&(direction, evolution.parts.clone())) == Some(&1) {
                alone.push((evolution, pods));
            } else {
                flips.extend(pods);
            }
        }
        if self.have_room(&policy.namespace, alone.iter().map(|(evolution, _)| evolution)) {
            return (alone.into_iter().map(|(evolution, _)| evolution).collect(), flips);
        }
        flips.extend(alone.into_iter().flat_map(|(_, pods)| pods));
        (Vec::new(), flips)
    }

    /// Parts with this one in place of the policy's own; and that.
    fn replaced(
        &self,
        before: &Arc<[PartId]>,
        policy: &PolicyKey,
        new: Option<PartId>,
    ) -> (Arc<[PartId]>, Option<PartId>) {
        let key = |part: &PartId| self.parts.get(*part).map(|part| &part.policy);
        let place = before.partition_point(|part| key(part) < Some(policy));
        let gone = before.get(place).copied().filter(|part| key(part) == Some(policy));
        let rest = &before[place + usize::from(gone.is_some())..];
        (before[..place].iter().copied().chain(new).chain(rest.iter().copied()).collect(), gone)
    }

    /// Rule sets have their new parts from now on, beside those that go.
    pub(super) fn begin_evolutions(&mut self, evolutions: &[Evolution]) {
        for Evolution { rule_set, parts, new, .. } in evolutions {
            self.rule_sets.set_parts(*rule_set, parts.clone());
            if let Some(new) = new {
                self.rule_sets.change(*rule_set, PartChange::More(*new), &mut self.parts);
            }
        }
    }

    /// Writes what new parts allow.
    pub(super) fn grow(&mut self, transaction: &mut Transaction, evolutions: &[Evolution]) {
        let (mut work, mut known) = (Work::default(), Known::default());
        for evolution in evolutions {
            if let Some(new) = evolution.new {
                self.gather_growth(evolution.rule_set, new, &mut work, &mut known);
            }
        }
        self.reallow(transaction, work, evolutions);
    }

    /// Takes away what parts that go have allowed.
    pub(super) fn shrink(&mut self, evolutions: &[Evolution]) -> Vec<Change> {
        let mut transaction = Transaction { renaming: true, ..Transaction::default() };
        let (mut work, mut known) = (Work::default(), Known::default());
        let going = || evolutions.iter().filter_map(|evolution| Some((evolution, evolution.gone?)));
        for (evolution, gone) in going() {
            self.rule_sets.change(evolution.rule_set, PartChange::Less(gone), &mut self.parts);
        }
        for (evolution, gone) in going() {
            self.gather_shrinking(evolution.rule_set, gone, &mut work, &mut known);
        }
        let narrowed: Vec<_> = going().map(|(evolution, _)| evolution.rule_set).collect();
        self.reallow(&mut transaction, work, evolutions);
        if !transaction.changes.is_empty() {
            self.write(&mut transaction, Change::Rejudge(narrowed));
        }
        let mut dead = Vec::new();
        for (_, gone) in going() {
            self.release_part(gone, &mut dead);
        }
        self.forget(&mut transaction, &dead);
        transaction.changes
    }

    /// Writes other contents. A port set of which all users change alike changes itself.
    fn reallow(&mut self, transaction: &mut Transaction, work: Work, evolutions: &[Evolution]) {
        // All of them are of one policy.
        let namespace = evolutions.iter().find_map(|one| self.rule_sets.get(one.rule_set)?.namespace().cloned());
        let Some(namespace) = namespace else { return };
        transaction.known_contents.clear();
        for (key, contents) in work.singles {
            let entry = self.intern(transaction, &contents, &namespace);
            self.set_entry(transaction, key, entry);
        }
        let (mut alike, mut apart) = (Vec::new(), Vec::new());
        for ((base, diff), holders) in work.groups {
            let is_user = |holder: &&Holder| match holder {
                Holder::Anyone(_) => true,
                Holder::Class(key) => self.tables.allow(key).is_some_and(|entry| entry.port_set == base),
            };
            let users = holders.iter().filter(is_user).count();
            if users > 0 && users == self.port_sets.users(base) {
                alike.push((base, users, diff, holders));
            } else {
                // Before any of these sets changes.
                apart.push((self.with(base, &diff), diff, holders));
            }
        }
        for (contents, diff, holders) in apart {
            let entry = self.intern(transaction, &contents, &namespace);
            self.hand_out(transaction, entry, &diff, &holders);
        }
        for (base, users, diff, holders) in alike {
            // Others may have come to the set just now.
            let all = self.port_sets.users(base) == users;
            let changed = if all { self.port_sets.change(base, &diff) } else { None };
            let entry = if let Some(changes) = changed {
                for change in changes {
                    self.write(transaction, change);
                }
                self.port_sets.add_user(base);
                AllowEntry { port_set: base, rule: RuleId::NONE }
            } else {
                let contents = self.with(base, &diff);
                self.intern(transaction, &contents, &namespace)
            };
            self.hand_out(transaction, entry, &diff, &holders);
        }
        for (id, (classes, for_anyone)) in work.touched {
            self.drop_needless(transaction, id, &classes);
            self.reallow_frontends(transaction, id, &classes, &for_anyone);
        }
    }

    fn with(&self, base: PortSetId, diff: &Diff) -> Contents {
        let mut ports = self.port_sets.ports(base).cloned().unwrap_or_default();
        diff.apply(&mut ports);
        Contents::Of(ports)
    }

    /// Gives holders a port set; the one use of it that it comes with is given back.
    fn hand_out(&mut self, transaction: &mut Transaction, entry: AllowEntry, diff: &Diff, holders: &[Holder]) {
        for holder in holders {
            self.port_sets.add_user(entry.port_set);
            match holder {
                Holder::Class(key) => self.set_entry(transaction, *key, entry),
                Holder::Anyone(id) => self.set_anyone(transaction, *id, diff, entry.port_set),
            }
        }
        for change in self.port_sets.release(entry.port_set) {
            self.write(transaction, change);
        }
    }

    fn set_anyone(&mut self, transaction: &mut Transaction, id: RuleSetId, diff: &Diff, any: PortSetId) {
        let Some(before) = self.rule_sets.get(id).map(|rule_set| rule_set.policy.any) else { return };
        self.rule_sets.set_any(id, diff, any);
        if before != any {
            let having: Vec<_> = self.endpoints.having(id).cloned().collect();
            for pod in having {
                if let Some(policy) = self.endpoints.get(&pod).map(|ids| self.endpoint_policy(ids)) {
                    self.write(transaction, Change::PutEndpoint(pod, policy));
                }
            }
        }
        for change in self.port_sets.release(before) {
            self.write(transaction, change);
        }
    }

    /// What an endpoint with these rule sets has.
    pub(super) fn endpoint_policy(&self, rule_sets: [RuleSetId; 2]) -> EndpointPolicy {
        let [ingress, egress] =
            rule_sets.map(|id| self.rule_sets.get(id).map_or(DirectionPolicy::OPEN, |rule_set| rule_set.policy));
        let incomplete = rule_sets.into_iter().any(|id| self.rule_sets.is_incomplete(id));
        EndpointPolicy { ingress, egress, incomplete }
    }

    /// Takes away entries that say what holds for anyone.
    fn drop_needless(&mut self, transaction: &mut Transaction, id: RuleSetId, classes: &BTreeSet<ClassId>) {
        let Some(any) = self.rule_sets.get(id).map(|rule_set| rule_set.policy.any) else { return };
        for class in classes {
            let key = AllowKey { rule_set: id, class: *class };
            if self.tables.allow(&key).is_some_and(|entry| entry.port_set == any) {
                self.disallow(transaction, id, *class);
            }
        }
    }
}
