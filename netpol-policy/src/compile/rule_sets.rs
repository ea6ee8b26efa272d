//! Rule sets: what replicas share.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use netpol_common::{Direction, DirectionPolicy, PortSetId, RuleId, RuleSetId};

use super::allow::{Contents, PortPrefix};
use super::atoms::{Atom, AtomId};
use super::ids::Counter;
use super::rules::{RETIRED, ResolvedPorts, RuleSetKey, Source};
use crate::model::{PolicyKey, Protocol};

/// The rule sets in use.
#[derive(Clone, Debug)]
pub(super) struct RuleSets {
    ids: HashMap<Arc<RuleSetKey>, RuleSetId>,
    entries: BTreeMap<RuleSetId, RuleSet>,
    by_atom: HashMap<AtomId, BTreeSet<RuleSetId>>,
    /// Where the rules are known without reading the policies.
    by_source: HashMap<Source, RuleSetId>,
    /// Those that ask who is behind a Service.
    asking_services: BTreeSet<RuleSetId>,
    /// Those of them that allow some ports to anyone, by the ports.
    by_port_for_anyone: BTreeMap<PortPrefix, BTreeSet<RuleSetId>>,
    counter: Counter,
    /// Policies of rule sets that are gone, oldest first.
    retired: VecDeque<(RuleSetId, Vec<PolicyKey>)>,
}

/// A rule set whose peers are atoms.
#[derive(Clone, Debug)]
pub(super) struct RuleSet {
    key: Arc<RuleSetKey>,
    pub(super) rules: Vec<CompiledRule>,
    /// What it allows to anyone.
    pub(super) any: Contents,
    pub(super) policy: DirectionPolicy,
    users: usize,
}

/// A rule.
#[derive(Clone, Debug)]
pub(super) struct CompiledRule {
    pub(super) id: RuleId,
    /// Any of these; `None`: anyone.
    pub(super) peers: Option<Vec<AtomId>>,
    pub(super) ports: CompiledPorts,
}

/// The ports of a rule.
#[derive(Clone, Debug)]
pub(super) enum CompiledPorts {
    /// Every protocol and port.
    All,
    /// These.
    Of {
        /// Protocol, first and last port; `None`: all of the protocol's.
        ranges: Vec<(Protocol, Option<(u16, u16)>)>,
        /// Names that the peer resolves.
        named: Vec<(AtomId, Protocol)>,
    },
}

impl RuleSet {
    /// Whether it matters to it who is behind a Service: not for ingress, and not where everything is allowed to anyone.
    pub(super) fn asks_services(&self) -> bool {
        self.key.direction == Direction::Egress && matches!(self.any, Contents::Of(_))
    }

    /// The atoms it uses; one that several rules use, several times.
    pub(super) fn atoms(&self) -> impl Iterator<Item = AtomId> {
        self.rules.iter().flat_map(|rule| {
            let named = match &rule.ports {
                CompiledPorts::All => &[][..],
                CompiledPorts::Of { named, .. } => named,
            };
            rule.peers.iter().flatten().copied().chain(named.iter().map(|(atom, _)| *atom))
        })
    }

    /// The atoms that an address must answer to, at least one of them, to be allowed more than anyone: a rule's peers, and names of
    /// ports where a rule has none.
    pub(super) fn deciding_atoms(&self) -> impl Iterator<Item = AtomId> {
        self.rules.iter().flat_map(|rule| match (&rule.peers, &rule.ports) {
            (Some(peers), _) => peers.clone(),
            (None, CompiledPorts::Of { named, .. }) => named.iter().map(|(atom, _)| *atom).collect(),
            (None, CompiledPorts::All) => Vec::new(),
        })
    }
}

impl RuleSets {
    pub(super) fn new(first: RuleSetId) -> Self {
        Self {
            ids: HashMap::new(),
            entries: BTreeMap::new(),
            by_atom: HashMap::new(),
            by_source: HashMap::new(),
            asking_services: BTreeSet::new(),
            by_port_for_anyone: BTreeMap::new(),
            counter: Counter::starting_at(first.0),
            retired: VecDeque::new(),
        }
    }

    /// How many ids were handed out.
    pub(super) fn ids_spent(&self) -> u32 {
        self.counter.spent()
    }

    /// Knows the policies of another engine's rule sets, as of its own that are gone.
    pub(super) fn inherit(&mut self, before: &Self) {
        let used = before.entries.iter().map(|(id, rule_set)| (*id, rule_set.key.policies.clone()));
        self.retired = before.retired.iter().cloned().chain(used).collect();
        let surplus = self.retired.len().saturating_sub(RETIRED);
        self.retired.drain(..surplus);
    }

    /// The rule set that follows from the same, with a user more.
    pub(super) fn acquire_by_source(&mut self, source: &Source) -> Option<DirectionPolicy> {
        let entry = self.entries.get_mut(self.by_source.get(source)?)?;
        entry.users += 1;
        Some(entry.policy)
    }

    /// Notes what a rule set follows from.
    pub(super) fn set_source(&mut self, source: Source, id: RuleSetId) {
        self.by_source.insert(source, id);
    }

    /// The policy is another one from now on.
    pub(super) fn forget_sources(&mut self, policy: &PolicyKey) {
        self.by_source.retain(|source, _| !source.names(policy));
    }

    /// The rule set that is already there, with a user more.
    pub(super) fn acquire(&mut self, key: &RuleSetKey) -> Option<DirectionPolicy> {
        let id = *self.ids.get(key)?;
        let entry = self.entries.get_mut(&id)?;
        entry.users += 1;
        Some(entry.policy)
    }

    /// Adds a rule set, with one user. `atom` interns the atoms, `any` the ports that it allows to anyone.
    pub(super) fn add(
        &mut self,
        key: RuleSetKey,
        mut atom: impl FnMut(Atom) -> AtomId,
        any: impl FnOnce(&Contents) -> PortSetId,
    ) -> (RuleSetId, DirectionPolicy) {
        let rules: Vec<_> = key
            .rules
            .iter()
            .map(|rule| CompiledRule {
                id: rule.id,
                peers: rule.peers.as_ref().map(|peers| peers.iter().cloned().map(&mut atom).collect()),
                ports: match &rule.ports {
                    ResolvedPorts::All => CompiledPorts::All,
                    ResolvedPorts::Of { ranges, named } => CompiledPorts::Of {
                        ranges: ranges.clone(),
                        named: named
                            .iter()
                            .map(|(name, protocol)| (atom(Atom::Named(name.clone(), *protocol)), *protocol))
                            .collect(),
                    },
                },
            })
            .collect();
        let id = RuleSetId(self.counter.next());
        let for_anyone = Contents::of(&rules, None);
        let policy = DirectionPolicy { rule_set: id, any: any(&for_anyone) };
        let key = Arc::new(key);
        let rule_set = RuleSet { key: key.clone(), rules, any: for_anyone, policy, users: 1 };
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
        (id, policy)
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
        self.ids.remove(&rule_set.key);
        self.asking_services.remove(&id);
        for prefix in rule_set.any.prefixes() {
            if let Some(alike) = self.by_port_for_anyone.get_mut(&prefix) {
                alike.remove(&id);
                if alike.is_empty() {
                    self.by_port_for_anyone.remove(&prefix);
                }
            }
        }
        self.by_source.retain(|_, known| *known != id);
        for atom in rule_set.deciding_atoms() {
            if let Some(users) = self.by_atom.get_mut(&atom) {
                users.remove(&id);
                if users.is_empty() {
                    self.by_atom.remove(&atom);
                }
            }
        }
        self.retired.push_back((id, rule_set.key.policies.clone()));
        if self.retired.len() > RETIRED {
            self.retired.pop_front();
        }
        Some(rule_set)
    }

    pub(super) fn get(&self, id: RuleSetId) -> Option<&RuleSet> {
        self.entries.get(&id)
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
            Some(entry) => Some(&entry.key.policies),
            None => self.retired.iter().rev().find(|(old, _)| *old == id).map(|(_, policies)| &policies[..]),
        }
    }
}
