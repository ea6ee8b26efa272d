//! Rule sets: what replicas share. A rule set keeps its number while policies come to it and leave it.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use netpol_common::{ClassId, Direction, DirectionPolicy, PortSetId, RuleSetId};

use super::allow::{Contents, PortPrefix};
use super::atoms::AtomId;
use super::charges::Charges;
use super::classes::Signature;
use super::ids::Counter;
use super::parts::{PartId, Parts, RuleAt};
use super::rules::RETIRED;
use crate::model::{NamespaceName, PolicyKey};

/// How many names of policies are kept for rule sets that are gone.
const RETIRED_POLICIES: usize = 65_536;

/// What makes two rule sets the same: direction, and parts in the order of their policies.
type Key = (Direction, Arc<[PartId]>);

/// The rule sets in use.
#[derive(Clone, Debug)]
pub(super) struct RuleSets {
    ids: HashMap<Key, RuleSetId>,
    entries: BTreeMap<RuleSetId, RuleSet>,
    by_atom: HashMap<AtomId, BTreeSet<RuleSetId>>,
    /// Those that ask who is behind a Service.
    asking_services: BTreeSet<RuleSetId>,
    /// Those of them that allow some ports to anyone, by the ports.
    by_port_for_anyone: BTreeMap<PortPrefix, BTreeSet<RuleSetId>>,
    /// Entries of `ALLOW` for classes of pods.
    charges: Charges,
    /// Entries for which there is no room.
    refused: BTreeSet<(RuleSetId, ClassId)>,
    counter: Counter,
    /// Policies of rule sets that are gone, oldest first.
    retired: VecDeque<(RuleSetId, Vec<PolicyKey>)>,
    retired_policies: usize,
}

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct RuleSet {
    key: Key,
    policies: Vec<PolicyKey>,
    /// The rules that ask for each atom.
    deciding: HashMap<AtomId, Vec<RuleAt>>,
    /// What it allows to anyone.
    pub(super) any: Contents,
    pub(super) policy: DirectionPolicy,
    users: usize,
    /// A pod with it is gone, and its interface may still be enforced by it: what it allows must not become more.
    frozen: bool,
    /// How many of its parts leave blocks or ports out for lack of memory.
    incomplete_parts: usize,
    /// The classes of pods that an entry is charged for.
    charged: BTreeSet<ClassId>,
    /// There was no room for the ports that it allows to anyone.
    any_refused: bool,
}

impl RuleSet {
    /// Whether it matters to it who is behind a Service: not for ingress, and not where everything is allowed to anyone.
    pub(super) fn asks_services(&self) -> bool {
        self.key.0 == Direction::Egress && matches!(self.any, Contents::Of(_))
    }

    pub(super) fn parts(&self) -> &Arc<[PartId]> {
        &self.key.1
    }

    /// The namespace of its policies.
    pub(super) fn namespace(&self) -> Option<&NamespaceName> {
        self.policies.first().map(|policy| &policy.namespace)
    }

    /// Whether it may change in place where these many pods change alike.
    pub(super) fn may_change(&self, pods: usize) -> bool {
        self.users == pods && !self.frozen
    }

    /// The atoms that an address must answer to, at least one of them, to be allowed more than anyone.
    pub(super) fn deciding_atoms(&self) -> impl Iterator<Item = AtomId> {
        self.deciding.keys().copied()
    }

    /// The rules that ask for what an address answers to; sorted, each once.
    pub(super) fn matching(&self, signature: &Signature) -> Vec<RuleAt> {
        let mut matching: Vec<RuleAt> =
            signature.all_atoms().filter_map(|atom| self.deciding.get(&atom)).flatten().copied().collect();
        matching.sort_unstable();
        matching.dedup();
        matching
    }

    /// The rules that are about anyone.
    pub(super) fn open<'a>(&'a self, parts: &'a Parts) -> impl Iterator<Item = RuleAt> + 'a {
        let parts = self.key.1.iter().filter_map(|id| Some((*id, parts.get(*id)?)));
        parts.flat_map(|(id, part)| part.open.iter().map(move |index| RuleAt { part: id, index: *index }))
    }
}

impl RuleSets {
    pub(super) fn new(first: RuleSetId) -> Self {
        Self {
            ids: HashMap::new(),
            entries: BTreeMap::new(),
            by_atom: HashMap::new(),
            asking_services: BTreeSet::new(),
            by_port_for_anyone: BTreeMap::new(),
            charges: Charges::default(),
            refused: BTreeSet::new(),
            counter: Counter::starting_at(first.0),
            retired: VecDeque::new(),
            retired_policies: 0,
        }
    }

    /// How many ids were handed out.
    pub(super) fn ids_spent(&self) -> u32 {
        self.counter.spent()
    }

    /// Knows the policies of another engine's rule sets, as of its own that are gone.
    pub(super) fn inherit(&mut self, before: &Self) {
        for (id, policies) in &before.retired {
            self.keep_name(*id, policies.clone());
        }
        for (id, rule_set) in &before.entries {
            self.keep_name(*id, rule_set.policies.clone());
        }
    }

    fn keep_name(&mut self, id: RuleSetId, policies: Vec<PolicyKey>) {
        self.retired_policies += policies.len();
        self.retired.push_back((id, policies));
        while self.retired.len() > RETIRED || (self.retired_policies > RETIRED_POLICIES && self.retired.len() > 1) {
            self.retired_policies -= self.retired.pop_front().map_or(0, |(_, policies)| policies.len());
        }
    }

    /// The rule set that has these parts.
    pub(super) fn find(&self, direction: Direction, parts: &Arc<[PartId]>) -> Option<RuleSetId> {
        self.ids.get(&(direction, parts.clone())).copied()
    }

    /// A user more; what its endpoint has.
    pub(super) fn acquire(&mut self, id: RuleSetId) -> Option<DirectionPolicy> {
        let entry = self.entries.get_mut(&id)?;
        entry.users += 1;
        Some(entry.policy)
    }

    /// Adds a rule set, with one user. `any` is what it allows to anyone, `any_set` the same as a port set, if there is room for it.
    pub(super) fn add(
        &mut self,
        direction: Direction,
        ids: &Arc<[PartId]>,
        parts: &mut Parts,
        any: Contents,
        any_set: Option<PortSetId>,
    ) -> DirectionPolicy {
        let id = RuleSetId(self.counter.next());
        let policy = DirectionPolicy { rule_set: id, any: any_set.unwrap_or(PortSetId::NONE) };
        let key = (direction, Arc::clone(ids));
        let mut rule_set = RuleSet {
            key: key.clone(),
            policies: Vec::new(),
            deciding: HashMap::new(),
            any,
            policy,
            users: 1,
            frozen: false,
            incomplete_parts: 0,
            charged: BTreeSet::new(),
            any_refused: any_set.is_none(),
        };
        for part in ids.iter() {
            parts.acquire(*part);
            if let Some(body) = parts.get(*part) {
                rule_set.policies.push(body.policy.clone());
                rule_set.incomplete_parts += usize::from(body.incomplete);
                for (atom, index) in &body.deciding {
                    rule_set.deciding.entry(*atom).or_default().push(RuleAt { part: *part, index: *index });
                }
            }
        }
        for atom in rule_set.deciding_atoms() {
            self.by_atom.entry(atom).or_default().insert(id);
        }
        if rule_set.asks_services() {
            self.asking_services.insert(id);
            for prefix in rule_set.any.prefixes() {
                self.by_port_for_anyone.entry(prefix).or_default().insert(id);
            }
        }
        self.ids.insert(key, id);
        self.entries.insert(id, rule_set);
        policy
    }

    /// Gives a rule set other parts; [`RuleSets::change`] gives it their rules.
    pub(super) fn set_parts(&mut self, id: RuleSetId, parts: Arc<[PartId]>) {
        let Some(rule_set) = self.entries.get_mut(&id) else { return };
        if self.ids.get(&rule_set.key) == Some(&id) {
            self.ids.remove(&rule_set.key);
        }
        rule_set.key.1 = parts;
        self.ids.insert(rule_set.key.clone(), id);
    }

    /// Adds a part's rules, or takes them away.
    pub(super) fn change(&mut self, id: RuleSetId, change: PartChange, parts: &mut Parts) {
        let Some(rule_set) = self.entries.get_mut(&id) else { return };
        let part = match change {
            PartChange::More(part) | PartChange::Less(part) => part,
        };
        let Some(body) = parts.get(part) else { return };
        match change {
            PartChange::More(_) => {
                let place = rule_set.policies.partition_point(|policy| *policy < body.policy);
                rule_set.policies.insert(place, body.policy.clone());
                rule_set.incomplete_parts += usize::from(body.incomplete);
                for (atom, index) in &body.deciding {
                    rule_set.deciding.entry(*atom).or_default().push(RuleAt { part, index: *index });
                    self.by_atom.entry(*atom).or_default().insert(id);
                }
                parts.acquire(part);
            }
            PartChange::Less(_) => {
                if let Ok(place) = rule_set.policies.binary_search(&body.policy) {
                    rule_set.policies.remove(place);
                }
                rule_set.incomplete_parts -= usize::from(body.incomplete);
                for (atom, _) in &body.deciding {
                    let Some(rules) = rule_set.deciding.get_mut(atom) else { continue };
                    rules.retain(|rule| rule.part != part);
                    if rules.is_empty() {
                        rule_set.deciding.remove(atom);
                        remove_user(&mut self.by_atom, *atom, id);
                    }
                }
            }
        }
    }

    /// Changes what a rule set allows to anyone.
    pub(super) fn set_any(&mut self, id: RuleSetId, change: &super::port_sets::Diff, any_set: PortSetId) {
        let Some(rule_set) = self.entries.get_mut(&id) else { return };
        rule_set.policy.any = any_set;
        let asks = rule_set.asks_services();
        let Contents::Of(ports) = &mut rule_set.any else { return };
        for (prefix, rule) in &change.put {
            if ports.insert(*prefix, *rule).is_none() && asks {
                self.by_port_for_anyone.entry(*prefix).or_default().insert(id);
            }
        }
        for prefix in &change.delete {
            ports.remove(prefix);
            if let Some(alike) = self.by_port_for_anyone.get_mut(prefix) {
                alike.remove(&id);
                if alike.is_empty() {
                    self.by_port_for_anyone.remove(prefix);
                }
            }
        }
    }

    /// A pod with it is gone.
    pub(super) fn freeze(&mut self, id: RuleSetId) {
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.frozen = true;
        }
    }

    /// A user less; whether that was the last. It stays until [`RuleSets::retire`].
    pub(super) fn release(&mut self, id: RuleSetId) -> bool {
        let Some(entry) = self.entries.get_mut(&id) else { return false };
        entry.users -= 1;
        entry.users == 0
    }

    /// Forgets a rule set, if it still has no user.
    pub(super) fn retire(&mut self, id: RuleSetId) -> Option<RuleSet> {
        if self.entries.get(&id)?.users > 0 {
            return None;
        }
        let rule_set = self.entries.remove(&id)?;
        if let Some(namespace) = rule_set.namespace() {
            self.charges.subtract(namespace, rule_set.charged.len() as u64);
        }
        let refused: Vec<_> = self.refused_by(id).collect();
        for entry in refused {
            self.refused.remove(&entry);
        }
        self.forget_key(&rule_set.key, id);
        self.asking_services.remove(&id);
        for prefix in rule_set.any.prefixes() {
            if let Some(alike) = self.by_port_for_anyone.get_mut(&prefix) {
                alike.remove(&id);
                if alike.is_empty() {
                    self.by_port_for_anyone.remove(&prefix);
                }
            }
        }
        for atom in rule_set.deciding_atoms() {
            remove_user(&mut self.by_atom, atom, id);
        }
        self.keep_name(id, rule_set.policies.clone());
        Some(rule_set)
    }

    pub(super) fn get(&self, id: RuleSetId) -> Option<&RuleSet> {
        self.entries.get(&id)
    }

    fn forget_key(&mut self, key: &Key, id: RuleSetId) {
        if self.ids.get(key) == Some(&id) {
            self.ids.remove(key);
        }
    }

    /// Entries of namespaces for classes of pods.
    pub(super) fn charges(&self) -> &Charges {
        &self.charges
    }

    /// Charges an entry for a class of pods.
    pub(super) fn charge(&mut self, id: RuleSetId, class: ClassId) {
        let Some(rule_set) = self.entries.get_mut(&id) else { return };
        if rule_set.charged.insert(class)
            && let Some(namespace) = rule_set.policies.first().map(|policy| &policy.namespace)
        {
            self.charges.add(namespace, 1);
        }
    }

    /// The entry for a class is gone, or not needed any more.
    pub(super) fn discharge(&mut self, id: RuleSetId, class: ClassId) {
        self.refused.remove(&(id, class));
        if let Some(rule_set) = self.entries.get_mut(&id)
            && rule_set.charged.remove(&class)
            && let Some(namespace) = rule_set.policies.first().map(|policy| &policy.namespace)
        {
            self.charges.subtract(namespace, 1);
        }
    }

    /// There is no room for an entry.
    pub(super) fn refuse(&mut self, id: RuleSetId, class: ClassId) {
        self.refused.insert((id, class));
    }

    /// There is room for it after all, or no need.
    pub(super) fn admit(&mut self, id: RuleSetId, class: ClassId) {
        self.refused.remove(&(id, class));
    }

    /// The entries for which there is no room.
    pub(super) fn refused(&self) -> impl Iterator<Item = (RuleSetId, ClassId)> {
        self.refused.iter().copied()
    }

    /// The rule set of each entry for which there is no room, what it allows to anyone among them.
    pub(super) fn refusals(&self) -> impl Iterator<Item = RuleSetId> {
        let for_anyone = self.entries.iter().filter(|(_, rule_set)| rule_set.any_refused).map(|(id, _)| *id);
        self.refused.iter().map(|(id, _)| *id).chain(for_anyone)
    }

    fn refused_by(&self, id: RuleSetId) -> impl Iterator<Item = (RuleSetId, ClassId)> {
        self.refused.range((id, ClassId(0))..=(id, ClassId(u32::MAX))).copied()
    }

    /// Whether there was no room for some of what it allows.
    pub(super) fn has_refused(&self, id: RuleSetId) -> bool {
        self.entries.get(&id).is_some_and(|rule_set| rule_set.any_refused) || self.refused_by(id).next().is_some()
    }

    /// Those without room for the ports that they allow to anyone.
    pub(super) fn without_any(&self) -> impl Iterator<Item = (RuleSetId, &RuleSet)> {
        let refused = self.entries.iter().filter(|(_, rule_set)| rule_set.any_refused && rule_set.users > 0);
        refused.map(|(id, rule_set)| (*id, rule_set))
    }

    /// Pods with the same rules get another rule set from now on.
    pub(super) fn replace(&mut self, id: RuleSetId) {
        if let Some(key) = self.entries.get(&id).map(|rule_set| rule_set.key.clone()) {
            self.forget_key(&key, id);
        }
    }

    /// Whether parts of its policies are left out for lack of memory.
    pub(super) fn is_incomplete(&self, id: RuleSetId) -> bool {
        self.entries.get(&id).is_some_and(|rule_set| rule_set.incomplete_parts > 0) || self.has_refused(id)
    }

    /// All ids in use.
    pub(super) fn all(&self) -> impl Iterator<Item = RuleSetId> {
        self.entries.iter().filter(|(_, rule_set)| rule_set.users > 0).map(|(id, _)| *id)
    }

    /// Those that ask who is behind a Service.
    pub(super) fn asking_services(&self) -> impl Iterator<Item = RuleSetId> {
        self.asking_services.iter().copied()
    }

    /// Those of them that allow a port to anyone.
    pub(super) fn allowing_anyone(&self, protocol: u8, port: u16) -> impl Iterator<Item = RuleSetId> {
        let prefixes = PortPrefix::covering(protocol, port);
        prefixes.filter_map(|prefix| self.by_port_for_anyone.get(&prefix)).flatten().copied()
    }

    /// Whether some endpoint has it.
    pub(super) fn is_used(&self, id: RuleSetId) -> bool {
        self.entries.get(&id).is_some_and(|rule_set| rule_set.users > 0)
    }

    /// The rule sets that allow more to who answers to an atom, maybe.
    pub(super) fn asking(&self, atom: AtomId) -> impl Iterator<Item = RuleSetId> {
        self.by_atom.get(&atom).into_iter().flatten().copied()
    }

    /// The policies of a rule set, also of one that is gone since a while.
    pub(super) fn policies(&self, id: RuleSetId) -> Option<&[PolicyKey]> {
        match self.entries.get(&id) {
            Some(entry) => Some(&entry.policies),
            None => self.retired.iter().rev().find(|(old, _)| *old == id).map(|(_, policies)| &policies[..]),
        }
    }
}

/// How a rule set's rules differ.
#[derive(Clone, Copy, Debug)]
pub(super) enum PartChange {
    /// It has this one too.
    More(PartId),
    /// It has no longer this one.
    Less(PartId),
}

fn remove_user(by_atom: &mut HashMap<AtomId, BTreeSet<RuleSetId>>, atom: AtomId, id: RuleSetId) {
    if let Some(users) = by_atom.get_mut(&atom) {
        users.remove(&id);
        if users.is_empty() {
            by_atom.remove(&atom);
        }
    }
}
