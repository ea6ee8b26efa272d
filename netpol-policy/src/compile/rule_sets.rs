//! Rule sets: the resolved rules of all policies that isolate a pod in one direction. Pods with the same rules share a
//! rule set. A rule set keeps its ID when policies are added to it or removed from it in place. The module [`super`]
//! explains the terms.
//!
//! *Entries* are entries of the map `ALLOW`: what a rule set allows to a class of addresses. They are *charged* to an
//! account of the memory limit (a namespace, or all policies in shadow mode), or *refused* if the limit leaves no room.
//! Entries are charged only for *classes of pods*: classes with at least one peer selector that is not a block.
//!
//! Rules without peers apply to *any peer*: endpoints store the port set of these rules, which applies to classes
//! without an entry. A peer selector *decides* in a rule set if the rule set may allow more than this port set to
//! addresses that match the selector.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use netpol_common::{ClassId, Direction, DirectionPolicy, PortSetId, RuleSetId};

use super::allow::{AllowedPorts, PortPrefix};
use super::classes::Signature;
use super::endpoints::Slot;
use super::entry_counts::EntryCounts;
use super::ids::Counter;
use super::memory_limit::Account;
use super::parts::{PartId, Parts, RuleAt};
use super::rules::MAX_RETIRED;
use super::selectors::PeerSelectorId;
use crate::index::Index;
use crate::model::{Mode, PolicyKey};

/// Maximum number of policy names that are kept for deleted rule sets.
const MAX_RETIRED_POLICIES: usize = 65_536;

/// Identifies a rule set: its slot (mode and direction), and its parts in the order of their policies. An enforced rule
/// set and a rule set for shadow mode are separate even if they have the same parts, so that neither can use the memory
/// of the other.
type Key = (Slot, Arc<[PartId]>);

/// The rule sets in use.
#[derive(Clone, Debug, Default)]
pub(super) struct RuleSets {
    /// The rule sets that new pods can share.
    shared: HashMap<Key, RuleSetId>,
    by_id: BTreeMap<RuleSetId, RuleSet>,
    /// The rule sets in which each peer selector decides.
    by_selector: Index<PeerSelectorId, RuleSetId>,
    /// Rule sets that depend on the backends of Services.
    evaluating_services: BTreeSet<RuleSetId>,
    /// The rule sets of `evaluating_services`, by the port prefixes that they allow to any peer.
    by_port_for_any_peer: Index<PortPrefix, RuleSetId>,
    /// Number of charged entries for classes of pods, by account.
    entry_counts: EntryCounts,
    /// Entries that are not written, because the memory limit leaves no room.
    refused: BTreeSet<(RuleSetId, ClassId)>,
    /// Rule sets that lost their last user (endpoint). They may have got a new user since then.
    unused: BTreeSet<RuleSetId>,
    counter: Counter,
    /// Policies of deleted rule sets, oldest first. Events that arrive later may contain the IDs of these rule sets.
    retired: VecDeque<(RuleSetId, Vec<PolicyKey>)>,
    /// Number of policies in `retired`.
    retired_policies: usize,
}

/// The resolved rules of all policies that isolate a pod in one direction.
#[derive(Clone, Debug)]
pub(super) struct RuleSet {
    key: Key,
    pub(super) policies: Vec<PolicyKey>,
    /// The account to which entries are charged.
    pub(super) account: Account,
    /// For each peer selector that decides (see [`super::parts::Part::deciding`]), the rules with this selector.
    deciding: HashMap<PeerSelectorId, Vec<RuleAt>>,
    /// What the rule set allows to any peer.
    pub(super) any: AllowedPorts,
    /// What endpoints with this rule set store: its ID, and the port set for any peer.
    pub(super) policy: DirectionPolicy,
    /// Number of endpoints with this rule set.
    users: usize,
    /// A deleted pod had this rule set. If the pod's interface still exists, the rule set stays enforced there
    /// (orphaned endpoint), so it must not be changed to allow more.
    frozen: bool,
    /// Number of parts with blocks or ports left out because of the memory limit.
    incomplete_parts: usize,
    /// Classes of pods for which an entry is charged to `account`.
    charged: BTreeSet<ClassId>,
    /// The memory limit left no room for the ports that are allowed to any peer.
    any_refused: bool,
}

impl RuleSet {
    /// Returns whether Services are evaluated by their backends. This is so for egress, unless the rule set allows
    /// everything to any peer.
    pub(super) fn evaluates_services(&self) -> bool {
        self.slot().direction == Direction::Egress && matches!(self.any, AllowedPorts::Of(_))
    }

    pub(super) fn parts(&self) -> &Arc<[PartId]> {
        &self.key.1
    }

    /// Returns the mode and direction of the rule set.
    pub(super) fn slot(&self) -> Slot {
        self.key.0
    }

    /// Returns whether a change may be applied to the rule set in place: no pod uses the rule set except the pods that
    /// need the change, and it is not frozen. `pods`: the number of pods with this rule set that need the change.
    pub(super) fn may_change(&self, pods: usize) -> bool {
        self.users == pods && !self.frozen
    }

    /// Returns the peer selectors that decide. To an address that matches none of them, the rule set allows only what
    /// it allows to any peer.
    pub(super) fn deciding_selectors(&self) -> impl Iterator<Item = PeerSelectorId> {
        self.deciding.keys().copied()
    }

    /// Returns the rules that match a signature, sorted and without duplicates.
    pub(super) fn matching(&self, signature: &Signature) -> Vec<RuleAt> {
        let mut matching: Vec<RuleAt> =
            signature.all_selectors().filter_map(|selector| self.deciding.get(&selector)).flatten().copied().collect();
        matching.sort_unstable();
        matching.dedup();
        matching
    }

    /// Returns the rules without peers, which apply to any peer.
    pub(super) fn rules_without_peers<'a>(&'a self, parts: &'a Parts) -> impl Iterator<Item = RuleAt> + 'a {
        let parts = self.key.1.iter().filter_map(|id| Some((*id, parts.get(*id)?)));
        parts.flat_map(|(id, part)| part.open.iter().map(move |index| RuleAt { part: id, index: *index }))
    }
}

impl RuleSets {
    pub(super) fn new(first: RuleSetId) -> Self {
        Self { counter: Counter::starting_at(first.0), ..Self::default() }
    }

    /// Returns how many IDs were allocated.
    pub(super) fn ids_allocated(&self) -> u32 {
        self.counter.allocated()
    }

    /// Keeps the policies of the previous engine's rule sets (`before`), in the same way as those of deleted rule sets.
    pub(super) fn inherit(&mut self, before: &Self) {
        for (id, policies) in &before.retired {
            self.keep_policies(*id, policies.clone());
        }
        for (id, rule_set) in &before.by_id {
            self.keep_policies(*id, rule_set.policies.clone());
        }
    }

    fn keep_policies(&mut self, id: RuleSetId, policies: Vec<PolicyKey>) {
        self.retired_policies += policies.len();
        self.retired.push_back((id, policies));
        while self.retired.len() > MAX_RETIRED
            || (self.retired_policies > MAX_RETIRED_POLICIES && self.retired.len() > 1)
        {
            self.retired_policies -= self.retired.pop_front().map_or(0, |(_, policies)| policies.len());
        }
    }

    /// Returns the rule set with these parts, if new pods can share it.
    pub(super) fn find(&self, slot: Slot, parts: &Arc<[PartId]>) -> Option<RuleSetId> {
        self.shared.get(&(slot, parts.clone())).copied()
    }

    /// Adds a user to the rule set with these parts, if new pods can share it. Returns the ID of the rule set.
    pub(super) fn acquire(&mut self, slot: Slot, parts: &Arc<[PartId]>) -> Option<RuleSetId> {
        let id = self.find(slot, parts)?;
        self.by_id.get_mut(&id)?.users += 1;
        Some(id)
    }

    /// Adds a rule set with one user. `ids` are its parts, `any` is what it allows to any peer, and `any_set` is the
    /// port set of `any`, if the memory limit leaves room for it.
    pub(super) fn add(
        &mut self,
        slot: Slot,
        ids: &Arc<[PartId]>,
        parts: &mut Parts,
        account: Account,
        any: AllowedPorts,
        any_set: Option<PortSetId>,
    ) -> RuleSetId {
        let id = RuleSetId(self.counter.next());
        let policy = DirectionPolicy { rule_set: id, any: any_set.unwrap_or(PortSetId::NONE) };
        let key = (slot, Arc::clone(ids));
        let mut rule_set = RuleSet {
            key: key.clone(),
            policies: Vec::new(),
            account,
            deciding: HashMap::new(),
            any,
            policy,
            users: 1,
            frozen: false,
            incomplete_parts: 0,
            charged: BTreeSet::new(),
            any_refused: any_set.is_none(),
        };
        for part_id in ids.iter() {
            parts.acquire(*part_id);
            if let Some(part) = parts.get(*part_id) {
                rule_set.policies.push(part.policy.clone());
                rule_set.incomplete_parts += usize::from(part.incomplete);
                for (selector, index) in &part.deciding {
                    rule_set.deciding.entry(*selector).or_default().push(RuleAt { part: *part_id, index: *index });
                }
            }
        }
        for selector in rule_set.deciding_selectors() {
            self.by_selector.insert(selector, id);
        }
        if rule_set.evaluates_services() {
            self.evaluating_services.insert(id);
            for prefix in rule_set.any.prefixes() {
                self.by_port_for_any_peer.insert(prefix, id);
            }
        }
        self.shared.insert(key, id);
        self.by_id.insert(id, rule_set);
        id
    }

    /// Replaces only the parts in the key of a rule set. [`RuleSets::change`] and [`RuleSets::set_any`] change what the
    /// rule set allows.
    pub(super) fn set_parts(&mut self, id: RuleSetId, parts: Arc<[PartId]>) {
        self.stop_sharing(id);
        let Some(rule_set) = self.by_id.get_mut(&id) else { return };
        rule_set.key.1 = parts;
        self.shared.insert(rule_set.key.clone(), id);
    }

    /// Adds or removes the rules of a part.
    pub(super) fn change(&mut self, id: RuleSetId, change: PartChange, parts: &mut Parts) {
        let Some(rule_set) = self.by_id.get_mut(&id) else { return };
        let part_id = match change {
            PartChange::Add(part_id) | PartChange::Remove(part_id) => part_id,
        };
        let Some(part) = parts.get(part_id) else { return };
        match change {
            PartChange::Add(_) => {
                let position = rule_set.policies.partition_point(|policy| *policy < part.policy);
                rule_set.policies.insert(position, part.policy.clone());
                rule_set.incomplete_parts += usize::from(part.incomplete);
                for (selector, index) in &part.deciding {
                    rule_set.deciding.entry(*selector).or_default().push(RuleAt { part: part_id, index: *index });
                    self.by_selector.insert(*selector, id);
                }
                parts.acquire(part_id);
            }
            PartChange::Remove(_) => {
                // The part is not released here, because the caller still needs it. The caller releases it later.
                if let Ok(position) = rule_set.policies.binary_search(&part.policy) {
                    rule_set.policies.remove(position);
                }
                rule_set.incomplete_parts -= usize::from(part.incomplete);
                for (selector, _) in &part.deciding {
                    let Some(rules) = rule_set.deciding.get_mut(selector) else { continue };
                    rules.retain(|rule| rule.part != part_id);
                    if rules.is_empty() {
                        rule_set.deciding.remove(selector);
                        self.by_selector.remove(selector, &id);
                    }
                }
            }
        }
    }

    /// Changes what a rule set allows to any peer: applies `change`, and stores the ID of the new port set.
    pub(super) fn set_any(&mut self, id: RuleSetId, change: &super::port_sets::Diff, any_set: PortSetId) {
        let Some(rule_set) = self.by_id.get_mut(&id) else { return };
        rule_set.policy.any = any_set;
        let evaluates_services = rule_set.evaluates_services();
        let AllowedPorts::Of(ports) = &mut rule_set.any else { return };
        for (prefix, rule) in &change.put {
            if ports.insert(*prefix, *rule).is_none() && evaluates_services {
                self.by_port_for_any_peer.insert(*prefix, id);
            }
        }
        for prefix in &change.delete {
            ports.remove(prefix);
            self.by_port_for_any_peer.remove(prefix, &id);
        }
    }

    /// Forbids changes of a rule set in place, because a pod with it was deleted. Returns the port set for any peer.
    pub(super) fn freeze(&mut self, id: RuleSetId) -> Option<PortSetId> {
        let rule_set = self.by_id.get_mut(&id)?;
        rule_set.frozen = true;
        Some(rule_set.policy.any)
    }

    /// Removes a user. The rule set stays until [`RuleSets::retire`].
    pub(super) fn release(&mut self, id: RuleSetId) {
        let Some(rule_set) = self.by_id.get_mut(&id) else { return };
        rule_set.users -= 1;
        if rule_set.users == 0 {
            self.unused.insert(id);
        }
    }

    /// Removes the rule sets without users, and returns them.
    pub(super) fn retire(&mut self) -> Vec<(RuleSetId, RuleSet)> {
        let unused = std::mem::take(&mut self.unused);
        unused.into_iter().filter_map(|id| Some((id, self.retire_one(id)?))).collect()
    }

    fn retire_one(&mut self, id: RuleSetId) -> Option<RuleSet> {
        if self.by_id.get(&id)?.users > 0 {
            return None;
        }
        let rule_set = self.by_id.remove(&id)?;
        self.entry_counts.subtract(&rule_set.account, rule_set.charged.len() as u64);
        let refused: Vec<_> = self.refused_by(id).collect();
        for entry in refused {
            self.refused.remove(&entry);
        }
        self.forget_key(&rule_set.key, id);
        self.evaluating_services.remove(&id);
        for prefix in rule_set.any.prefixes() {
            self.by_port_for_any_peer.remove(&prefix, &id);
        }
        for selector in rule_set.deciding_selectors() {
            self.by_selector.remove(&selector, &id);
        }
        self.keep_policies(id, rule_set.policies.clone());
        Some(rule_set)
    }

    pub(super) fn get(&self, id: RuleSetId) -> Option<&RuleSet> {
        self.by_id.get(&id)
    }

    /// Removes a key, unless it belongs to another rule set than `id` by now.
    fn forget_key(&mut self, key: &Key, id: RuleSetId) {
        if self.shared.get(key) == Some(&id) {
            self.shared.remove(key);
        }
    }

    /// Returns the number of entries for classes of pods, by account.
    pub(super) fn entry_counts(&self) -> &EntryCounts {
        &self.entry_counts
    }

    /// Charges an entry for a class of pods.
    pub(super) fn charge(&mut self, id: RuleSetId, class: ClassId) {
        let Some(rule_set) = self.by_id.get_mut(&id) else { return };
        if rule_set.charged.insert(class) {
            self.entry_counts.add(&rule_set.account, 1);
        }
    }

    /// Removes the charge or the refusal of an entry that was deleted or is no longer needed.
    pub(super) fn discharge(&mut self, id: RuleSetId, class: ClassId) {
        self.refused.remove(&(id, class));
        if let Some(rule_set) = self.by_id.get_mut(&id)
            && rule_set.charged.remove(&class)
        {
            self.entry_counts.subtract(&rule_set.account, 1);
        }
    }

    /// Records an entry for which there is no room.
    pub(super) fn refuse(&mut self, id: RuleSetId, class: ClassId) {
        self.refused.insert((id, class));
    }

    /// Removes the record of a refused entry, before the entry is tried again.
    pub(super) fn clear_refusal(&mut self, id: RuleSetId, class: ClassId) {
        self.refused.remove(&(id, class));
    }

    /// Returns the entries for which there is no room.
    pub(super) fn refused(&self) -> impl Iterator<Item = (RuleSetId, ClassId)> {
        self.refused.iter().copied()
    }

    /// For each refused entry in the rule sets of a mode, returns the rule set. A refused port set for any peer counts
    /// as an entry.
    pub(super) fn refusals(&self, mode: Mode) -> impl Iterator<Item = RuleSetId> {
        let for_any_peer = self.by_id.iter().filter(|(_, rule_set)| rule_set.any_refused).map(|(id, _)| *id);
        let all = self.refused.iter().map(|(id, _)| *id).chain(for_any_peer);
        all.filter(move |id| self.by_id.get(id).is_some_and(|rule_set| rule_set.slot().mode == mode))
    }

    /// Returns the rule sets for shadow mode that are incomplete because of the memory limit.
    pub(super) fn incomplete_shadow(&self) -> impl Iterator<Item = &RuleSet> {
        let shadow = self.by_id.iter().filter(|(_, rule_set)| rule_set.slot().mode == Mode::Shadow);
        shadow.filter(|(id, _)| self.is_incomplete(**id)).map(|(_, rule_set)| rule_set)
    }

    fn refused_by(&self, id: RuleSetId) -> impl Iterator<Item = (RuleSetId, ClassId)> {
        self.refused.range((id, ClassId(0))..=(id, ClassId(u32::MAX))).copied()
    }

    /// Returns whether entries of a rule set, or its ports for any peer, were refused because there was no room.
    pub(super) fn has_refused_entries(&self, id: RuleSetId) -> bool {
        self.by_id.get(&id).is_some_and(|rule_set| rule_set.any_refused) || self.refused_by(id).next().is_some()
    }

    /// Returns the rule sets in use that lack the ports for any peer, because there was no room for these ports.
    pub(super) fn lacking_ports_for_any_peer(&self) -> impl Iterator<Item = (RuleSetId, &RuleSet)> {
        let refused = self.by_id.iter().filter(|(_, rule_set)| rule_set.any_refused && rule_set.users > 0);
        refused.map(|(id, rule_set)| (*id, rule_set))
    }

    /// Ends the sharing of a rule set with new pods: from now on, new pods with the same rules get another rule set.
    pub(super) fn stop_sharing(&mut self, id: RuleSetId) {
        if let Some(key) = self.by_id.get(&id).map(|rule_set| rule_set.key.clone()) {
            self.forget_key(&key, id);
        }
    }

    /// Returns whether a rule set lacks blocks, ports or entries because of the memory limit.
    pub(super) fn is_incomplete(&self, id: RuleSetId) -> bool {
        self.by_id.get(&id).is_some_and(|rule_set| rule_set.incomplete_parts > 0) || self.has_refused_entries(id)
    }

    /// Returns all IDs in use.
    pub(super) fn all(&self) -> impl Iterator<Item = RuleSetId> {
        self.by_id.iter().filter(|(_, rule_set)| rule_set.users > 0).map(|(id, _)| *id)
    }

    /// Returns the rule sets that depend on the backends of Services.
    pub(super) fn evaluating_services(&self) -> impl Iterator<Item = RuleSetId> {
        self.evaluating_services.iter().copied()
    }

    /// Returns the rule sets that depend on the backends of Services and allow this port to any peer.
    pub(super) fn allowing_any_peer(&self, protocol: u8, port: u16) -> impl Iterator<Item = RuleSetId> {
        PortPrefix::covering(protocol, port).flat_map(|prefix| self.by_port_for_any_peer.get(&prefix)).copied()
    }

    /// Returns whether an endpoint uses a rule set.
    pub(super) fn is_used(&self, id: RuleSetId) -> bool {
        self.by_id.get(&id).is_some_and(|rule_set| rule_set.users > 0)
    }

    /// Returns the rule sets in which a peer selector decides: for addresses that match the selector, these rule sets
    /// may allow more than their ports for any peer.
    pub(super) fn matching_selector(&self, selector: PeerSelectorId) -> impl Iterator<Item = RuleSetId> {
        self.by_selector.get(&selector).iter().copied()
    }

    /// Returns the policies of a rule set, also if the rule set was deleted recently.
    pub(super) fn policies(&self, id: RuleSetId) -> Option<&[PolicyKey]> {
        match self.by_id.get(&id) {
            Some(rule_set) => Some(&rule_set.policies),
            None => self.retired.iter().rev().find(|(old, _)| *old == id).map(|(_, policies)| &policies[..]),
        }
    }
}

/// A change of a rule set's parts.
#[derive(Clone, Copy, Debug)]
pub(super) enum PartChange {
    /// Adds a part.
    Add(PartId),
    /// Removes a part.
    Remove(PartId),
}
