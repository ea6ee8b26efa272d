//! Computes how the `ALLOW` entries of a rule set (each for a class of addresses) change when a part (the resolved
//! rules of one policy) is added or removed. Equal changes are computed once. The module [`super`] explains the terms.
//!
//! For each port, a port set stores the first rule that allows it (the owner). Rules without peers apply to every peer
//! (*any peer*): endpoints store the port set of these rules, which applies to classes without an entry.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::Rc;

use netpol_common::{AllowEntry, AllowKey, ClassId, PortSetId, RuleId, RuleSetId};

use super::Engine;
use super::allow::{AllowedPorts, PortPrefix, Ports};
use super::classes::Signature;
use super::parts::{CompiledRule, Part, PartId, RuleAt};
use super::port_sets::Diff;
use super::rule_sets::RuleSet;
use super::selectors::PeerSelectorId;

/// If at most this number of ports are removed, each of them is searched in the remaining rules. If more ports are
/// removed, the ports of all remaining rules are collected once instead. If more than this number of rules match a
/// class, the change for the class is not cached.
const SCAN_LIMIT: usize = 64;

/// A user of a port set.
#[derive(Clone, Copy, Debug)]
pub(super) enum PortSetUser {
    /// A rule set, for the ports that it allows to any peer.
    AnyPeer(RuleSetId),
    /// An entry of `ALLOW`, which may not exist yet.
    Class(AllowKey),
}

impl PortSetUser {
    /// Returns the rule set that is the user, or that has the entry.
    pub(super) fn rule_set(&self) -> RuleSetId {
        match self {
            Self::AnyPeer(id) => *id,
            Self::Class(key) => key.rule_set,
        }
    }
}

/// The entries to be written.
#[derive(Debug, Default)]
pub(super) struct PendingEntries {
    /// Users of port sets, by their current port set and the change of this port set.
    pub(super) groups: BTreeMap<(PortSetId, Rc<Diff>), Vec<PortSetUser>>,
    /// Entries that get new contents, instead of a change of their port set.
    pub(super) singles: Vec<(AllowKey, AllowedPorts)>,
    /// For each rule set, the classes with entries that may have changed, and the change of the ports for any peer.
    pub(super) touched: BTreeMap<RuleSetId, (BTreeSet<ClassId>, Rc<Diff>)>,
}

/// Key of the cache: classes with equal keys have equal changes.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct DiffKey {
    rule_set: RuleSetId,
    /// The port set before the change.
    base: PortSetId,
    /// Indices of the rules of the added or removed part that match the class.
    changed_rules: Vec<usize>,
    /// If a part was removed: the remaining rules that match the class. Otherwise empty.
    remaining_rules: Vec<RuleAt>,
    /// Named ports of the class, if the rules have named ports.
    named: Vec<(PeerSelectorId, u16)>,
}

/// Changes already computed.
pub(super) type DiffCache = HashMap<DiffKey, Rc<Diff>>;

impl Engine {
    /// Collects the changes of a rule set's entries after a part was added.
    pub(super) fn collect_additions(
        &self,
        id: RuleSetId,
        new: PartId,
        pending: &mut PendingEntries,
        cache: &mut DiffCache,
    ) {
        let Some((rule_set, part)) = self.rule_sets.get(id).zip(self.parts.get(new)) else { return };
        if matches!(rule_set.any, AllowedPorts::All(_)) {
            return;
        }
        let any_peer_set = rule_set.policy.any;
        let rules = |indices: &[usize]| indices.iter().map(|index| &part.rules[*index]).collect::<Vec<_>>();
        let for_any_peer = Rc::new(self.additions_to(any_peer_set, &rules(&part.open), None));
        if !for_any_peer.is_empty() {
            pending.groups.entry((any_peer_set, for_any_peer.clone())).or_default().push(PortSetUser::AnyPeer(id));
        }
        let classes = self.classes_to_change(rule_set, part, !for_any_peer.is_empty());
        for (class, mut indices) in classes {
            pending.touched.entry(id).or_default().0.insert(class);
            indices.extend(&part.open);
            indices.sort_unstable();
            indices.dedup();
            let key = AllowKey { rule_set: id, class };
            let entry = self.tables.allow(&key);
            let rules = rules(&indices);
            let allows_all_ports = rules.iter().find(|rule| rule.has_all_ports()).map(|rule| rule.id);
            let signature = self.classes.signature(class).map(|signature| &**signature);
            // An entry that allows all ports stores only one rule: the first rule that allows all ports.
            match (entry.filter(|entry| entry.port_set == PortSetId::ALL), allows_all_ports) {
                (Some(entry), Some(rule)) if !self.rule_names.precedes(rule, entry.rule) => continue,
                (_, Some(rule)) => {
                    pending.singles.push((key, AllowedPorts::All(rule)));
                    continue;
                }
                (Some(_), None) => continue,
                (None, None) => {}
            }
            let base = entry.map_or(any_peer_set, |entry| entry.port_set);
            let named = named_ports(&rules, signature);
            let diff_key =
                DiffKey { rule_set: id, base, changed_rules: indices.clone(), remaining_rules: Vec::new(), named };
            let diff = cache.entry(diff_key);
            let diff = diff.or_insert_with(|| Rc::new(self.additions_to(base, &rules, signature))).clone();
            // To a class without an entry, the rule set allows what it allows to every peer. If this
            // changes alike for the class and for every peer, the class still needs no entry.
            if !diff.is_empty() && (entry.is_some() || diff != for_any_peer) {
                pending.groups.entry((base, diff)).or_default().push(PortSetUser::Class(key));
            }
        }
        pending.touched.entry(id).or_default().1 = for_any_peer;
    }

    /// Collects the changes of a rule set's entries after a part was removed.
    pub(super) fn collect_removals(
        &self,
        id: RuleSetId,
        removed_part: PartId,
        pending: &mut PendingEntries,
        cache: &mut DiffCache,
    ) {
        let Some((rule_set, part)) = self.rule_sets.get(id).zip(self.parts.get(removed_part)) else { return };
        if matches!(rule_set.any, AllowedPorts::All(_)) {
            return;
        }
        let any_peer_set = rule_set.policy.any;
        let removed = |indices: &[usize]| indices.iter().map(|index| &part.rules[*index]).collect::<Vec<_>>();
        let open_rules: Vec<RuleAt> =
            if part.open.is_empty() { Vec::new() } else { rule_set.rules_without_peers(&self.parts).collect() };
        let remaining = |rules: &[RuleAt]| rules.iter().filter_map(|at| self.parts.rule(*at)).collect::<Vec<_>>();
        let for_any_peer = Rc::new(self.removals_from(
            any_peer_set,
            &removed(&part.open),
            &remaining(&open_rules),
            &Ports::new(),
            None,
        ));
        if !for_any_peer.is_empty() {
            pending.groups.entry((any_peer_set, for_any_peer.clone())).or_default().push(PortSetUser::AnyPeer(id));
        }
        let classes = self.classes_to_change(rule_set, part, !for_any_peer.is_empty());
        let AllowedPorts::Of(before) = &rule_set.any else { return };
        let mut any_after = Cow::Borrowed(before);
        if !for_any_peer.is_empty() {
            for_any_peer.apply(any_after.to_mut());
        }
        for (class, mut indices) in classes {
            pending.touched.entry(id).or_default().0.insert(class);
            let key = AllowKey { rule_set: id, class };
            let Some(signature) = self.classes.signature(class) else { continue };
            let matching = rule_set.matching(signature);
            indices.extend(&part.open);
            indices.sort_unstable();
            indices.dedup();
            let rules = removed(&indices);
            let base = match self.tables.allow(&key) {
                Some(entry) if entry.port_set != PortSetId::ALL => entry.port_set,
                entry => {
                    // To a class without an entry, the rule set allowed what it allowed to every peer. If this changes,
                    // the class may need an entry for the rules that it matches. An entry that allows all ports changes
                    // if the rule in the entry is removed.
                    let has_removed = |entry: AllowEntry| rules.iter().any(|rule| rule.id == entry.rule);
                    if entry.map_or(!for_any_peer.is_empty(), has_removed) {
                        let contents = self.contents(any_after.clone().into_owned(), &matching, signature);
                        pending.singles.push((key, contents));
                    }
                    continue;
                }
            };
            let named = named_ports(&rules, Some(signature));
            let compute = || {
                let rest = remaining(&matching);
                Rc::new(self.removals_from(base, &rules, &rest, &any_after, Some(signature)))
            };
            let diff = if matching.len() > SCAN_LIMIT || have_names(&remaining(&matching)) {
                compute()
            } else {
                let (changed_rules, remaining_rules) = (indices.clone(), matching.clone());
                let diff_key = DiffKey { rule_set: id, base, changed_rules, remaining_rules, named };
                cache.entry(diff_key).or_insert_with(compute).clone()
            };
            if !diff.is_empty() {
                pending.groups.entry((base, diff)).or_default().push(PortSetUser::Class(key));
            }
        }
        pending.touched.entry(id).or_default().1 = for_any_peer;
    }

    /// Returns the classes to which a rule set may allow other ports if this part is added or removed. Each class has
    /// the indices of the part's rules that it matches: it matches a peer of the rule or, if the rule has no peers, a
    /// named port. If `any_peer_changes` is true, the rule set also allows other ports to every peer, so all classes
    /// that may have an entry are returned.
    pub(super) fn classes_to_change(
        &self,
        rule_set: &RuleSet,
        part: &Part,
        any_peer_changes: bool,
    ) -> BTreeMap<ClassId, Vec<usize>> {
        let mut classes: BTreeMap<ClassId, Vec<usize>> = BTreeMap::new();
        for (selector, index) in &part.deciding {
            for class in self.classes.matching(*selector) {
                classes.entry(class).or_default().push(*index);
            }
        }
        if any_peer_changes {
            for class in self.classes_with_entries(rule_set) {
                classes.entry(class).or_default();
            }
        }
        classes
    }

    /// Returns the classes that may need an entry in a rule set, because they match peers or named ports of its rules.
    pub(super) fn classes_with_entries(&self, rule_set: &RuleSet) -> BTreeSet<ClassId> {
        rule_set.deciding_selectors().flat_map(|selector| self.classes.matching(selector)).collect()
    }

    /// Returns how a port set changes if rules are added.
    fn additions_to(&self, base: PortSetId, rules: &[&CompiledRule], signature: Option<&Signature>) -> Diff {
        let base = self.port_sets.ports(base);
        let mut put = Ports::new();
        for rule in rules {
            for prefix in rule.ports_at(signature) {
                let owner = put.get(&prefix).or_else(|| base?.get(&prefix));
                if owner.is_none_or(|owner| self.rule_names.precedes(rule.id, *owner)) {
                    put.insert(prefix, rule.id);
                }
            }
        }
        Diff { put: put.into_iter().collect(), delete: Vec::new() }
    }

    /// Returns how a port set changes if rules are removed. `rest` has the remaining rules. `any_peer` has the ports
    /// that are still allowed to any peer after the removal.
    fn removals_from(
        &self,
        base: PortSetId,
        removed: &[&CompiledRule],
        rest: &[&CompiledRule],
        any_peer: &Ports,
        signature: Option<&Signature>,
    ) -> Diff {
        let Some(base) = self.port_sets.ports(base) else { return Diff::default() };
        let mut removed_ports: BTreeMap<PortPrefix, RuleId> = BTreeMap::new();
        for rule in removed {
            let owned = rule.ports_at(signature).filter(|prefix| base.get(prefix) == Some(&rule.id));
            removed_ports.extend(owned.map(|prefix| (prefix, rule.id)));
        }
        // Returns the first of the rules `found` and `rule`. If `found` is `None`, returns `rule`.
        let first = |found: Option<RuleId>, rule: &CompiledRule| match found {
            Some(found) if !self.rule_names.precedes(rule.id, found) => Some(found),
            _ => Some(rule.id),
        };
        let for_any_peer = |prefix: &PortPrefix| any_peer.get(prefix).copied();
        let mut collected = Ports::new();
        if removed_ports.len() > SCAN_LIMIT {
            for rule in rest {
                for prefix in rule.ports_at(signature) {
                    let found = collected.get(&prefix).copied().or_else(|| for_any_peer(&prefix));
                    collected.extend(first(found, rule).map(|id| (prefix, id)));
                }
            }
        }
        let mut diff = Diff::default();
        for (prefix, rule) in &removed_ports {
            let now = if removed_ports.len() > SCAN_LIMIT {
                collected.get(prefix).copied().or_else(|| for_any_peer(prefix))
            } else {
                let rules_with_prefix = rest.iter().filter(|rule| rule.has_port_at(signature, *prefix));
                rules_with_prefix.fold(for_any_peer(prefix), |found, rule| first(found, rule))
            };
            match now {
                None => diff.delete.push(*prefix),
                Some(now) if now != *rule => diff.put.push((*prefix, now)),
                Some(_) => {}
            }
        }
        diff
    }

    /// Returns all ports that are allowed to addresses with this signature: those that these rules allow, and `ports`
    /// (the ports that are allowed to any peer).
    pub(super) fn contents(&self, mut ports: Ports, rules: &[RuleAt], signature: &Signature) -> AllowedPorts {
        let rules = || rules.iter().filter_map(|at| self.parts.rule(*at));
        let all = rules().filter(|rule| rule.has_all_ports()).map(|rule| rule.id);
        if let Some(rule) = all.reduce(|one, other| if self.rule_names.precedes(other, one) { other } else { one }) {
            return AllowedPorts::All(rule);
        }
        for rule in rules() {
            for prefix in rule.ports_at(Some(signature)) {
                let owner = ports.entry(prefix).or_insert(rule.id);
                if *owner != rule.id && self.rule_names.precedes(rule.id, *owner) {
                    *owner = rule.id;
                }
            }
        }
        AllowedPorts::Of(ports)
    }
}

/// Returns the named ports of a class, if the rules have named ports.
fn named_ports(rules: &[&CompiledRule], signature: Option<&Signature>) -> Vec<(PeerSelectorId, u16)> {
    if !have_names(rules) {
        return Vec::new();
    }
    signature.into_iter().flat_map(|signature| signature.ports.iter().copied()).collect()
}

fn have_names(rules: &[&CompiledRule]) -> bool {
    rules.iter().any(|rule| rule.has_names())
}
