//! What a rule set's entries become when a part comes to it or leaves it. Entries that are alike are worked out once.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::Rc;

use netpol_common::{AllowKey, ClassId, PortSetId, RuleId, RuleSetId};

use super::Engine;
use super::allow::{Contents, PortPrefix, Ports};
use super::atoms::AtomId;
use super::classes::Signature;
use super::parts::{CompiledRule, PartId, RuleAt};
use super::port_sets::Diff;
use super::rule_sets::RuleSet;

/// More removed ports than this, and what remains is gathered once.
const FEW: usize = 64;

/// Who has a port set.
#[derive(Clone, Copy, Debug)]
pub(super) enum Holder {
    /// A rule set, for anyone.
    Anyone(RuleSetId),
    /// An entry of `ALLOW`, if there is one.
    Class(AllowKey),
}

/// What is to be written.
#[derive(Debug, Default)]
pub(super) struct Work {
    /// By the port set as it is, and how it changes.
    pub(super) groups: BTreeMap<(PortSetId, Rc<Diff>), Vec<Holder>>,
    /// Entries with contents of their own.
    pub(super) singles: Vec<(AllowKey, Contents)>,
    /// The classes looked at, and what changes for anyone, by rule set.
    pub(super) touched: BTreeMap<RuleSetId, (BTreeSet<ClassId>, Rc<Diff>)>,
}

/// What is the same for all classes where it is the same.
#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct Circumstances {
    rule_set: RuleSetId,
    base: PortSetId,
    /// Rules of the part that comes or goes.
    changing: Vec<usize>,
    /// Other rules that match.
    staying: Vec<RuleAt>,
    /// The peer's ports, if names are among those.
    named: Vec<(AtomId, u16)>,
}

/// Changes that were worked out already.
pub(super) type Known = HashMap<Circumstances, Rc<Diff>>;

impl Engine {
    pub(super) fn gather_growth(&self, id: RuleSetId, new: PartId, work: &mut Work, known: &mut Known) {
        let Some((rule_set, part)) = self.rule_sets.get(id).zip(self.parts.get(new)) else { return };
        if matches!(rule_set.any, Contents::All(_)) {
            return;
        }
        let any = rule_set.policy.any;
        let rules = |indices: &[usize]| indices.iter().map(|index| &part.rules[*index]).collect::<Vec<_>>();
        let for_anyone = Rc::new(self.added(any, &rules(&part.open), None));
        let mut classes = self.classes_asked(&part.deciding);
        if !for_anyone.is_empty() {
            for class in self.classes_decided(rule_set) {
                classes.entry(class).or_default();
            }
            work.groups.entry((any, for_anyone.clone())).or_default().push(Holder::Anyone(id));
        }
        for (class, mut indices) in std::mem::take(&mut classes) {
            work.touched.entry(id).or_default().0.insert(class);
            indices.extend(&part.open);
            indices.sort_unstable();
            indices.dedup();
            let key = AllowKey { rule_set: id, class };
            let entry = self.tables.allow(&key);
            let rules = rules(&indices);
            let all = rules.iter().find(|rule| rule.has_all_ports()).map(|rule| rule.id);
            let signature = self.classes.signature(class).map(|signature| &**signature);
            match (entry.filter(|entry| entry.port_set == PortSetId::ALL), all) {
                (Some(entry), Some(rule)) if !self.rule_names.precedes(rule, entry.rule) => continue,
                (_, Some(rule)) => {
                    work.singles.push((key, Contents::All(rule)));
                    continue;
                }
                (Some(_), None) => continue,
                (None, None) => {}
            }
            let base = entry.map_or(any, |entry| entry.port_set);
            let named = named_ports(&rules, signature);
            let circumstances =
                Circumstances { rule_set: id, base, changing: indices.clone(), staying: Vec::new(), named };
            let diff = known.entry(circumstances);
            let diff = diff.or_insert_with(|| Rc::new(self.added(base, &rules, signature))).clone();
            if !diff.is_empty() && (entry.is_some() || diff != for_anyone) {
                work.groups.entry((base, diff)).or_default().push(Holder::Class(key));
            }
        }
        work.touched.entry(id).or_default().1 = for_anyone;
    }

    pub(super) fn gather_shrinking(&self, id: RuleSetId, gone: PartId, work: &mut Work, known: &mut Known) {
        let Some((rule_set, part)) = self.rule_sets.get(id).zip(self.parts.get(gone)) else { return };
        if matches!(rule_set.any, Contents::All(_)) {
            return;
        }
        let any = rule_set.policy.any;
        let removed = |indices: &[usize]| indices.iter().map(|index| &part.rules[*index]).collect::<Vec<_>>();
        let open: Vec<RuleAt> = if part.open.is_empty() { Vec::new() } else { rule_set.open(&self.parts).collect() };
        let remaining = |rules: &[RuleAt]| rules.iter().filter_map(|at| self.parts.rule(*at)).collect::<Vec<_>>();
        let for_anyone = Rc::new(self.removed(any, &removed(&part.open), &remaining(&open), &Ports::new(), None));
        let mut classes = self.classes_asked(&part.deciding);
        if !for_anyone.is_empty() {
            for class in self.classes_decided(rule_set) {
                classes.entry(class).or_default();
            }
            work.groups.entry((any, for_anyone.clone())).or_default().push(Holder::Anyone(id));
        }
        let Contents::Of(before) = &rule_set.any else { return };
        let mut any_after = Cow::Borrowed(before);
        if !for_anyone.is_empty() {
            for_anyone.apply(any_after.to_mut());
        }
        for (class, mut indices) in std::mem::take(&mut classes) {
            work.touched.entry(id).or_default().0.insert(class);
            let key = AllowKey { rule_set: id, class };
            let Some(signature) = self.classes.signature(class) else { continue };
            let matching = rule_set.matching(signature);
            indices.extend(&part.open);
            indices.sort_unstable();
            indices.dedup();
            let rules = removed(&indices);
            let Some(entry) = self.tables.allow(&key) else {
                // It was as for anyone. Without a rule for anyone, its own come to light.
                if !for_anyone.is_empty() {
                    work.singles.push((key, self.contents(any_after.clone().into_owned(), &matching, signature)));
                }
                continue;
            };
            if entry.port_set == PortSetId::ALL {
                if rules.iter().any(|rule| rule.id == entry.rule) {
                    work.singles.push((key, self.contents(any_after.clone().into_owned(), &matching, signature)));
                }
                continue;
            }
            let named = named_ports(&rules, Some(signature));
            let work_out = || {
                let rest = remaining(&matching);
                Rc::new(self.removed(entry.port_set, &rules, &rest, &any_after, Some(signature)))
            };
            let diff = if matching.len() > FEW || rest_has_names(&remaining(&matching)) {
                work_out()
            } else {
                let base = entry.port_set;
                let circumstances =
                    Circumstances { rule_set: id, base, changing: indices.clone(), staying: matching.clone(), named };
                known.entry(circumstances).or_insert_with(work_out).clone()
            };
            if !diff.is_empty() {
                work.groups.entry((entry.port_set, diff)).or_default().push(Holder::Class(key));
            }
        }
        work.touched.entry(id).or_default().1 = for_anyone;
    }

    /// The classes that answer to atoms, and the rules that ask for these.
    pub(super) fn classes_asked(&self, deciding: &[(AtomId, usize)]) -> BTreeMap<ClassId, Vec<usize>> {
        let mut classes: BTreeMap<ClassId, Vec<usize>> = BTreeMap::new();
        for (atom, index) in deciding {
            for class in self.classes.answering(*atom) {
                classes.entry(class).or_default().push(*index);
            }
        }
        classes
    }

    /// The classes that a rule set may allow more to than to anyone.
    pub(super) fn classes_decided(&self, rule_set: &RuleSet) -> BTreeSet<ClassId> {
        rule_set.deciding_atoms().flat_map(|atom| self.classes.answering(atom)).collect()
    }

    /// What rules add to a port set.
    fn added(&self, base: PortSetId, rules: &[&CompiledRule], signature: Option<&Signature>) -> Diff {
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

    /// What becomes of a port set without some rules, where `rest` stay, and what is allowed to anyone.
    fn removed(
        &self,
        base: PortSetId,
        removed: &[&CompiledRule],
        rest: &[&CompiledRule],
        anyone: &Ports,
        signature: Option<&Signature>,
    ) -> Diff {
        let Some(base) = self.port_sets.ports(base) else { return Diff::default() };
        let mut going: BTreeMap<PortPrefix, RuleId> = BTreeMap::new();
        for rule in removed {
            let own = rule.ports_at(signature).filter(|prefix| base.get(prefix) == Some(&rule.id));
            going.extend(own.map(|prefix| (prefix, rule.id)));
        }
        let first = |one: Option<RuleId>, rule: &CompiledRule| match one {
            Some(known) if !self.rule_names.precedes(rule.id, known) => Some(known),
            _ => Some(rule.id),
        };
        let for_anyone = |prefix: &PortPrefix| anyone.get(prefix).copied();
        let mut gathered = Ports::new();
        if going.len() > FEW {
            for rule in rest {
                for prefix in rule.ports_at(signature) {
                    let known = gathered.get(&prefix).copied().or_else(|| for_anyone(&prefix));
                    gathered.extend(first(known, rule).map(|id| (prefix, id)));
                }
            }
        }
        let mut diff = Diff::default();
        for (prefix, rule) in &going {
            let now = if going.len() > FEW {
                gathered.get(prefix).copied().or_else(|| for_anyone(prefix))
            } else {
                let having = rest.iter().filter(|rule| rule.has_port_at(signature, *prefix));
                having.fold(for_anyone(prefix), |one, rule| first(one, rule))
            };
            match now {
                None => diff.delete.push(*prefix),
                Some(now) if now != *rule => diff.put.push((*prefix, now)),
                Some(_) => {}
            }
        }
        diff
    }

    /// What rules allow to addresses with this signature, beside what is allowed to anyone.
    pub(super) fn contents(&self, mut ports: Ports, rules: &[RuleAt], signature: &Signature) -> Contents {
        let rules = || rules.iter().filter_map(|at| self.parts.rule(*at));
        let all = rules().filter(|rule| rule.has_all_ports()).map(|rule| rule.id);
        if let Some(rule) = all.reduce(|one, other| if self.rule_names.precedes(other, one) { other } else { one }) {
            return Contents::All(rule);
        }
        for rule in rules() {
            for prefix in rule.ports_at(Some(signature)) {
                let owner = ports.entry(prefix).or_insert(rule.id);
                if *owner != rule.id && self.rule_names.precedes(rule.id, *owner) {
                    *owner = rule.id;
                }
            }
        }
        Contents::Of(ports)
    }
}

/// The named ports that rules with such find at an address.
fn named_ports(rules: &[&CompiledRule], signature: Option<&Signature>) -> Vec<(AtomId, u16)> {
    if !rest_has_names(rules) {
        return Vec::new();
    }
    signature.into_iter().flat_map(|signature| signature.ports.iter().copied()).collect()
}

fn rest_has_names(rules: &[&CompiledRule]) -> bool {
    rules.iter().any(|rule| rule.has_names())
}
