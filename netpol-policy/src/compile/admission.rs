//! Applies the memory limit for policies while rules are compiled; see [`super::memory_limit`].

use std::collections::{BTreeSet, HashSet};

use netpol_common::{AllowKey, Direction, PortSetId, RuleSetId};

use super::Engine;
use super::allow::{AllowedPorts, Ports};
use super::endpoints::EndpointRuleSets;
use super::memory_limit::{Account, Balance};
use super::parts::{CompiledRule, RuleAt};
use super::port_sets::Diff;
use super::reclassify::AllowCache;
use super::rule_sets::RuleSet;
use super::transaction::{Changes, NextEndpoints};
use super::update_in_place::InPlaceUpdate;
use crate::model::PodKey;
use crate::tables::Change;

impl Engine {
    /// Returns whether additional entries may be charged to an account (a namespace, or all rule sets for shadow mode).
    /// `needed`: the number of entries in `PORTS`, and the number of entries in `ALLOW`.
    pub(super) fn has_room(&self, account: &Account, needed: (u64, u64)) -> bool {
        let entry_counts = (self.port_sets.entry_counts(), self.rule_sets.entry_counts());
        needed == (0, 0) || self.memory_limit.has_room(account, entry_counts, needed)
    }

    /// Returns whether rule sets of an account can change in place within the memory limit. If not, their pods get
    /// other rule sets, and each of the new entries is admitted or refused.
    pub(super) fn has_room_to_update<'a>(
        &self,
        account: &Account,
        in_place: impl Iterator<Item = &'a InPlaceUpdate>,
    ) -> bool {
        self.memory_limit.bytes().is_none() || self.has_room(account, self.most_needed(in_place))
    }

    /// Returns an upper bound of the additional entries that rule sets need during their change: the number of entries
    /// in `PORTS`, and the number of entries in `ALLOW`.
    fn most_needed<'a>(&self, in_place: impl Iterator<Item = &'a InPlaceUpdate>) -> (u64, u64) {
        let (mut ports, mut entries) = (0, 0);
        let mut counted: HashSet<(RuleSetId, PortSetId, Vec<RuleAt>)> = HashSet::new();
        for InPlaceUpdate { rule_set: id, new, removed, .. } in in_place {
            let Some(rule_set) = self.rule_sets.get(*id) else { continue };
            let AllowedPorts::Of(for_any_peer) = &rule_set.any else { continue };
            let new_ports = new.and_then(|new| self.parts.get(new)).map_or(0, |part| {
                part.rules.iter().map(|rule| rule.ports_at(None).count()).sum::<usize>() + part.rules.len()
            });
            for (part_id, is_new) in
                new.iter().map(|part| (*part, true)).chain(removed.iter().map(|part| (*part, false)))
            {
                let Some(part) = self.parts.get(part_id) else { continue };
                // The ports for any peer may need a new port set.
                if !part.open.is_empty() {
                    ports += for_any_peer.len() + new_ports;
                }
                for (class, indices) in self.classes_to_change(rule_set, part, !part.open.is_empty()) {
                    let Some(signature) = self.classes.signature(class) else { continue };
                    let entry = self.tables.allow(&AllowKey { rule_set: *id, class });
                    // The entry of a class that matches only blocks is not counted: the cost of a block includes it.
                    entries += u64::from(entry.is_none() && !self.has_only_blocks(signature));
                    let base = entry.map_or(rule_set.policy.any, |entry| entry.port_set);
                    let changed_rules =
                        indices.iter().chain(&part.open).map(|index| RuleAt { part: part_id, index: *index });
                    let rules: Vec<RuleAt> =
                        if is_new { changed_rules.collect() } else { rule_set.matching(signature) };
                    let matching_rules = || rules.iter().filter_map(|at| self.parts.rule(*at));
                    let has_names = matching_rules().any(CompiledRule::has_names);
                    let count = matching_rules().map(|rule| rule.ports_at(Some(signature)).count()).sum::<usize>();
                    let before =
                        if is_new { self.port_sets.ports(base).map_or(0, Ports::len) } else { for_any_peer.len() };
                    // The entry may need a new port set. Classes with the same rules share a port set, so it is counted
                    // once. With named ports, each class can need its own.
                    if has_names || counted.insert((*id, base, rules)) {
                        ports += before + count + if is_new { 0 } else { new_ports };
                    }
                }
            }
        }
        (ports as u64, entries)
    }

    /// Divides the memory limit among policies again, after a change of the cluster state. Returns the pods for which
    /// rules must be resolved again, or `None` if the division did not change. There are two kinds of such pods: the
    /// pods that a policy selects, if more or fewer of this policy's blocks and ports are used now; and the pods of a
    /// namespace that got or lost memory for policies in shadow mode.
    pub(super) fn balance(&mut self) -> Option<BTreeSet<PodKey>> {
        let Balance { policies, namespaces } = self.memory_limit.balance(&self.cluster_state);
        let mut pods = BTreeSet::new();
        for namespace in &namespaces {
            pods.extend(self.endpoints.of_namespace(namespace).cloned());
        }
        for key in &policies {
            for direction in Direction::BOTH {
                self.parts.invalidate(key, direction);
            }
            let Some(policy) = self.cluster_state.policies.get(key) else { continue };
            let selects = |pod: &&PodKey| {
                self.cluster_state.pods.get(*pod).is_some_and(|pod| policy.pods.matches_or_is_invalid(&pod.labels))
            };
            pods.extend(self.endpoints.of_namespace(&key.namespace).filter(selects).cloned());
        }
        (!policies.is_empty() || !namespaces.is_empty()).then_some(pods)
    }

    /// Writes refused entries for which there is room now, and writes which endpoints are incomplete. Returns the pods
    /// that need a new rule set, see `replace_refused`.
    pub(super) fn retry_refused(&mut self, changes: &mut Changes) -> BTreeSet<PodKey> {
        if self.memory_limit.bytes().is_none() {
            return BTreeSet::new();
        }
        self.admit_refused(changes);
        self.mark_incomplete(changes);
        self.replace_refused()
    }

    /// Writes refused entries for which there is room now. In each account, stops at the first entry that does not fit.
    fn admit_refused(&mut self, changes: &mut Changes) {
        let refused: Vec<_> = self.rule_sets.refused().collect();
        let (mut cache, mut full_accounts) = (AllowCache::new(), BTreeSet::new());
        for (rule_set, class) in refused {
            let account = self.rule_sets.get(rule_set).map(|rule_set| rule_set.account.clone());
            if full_accounts.contains(&account) {
                continue;
            }
            // Deletes the old entry: after a change in place, the rule set may have an entry for this class with only
            // the added rules.
            self.disallow(changes, rule_set, class);
            if !self.allow(changes, &mut cache, rule_set, class) {
                full_accounts.insert(account);
            }
            // What the rule set allows to Services with backends of this class can change, too.
            self.update_backend_set_entries_of(
                changes,
                &NextEndpoints::new(),
                rule_set,
                (&BTreeSet::from([class]), &Diff::default()),
            );
        }
    }

    /// For some rule sets, there was no room for the ports that they allow to every peer (rules without `from` or
    /// `to`). Finds those rule sets for which there is room now. Returns their pods, which need a new rule set.
    fn replace_refused(&mut self) -> BTreeSet<PodKey> {
        let has_room = |rule_set: &RuleSet| {
            let needed = (self.port_sets.entries_to_add(&rule_set.any), 0);
            self.has_room(&rule_set.account, needed)
        };
        let ids: BTreeSet<_> = self
            .rule_sets
            .lacking_ports_for_any_peer()
            .filter(|(_, rule_set)| has_room(rule_set))
            .map(|(id, _)| id)
            .collect();
        let uses_one = |(_, rule_sets): &(&PodKey, EndpointRuleSets)| rule_sets.all().any(|id| ids.contains(&id));
        let pods = self.endpoints.iter().filter(uses_one).map(|(pod, _)| pod.clone()).collect();
        // Otherwise, these pods would get the same rule set again.
        for id in ids {
            self.rule_sets.stop_sharing(id);
        }
        pods
    }

    /// Writes the endpoints with a rule set that became complete or incomplete. A rule set for shadow mode is used only
    /// if it is complete.
    fn mark_incomplete(&mut self, changes: &mut Changes) {
        let changed = |(pod, rule_sets): (&PodKey, EndpointRuleSets)| {
            let policy = self.endpoint_policy(rule_sets);
            self.tables.endpoint(pod).filter(|before| *before != policy)?;
            Some(Change::PutEndpoint(pod.clone(), policy))
        };
        let changed: Vec<_> = self.endpoints.iter().filter_map(changed).collect();
        self.write_all(changes, changed);
    }
}
