//! Changes rule sets in place. If a policy that selects all pods of a rule set is added, changed or removed, the cost
//! depends only on that policy, not on the other policies of these pods.
//!
//! A change has two steps. After the first step, the rule set allows the old and the new rules; after the second, only
//! the new ones. The writes of the first step only allow more, those of the second only less. So after each write the
//! verdict on every packet is either the one before or the one after the change.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use netpol_common::{AllowEntry, AllowKey, ClassId, DirectionPolicy, PortSetId, RuleId, RuleSetId};

use super::Engine;
use super::allow::AllowEntries;
use super::difference::{DiffCache, PendingEntries, PortSetUser};
use super::endpoints::{EndpointRuleSets, Slot};
use super::memory_limit::{Account, account};
use super::parts::{Part, PartId};
use super::port_sets::Diff;
use super::rule_sets::{PartChange, RuleSet};
use super::transaction::{Changes, NextEndpoints, Touched};
use crate::model::{Mode, PodKey, PolicyKey};
use crate::tables::{Change, EndpointPolicy};

/// A rule set that gets a new part, loses a part, or both.
#[derive(Clone, Debug)]
pub(super) struct InPlaceUpdate {
    pub(super) rule_set: RuleSetId,
    /// The parts after the change.
    parts: Arc<[PartId]>,
    pub(super) new: Option<PartId>,
    pub(super) removed: Option<PartId>,
}

/// Pods by rule set and slot, and by the next part of a policy there.
type Groups = BTreeMap<(RuleSetId, Slot), BTreeMap<Option<PartId>, Vec<PodKey>>>;

impl Engine {
    /// Splits pods with changed parts of a policy: into rule sets that can change in place, and pods that need other
    /// rule sets.
    pub(super) fn updates_in_place(
        &mut self,
        touched: &mut Touched,
        policy: &PolicyKey,
        pods: BTreeSet<PodKey>,
    ) -> (Vec<InPlaceUpdate>, BTreeSet<PodKey>) {
        let (groups, mut flips) = self.groups(touched, policy, pods);
        let mut in_place: Vec<(Slot, InPlaceUpdate, Vec<PodKey>)> = Vec::new();
        // Pods that move from several rule sets to the same parts must end in one rule set.
        let mut goals: BTreeMap<(Slot, Arc<[PartId]>), usize> = BTreeMap::new();
        for ((id, slot), parts) in groups {
            let count = parts.len();
            for (new, pods) in parts {
                let rule_set = self.rule_sets.get(id);
                let before = rule_set.map(|rule_set| rule_set.parts().clone()).unwrap_or_default();
                let (after, removed) = self.replaced(&before, policy, new);
                if after == before {
                    continue;
                }
                *goals.entry((slot, after.clone())).or_default() += 1;
                let everything = |part: Option<PartId>| {
                    part.and_then(|part| self.parts.get(part)).is_some_and(Part::allows_everything)
                };
                let keeps_all = |rule_set: &RuleSet| {
                    let rest = || after.iter().any(|part| everything(Some(*part)));
                    let all = matches!(rule_set.any, AllowEntries::All(_));
                    (everything(new) || everything(removed) || all).then(rest).unwrap_or(false) == all
                };
                let fits = rule_set.is_some_and(|rule_set| rule_set.may_change(pods.len()) && keeps_all(rule_set))
                    && !self.rule_sets.has_refused(id);
                let safe = new.is_none() || !touched.new_exceptions;
                if safe && fits && count == 1 && !after.is_empty() && self.rule_sets.find(slot, &after).is_none() {
                    in_place.push((slot, InPlaceUpdate { rule_set: id, parts: after, new, removed }, pods));
                } else {
                    flips.extend(pods);
                }
            }
        }
        let is_only =
            |(slot, update, _): &(Slot, InPlaceUpdate, _)| goals.get(&(*slot, update.parts.clone())) == Some(&1);
        let (mut in_place, mut others): (Vec<_>, Vec<_>) = in_place.into_iter().partition(is_only);
        for mode in Mode::BOTH {
            let is_of_mode = |(slot, ..): &(Slot, InPlaceUpdate, Vec<PodKey>)| slot.mode == mode;
            let updates = in_place.iter().filter(|update| is_of_mode(update)).map(|(_, update, _)| update);
            if !self.has_room_to_update(&account(mode, &policy.namespace), updates) {
                others.extend(in_place.extract_if(.., |update| is_of_mode(update)));
            }
        }
        flips.extend(others.into_iter().flat_map(|(.., pods)| pods));
        (in_place.into_iter().map(|(_, update, _)| update).collect(), flips)
    }

    /// Groups pods by rule set and slot, and then by the policy's next part there. Also returns the pods that need other
    /// rule sets: those without an endpoint, and those that get their first policy in shadow mode or lose the last one.
    fn groups(
        &mut self,
        touched: &mut Touched,
        policy: &PolicyKey,
        pods: BTreeSet<PodKey>,
    ) -> (Groups, BTreeSet<PodKey>) {
        let (mut groups, mut flips) = (Groups::new(), BTreeSet::new());
        let state = &self.cluster_state;
        let is_shadow = state.policies.get(policy).is_some_and(|policy| state.mode(policy) == Mode::Shadow);
        for key in pods {
            let Some(rule_sets) = self.endpoints.get(&key) else {
                flips.insert(key);
                continue;
            };
            for (slot, rule_set) in rule_sets.slots() {
                if slot.mode == Mode::Shadow {
                    let pod = self.cluster_state.pods.get(&key);
                    let has_shadow = pod.is_some_and(|pod| self.has_shadow(pod, slot.direction));
                    if has_shadow != (rule_set != DirectionPolicy::OPEN.rule_set) {
                        flips.insert(key.clone());
                    }
                    if !has_shadow || rule_set == DirectionPolicy::OPEN.rule_set {
                        continue;
                    }
                }
                let is_enforced_slot = slot.mode == Mode::Enforce;
                let part =
                    if is_shadow && is_enforced_slot { None } else { self.part(touched, policy, slot.direction, &key) };
                groups.entry((rule_set, slot)).or_default().entry(part).or_default().push(key.clone());
            }
        }
        (groups, flips)
    }

    /// Replaces the policy's own part with a new one. Returns all parts and the replaced one.
    fn replaced(
        &self,
        before: &Arc<[PartId]>,
        policy: &PolicyKey,
        new: Option<PartId>,
    ) -> (Arc<[PartId]>, Option<PartId>) {
        let key = |part: &PartId| self.parts.get(*part).map(|part| &part.policy);
        let position = before.partition_point(|part| key(part) < Some(policy));
        let removed = before.get(position).copied().filter(|part| key(part) == Some(policy));
        let rest = &before[position + usize::from(removed.is_some())..];
        (before[..position].iter().copied().chain(new).chain(rest.iter().copied()).collect(), removed)
    }

    /// Gives rule sets their new parts, in addition to the parts that will be removed.
    pub(super) fn begin_updates_in_place(&mut self, in_place: &[InPlaceUpdate]) {
        for InPlaceUpdate { rule_set, parts, new, .. } in in_place {
            self.rule_sets.set_parts(*rule_set, parts.clone());
            if let Some(new) = new {
                self.rule_sets.change(*rule_set, PartChange::Add(*new), &mut self.parts);
            }
        }
    }

    /// Writes what new parts allow.
    pub(super) fn grow(&mut self, changes: &mut Changes, next: &NextEndpoints, in_place: &[InPlaceUpdate]) {
        let (mut pending, mut cache) = (PendingEntries::default(), DiffCache::default());
        for update in in_place {
            if let Some(new) = update.new {
                self.collect_additions(update.rule_set, new, &mut pending, &mut cache);
            }
        }
        self.write_entries(changes, next, pending);
    }

    /// Removes parts, and what only they allowed.
    pub(super) fn shrink(&mut self, changes: &mut Changes, in_place: &[InPlaceUpdate]) {
        let (mut pending, mut cache) = (PendingEntries::default(), DiffCache::default());
        let shrinking = || in_place.iter().filter_map(|update| Some((update, update.removed?)));
        for (update, removed) in shrinking() {
            self.rule_sets.change(update.rule_set, PartChange::Remove(removed), &mut self.parts);
        }
        for (update, removed) in shrinking() {
            self.collect_removals(update.rule_set, removed, &mut pending, &mut cache);
        }
        let narrowed: Vec<_> = shrinking().map(|(update, _)| update.rule_set).collect();
        let written = changes.len();
        self.write_entries(changes, &NextEndpoints::new(), pending);
        if changes.len() > written {
            self.write(changes, Change::Reevaluate(narrowed));
        }
        for (_, removed) in shrinking() {
            self.release_part(removed);
        }
    }

    /// Writes changed entries. A port set changes in place if all of its users change in the same way.
    fn write_entries(&mut self, changes: &mut Changes, next: &NextEndpoints, pending: PendingEntries) {
        for (key, contents) in pending.singles {
            let account = self.account_of([key.rule_set]);
            let entry = self.intern(changes, &contents, &account);
            self.set_entry(changes, key, entry);
        }
        let (mut changing, mut copied) = (Vec::new(), Vec::new());
        for ((base, diff), users) in pending.groups {
            let is_user = |user: &&PortSetUser| match user {
                PortSetUser::AnyPeer(_) => true,
                PortSetUser::Class(key) => self.tables.allow(key).is_some_and(|entry| entry.port_set == base),
            };
            let user_count = users.iter().filter(is_user).count();
            if user_count > 0 && user_count == self.port_sets.user_count(base) {
                changing.push((base, user_count, diff, users));
            } else {
                // Copy before any of these sets changes.
                copied.push((self.contents_with(base, &diff), diff, users));
            }
        }
        for (contents, diff, users) in copied {
            let account = self.account_of(users.iter().map(PortSetUser::rule_set));
            let entry = self.intern(changes, &contents, &account);
            self.assign_port_set(changes, entry, &diff, &users);
        }
        for (base, user_count, diff, users) in changing {
            // The set may have got more users just now.
            let all = self.port_sets.user_count(base) == user_count;
            let changed = if all { self.port_sets.change(base, &diff) } else { None };
            let entry = if let Some(ports) = changed {
                self.write_all(changes, ports);
                self.port_sets.add_user(base);
                AllowEntry { port_set: base, rule: RuleId::NONE }
            } else {
                let account = self.account_of(users.iter().map(PortSetUser::rule_set));
                let contents = self.contents_with(base, &diff);
                self.intern(changes, &contents, &account)
            };
            self.assign_port_set(changes, entry, &diff, &users);
        }
        for (id, (classes, for_any_peer)) in pending.touched {
            self.drop_redundant(changes, id, &classes);
            self.update_frontends_of(changes, next, id, (&classes, &for_any_peer));
        }
    }

    /// Returns the account of the first rule set that is enforced; if none is, that of the first one.
    fn account_of(&self, rule_sets: impl IntoIterator<Item = RuleSetId>) -> Account {
        let rule_sets = rule_sets.into_iter().filter_map(|id| self.rule_sets.get(id));
        let first = rule_sets.min_by_key(|rule_set| rule_set.slot().mode);
        first.map(|rule_set| rule_set.account.clone()).unwrap_or_default()
    }

    fn contents_with(&self, base: PortSetId, diff: &Diff) -> AllowEntries {
        let mut ports = self.port_sets.ports(base).cloned().unwrap_or_default();
        diff.apply(&mut ports);
        AllowEntries::Of(ports)
    }

    /// Assigns a port set to its users, then releases the use that `entry` came with.
    fn assign_port_set(&mut self, changes: &mut Changes, entry: AllowEntry, diff: &Diff, users: &[PortSetUser]) {
        for user in users {
            self.port_sets.add_user(entry.port_set);
            match user {
                PortSetUser::Class(key) => self.set_entry(changes, *key, entry),
                PortSetUser::AnyPeer(id) => self.set_any_peer(changes, *id, diff, entry.port_set),
            }
        }
        self.release_ports(changes, entry.port_set);
    }

    fn set_any_peer(&mut self, changes: &mut Changes, id: RuleSetId, diff: &Diff, any: PortSetId) {
        let Some(before) = self.rule_sets.get(id).map(|rule_set| rule_set.policy.any) else { return };
        self.rule_sets.set_any(id, diff, any);
        if before != any {
            let users = self.endpoints.iter().filter(|(_, rule_sets)| rule_sets.contains(id));
            let put = users.map(|(pod, ids)| Change::PutEndpoint(pod.clone(), self.endpoint_policy(ids)));
            let put: Vec<_> = put.collect();
            self.write_all(changes, put);
        }
        self.release_ports(changes, before);
    }

    /// Returns the policy of an endpoint with these rule sets. An incomplete shadow policy would report denials that
    /// its policies do not cause, so it is not used.
    pub(super) fn endpoint_policy(&self, rule_sets: EndpointRuleSets) -> EndpointPolicy {
        let policy = |id| self.rule_sets.get(id).map_or(DirectionPolicy::OPEN, |rule_set| rule_set.policy);
        let enforced = rule_sets.of(Mode::Enforce);
        let [ingress, egress] = enforced.map(policy);
        let incomplete = enforced.into_iter().any(|id| self.rule_sets.is_incomplete(id));
        let complete = |id| if self.rule_sets.is_incomplete(id) { DirectionPolicy::OPEN } else { policy(id) };
        let [shadow_ingress, shadow_egress] = rule_sets.of(Mode::Shadow).map(complete);
        EndpointPolicy { ingress, egress, shadow_ingress, shadow_egress, incomplete }
    }

    /// Removes entries that equal what any peer is allowed.
    fn drop_redundant(&mut self, changes: &mut Changes, id: RuleSetId, classes: &BTreeSet<ClassId>) {
        let Some(any) = self.rule_sets.get(id).map(|rule_set| rule_set.policy.any) else { return };
        for class in classes {
            let key = AllowKey { rule_set: id, class: *class };
            if self.tables.allow(&key).is_some_and(|entry| entry.port_set == any) {
                self.disallow(changes, id, *class);
            }
        }
    }
}
