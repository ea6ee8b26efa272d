//! Changes rule sets (the compiled rules of pods in one direction) in place. If a policy that selects all pods of a
//! rule set is added, changed or removed, only the entries of that policy are computed and written, not those of the
//! other policies of these pods. But the list of the policies' parts is copied and hashed.
//!
//! A change has two steps. After the first step, the rule set allows what the old or the new rules allow; after the
//! second step, only what the new rules allow. Each write of the first step allows more, and each write of the second
//! step allows less. So after each write, the verdict on every packet is either the one before or the one after the
//! change.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use netpol_common::{AllowEntry, AllowKey, ClassId, DirectionPolicy, PortSetId, RuleId, RuleSetId};

use super::Engine;
use super::allow::AllowedPorts;
use super::difference::{DiffCache, PendingEntries, PortSetUser};
use super::endpoints::{EndpointRuleSets, Slot};
use super::memory_limit::{Account, account};
use super::parts::{Part, PartId};
use super::port_sets::Diff;
use super::rule_sets::{PartChange, RuleSet};
use super::transaction::{Changes, NextEndpoints, Touched};
use crate::model::{Mode, PodKey, PolicyKey};
use crate::tables::{Change, EndpointPolicy};

/// A rule set that gets a new part, loses a part, or both. A part is the resolved rules of one policy in one direction.
#[derive(Clone, Debug)]
pub(super) struct InPlaceUpdate {
    pub(super) rule_set: RuleSetId,
    /// The parts after the change.
    parts: Arc<[PartId]>,
    /// The part to add.
    pub(super) new: Option<PartId>,
    /// The part to remove.
    pub(super) removed: Option<PartId>,
}

/// Pods, grouped by their rule set in a slot (mode and direction). The pods of each rule set are then grouped by the
/// part of the changed policy: the part that their rule set needs after the change. `None`: it needs no such part.
type Groups = BTreeMap<(RuleSetId, Slot), BTreeMap<Option<PartId>, Vec<PodKey>>>;

impl Engine {
    /// Divides the pods that a changed policy selects, or selected before. Returns the rule sets that can change in
    /// place for all of their pods, and the pods that need other rule sets.
    pub(super) fn updates_in_place(
        &mut self,
        touched: &mut Touched,
        policy: &PolicyKey,
        pods: BTreeSet<PodKey>,
    ) -> (Vec<InPlaceUpdate>, BTreeSet<PodKey>) {
        let (groups, mut other_pods) = self.groups(touched, policy, pods);
        let mut in_place: Vec<(Slot, InPlaceUpdate, Vec<PodKey>)> = Vec::new();
        // How many rule sets will have the same parts. After the change, pods with the same parts must share one rule
        // set. So if several rule sets will have the same parts, none of them changes in place.
        let mut target_counts: BTreeMap<(Slot, Arc<[PartId]>), usize> = BTreeMap::new();
        for ((id, slot), pods_by_part) in groups {
            let all_get_same_part = pods_by_part.len() == 1;
            for (new, pods) in pods_by_part {
                let rule_set = self.rule_sets.get(id);
                let before = rule_set.map(|rule_set| rule_set.parts().clone()).unwrap_or_default();
                let (after, removed) = self.with_replaced_part(&before, policy, new);
                if after == before {
                    continue;
                }
                *target_counts.entry((slot, after.clone())).or_default() += 1;
                let allows_everything = |part: Option<PartId>| {
                    part.and_then(|part| self.parts.get(part)).is_some_and(Part::allows_everything)
                };
                // A rule set that allows everything has no entries. So a change in place must not change whether the
                // rule set allows everything.
                let allows_everything_as_before = |rule_set: &RuleSet| {
                    let everything_after = || after.iter().any(|part| allows_everything(Some(*part)));
                    let everything_before = matches!(rule_set.any, AllowedPorts::All(_));
                    // If this is false, no part in `after` allows everything, and `after` need not be searched.
                    let may_allow_everything =
                        allows_everything(new) || allows_everything(removed) || everything_before;
                    may_allow_everything.then(everything_after).unwrap_or(false) == everything_before
                };
                let may_change = rule_set
                    .is_some_and(|rule_set| rule_set.may_change(pods.len()) && allows_everything_as_before(rule_set))
                    && !self.rule_sets.has_refused_entries(id);
                // A change in place writes its entries before the prefixes of new blocks are written. This is too early
                // if a new block has exceptions, see `Touched::new_exceptions`.
                let is_too_early = new.is_some() && touched.new_exceptions;
                if !is_too_early
                    && may_change
                    && all_get_same_part
                    && !after.is_empty()
                    && self.rule_sets.find(slot, &after).is_none()
                {
                    in_place.push((slot, InPlaceUpdate { rule_set: id, parts: after, new, removed }, pods));
                } else {
                    other_pods.extend(pods);
                }
            }
        }
        let is_only_one = |(slot, update, _): &(Slot, InPlaceUpdate, _)| {
            target_counts.get(&(*slot, update.parts.clone())) == Some(&1)
        };
        let (mut in_place, mut not_in_place): (Vec<_>, Vec<_>) = in_place.into_iter().partition(is_only_one);
        for mode in Mode::BOTH {
            let is_of_mode = |(slot, ..): &(Slot, InPlaceUpdate, Vec<PodKey>)| slot.mode == mode;
            let updates = in_place.iter().filter(|update| is_of_mode(update)).map(|(_, update, _)| update);
            if !self.has_room_to_update(&account(mode, &policy.namespace), updates) {
                not_in_place.extend(in_place.extract_if(.., |update| is_of_mode(update)));
            }
        }
        other_pods.extend(not_in_place.into_iter().flat_map(|(.., pods)| pods));
        (in_place.into_iter().map(|(_, update, _)| update).collect(), other_pods)
    }

    /// Groups pods as described for [`Groups`]. Also returns the pods that need other rule sets: pods without an
    /// endpoint, and pods that get their first policy in shadow mode or lose their last one.
    fn groups(
        &mut self,
        touched: &mut Touched,
        policy: &PolicyKey,
        pods: BTreeSet<PodKey>,
    ) -> (Groups, BTreeSet<PodKey>) {
        let (mut groups, mut other_pods) = (Groups::new(), BTreeSet::new());
        let state = &self.cluster_state;
        let is_shadow = state.policies.get(policy).is_some_and(|policy| state.mode(policy) == Mode::Shadow);
        for key in pods {
            let Some(rule_sets) = self.endpoints.get(&key) else {
                other_pods.insert(key);
                continue;
            };
            for (slot, rule_set) in rule_sets.slots() {
                if slot.mode == Mode::Shadow {
                    let pod = self.cluster_state.pods.get(&key);
                    let has_shadow = pod.is_some_and(|pod| self.has_shadow(pod, slot.direction));
                    if has_shadow != (rule_set != DirectionPolicy::OPEN.rule_set) {
                        other_pods.insert(key.clone());
                    }
                    if !has_shadow || rule_set == DirectionPolicy::OPEN.rule_set {
                        continue;
                    }
                }
                let is_enforced_slot = slot.mode == Mode::Enforce;
                // A rule set for enforced policies has no part of a policy in shadow mode. A rule set for shadow mode
                // has parts of enforced policies, too.
                let part = if is_shadow && is_enforced_slot {
                    None
                } else {
                    self.find_or_add_part(touched, policy, slot.direction, &key)
                };
                groups.entry((rule_set, slot)).or_default().entry(part).or_default().push(key.clone());
            }
        }
        (groups, other_pods)
    }

    /// Returns the parts of a rule set after a change of a policy, and the policy's old part. `before`: the parts of
    /// the rule set before the change. `new`: the policy's new part, if it has one.
    fn with_replaced_part(
        &self,
        before: &Arc<[PartId]>,
        policy: &PolicyKey,
        new: Option<PartId>,
    ) -> (Arc<[PartId]>, Option<PartId>) {
        let policy_of = |part: &PartId| self.parts.get(*part).map(|part| &part.policy);
        let position = before.partition_point(|part| policy_of(part) < Some(policy));
        let removed = before.get(position).copied().filter(|part| policy_of(part) == Some(policy));
        let rest = &before[position + usize::from(removed.is_some())..];
        (before[..position].iter().copied().chain(new).chain(rest.iter().copied()).collect(), removed)
    }

    /// Adds the new parts to rule sets. The parts that will be removed stay until [`Engine::shrink`].
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
        let length_before = changes.len();
        self.write_entries(changes, &NextEndpoints::new(), pending);
        if changes.len() > length_before {
            // Open flows of these rule sets may no longer be allowed.
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
                // Copied now, before any of these port sets changes.
                copied.push((self.contents_with(base, &diff), diff, users));
            }
        }
        for (contents, diff, users) in copied {
            let account = self.account_of(users.iter().map(PortSetUser::rule_set));
            let entry = self.intern(changes, &contents, &account);
            self.assign_port_set(changes, entry, &diff, &users);
        }
        for (base, user_count, diff, users) in changing {
            // The port set may have got more users in this function.
            let has_only_these_users = self.port_sets.user_count(base) == user_count;
            let changed = if has_only_these_users { self.port_sets.change(base, &diff) } else { None };
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
        for (id, (classes, any_peer_diff)) in pending.touched {
            self.delete_redundant(changes, id, &classes);
            self.update_backend_set_entries_of(changes, next, id, (&classes, &any_peer_diff));
        }
    }

    /// Returns the account (a namespace, or all rule sets for shadow mode) to which new map entries for these rule sets
    /// are charged. It is the account of the first rule set for enforced policies. If there is none, it is the account
    /// of all rule sets for shadow mode.
    fn account_of(&self, rule_sets: impl IntoIterator<Item = RuleSetId>) -> Account {
        let rule_sets = rule_sets.into_iter().filter_map(|id| self.rule_sets.get(id));
        let first = rule_sets.min_by_key(|rule_set| rule_set.slot().mode);
        first.map(|rule_set| rule_set.account.clone()).unwrap_or_default()
    }

    /// Returns the ports of a port set after a change.
    fn contents_with(&self, base: PortSetId, diff: &Diff) -> AllowedPorts {
        let mut ports = self.port_sets.ports(base).cloned().unwrap_or_default();
        diff.apply(&mut ports);
        AllowedPorts::Of(ports)
    }

    /// Assigns the port set of `entry` to these users. The calling function has added one more user, so that the port
    /// set is not deleted meanwhile. That user is removed at the end.
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

    /// Sets the port set that a rule set allows to any peer, and writes the endpoints that use the rule set.
    fn set_any_peer(&mut self, changes: &mut Changes, id: RuleSetId, diff: &Diff, for_any_peer: PortSetId) {
        let Some(before) = self.rule_sets.get(id).map(|rule_set| rule_set.policy.any) else { return };
        self.rule_sets.set_any(id, diff, for_any_peer);
        if before != for_any_peer {
            let users = self.endpoints.iter().filter(|(_, rule_sets)| rule_sets.contains(id));
            let endpoints = users.map(|(pod, ids)| Change::PutEndpoint(pod.clone(), self.endpoint_policy(ids)));
            let endpoints: Vec<_> = endpoints.collect();
            self.write_all(changes, endpoints);
        }
        self.release_ports(changes, before);
    }

    /// Returns the policy of an endpoint with these rule sets. A rule set for shadow mode is not used if it is
    /// incomplete (because of the memory limit): it would report denials that the policies would not cause.
    pub(super) fn endpoint_policy(&self, rule_sets: EndpointRuleSets) -> EndpointPolicy {
        let policy = |id| self.rule_sets.get(id).map_or(DirectionPolicy::OPEN, |rule_set| rule_set.policy);
        let enforced = rule_sets.of(Mode::Enforce);
        let [ingress, egress] = enforced.map(policy);
        let incomplete = enforced.into_iter().any(|id| self.rule_sets.is_incomplete(id));
        let policy_if_complete = |id| if self.rule_sets.is_incomplete(id) { DirectionPolicy::OPEN } else { policy(id) };
        let [shadow_ingress, shadow_egress] = rule_sets.of(Mode::Shadow).map(policy_if_complete);
        EndpointPolicy { ingress, egress, shadow_ingress, shadow_egress, incomplete }
    }

    /// Of the entries for these classes, deletes those that allow exactly what the rule set allows to any peer.
    fn delete_redundant(&mut self, changes: &mut Changes, id: RuleSetId, classes: &BTreeSet<ClassId>) {
        let Some(for_any_peer) = self.rule_sets.get(id).map(|rule_set| rule_set.policy.any) else { return };
        for class in classes {
            let key = AllowKey { rule_set: id, class: *class };
            if self.tables.allow(&key).is_some_and(|entry| entry.port_set == for_any_peer) {
                self.disallow(changes, id, *class);
            }
        }
    }
}
