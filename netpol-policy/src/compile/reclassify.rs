//! Moves addresses and prefixes to another class.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;

use ipnet::IpNet;
use netpol_common::{AddressEntry, AllowEntry, AllowKey, ClassId, PortSetId, RuleSetId, address_flags};

use super::Engine;
use super::allow::AllowEntries;
use super::classes::Signature;
use super::parts::{CompiledRule, RuleAt};
use super::selectors::PeerSelectorId;
use super::transaction::Touched;
use crate::tables::Change;

/// Number of matching rules above which contents are not cached for the next class.
const MAX_CACHED_RULES: usize = 64;

/// Cache of entries by rule set, its matching rules and the named ports of the peer; `None`: the same as for any peer.
pub(super) type AllowCache = HashMap<(RuleSetId, Vec<RuleAt>, Vec<(PeerSelectorId, u16)>), Option<AllowEntry>>;

/// An address or prefix with its entries before and after.
#[derive(Debug)]
pub(super) struct Move {
    pub(super) what: AddressOrPrefix,
    /// Its own entry before.
    pub(super) from: Option<AddressEntry>,
    /// Its own entry after.
    pub(super) to: Option<AddressEntry>,
    /// The entry that applied before: its own, or that of the longest prefix.
    pub(super) found: AddressEntry,
}

impl Move {
    /// Returns the class that the address or prefix no longer uses.
    pub(super) fn class_before(&self) -> Option<ClassId> {
        self.from.map(|from| from.class)
    }

    /// Returns the change that writes the move.
    pub(super) fn change(&self) -> Option<Change> {
        match (self.what, self.to) {
            (AddressOrPrefix::Prefix(net), Some(to)) => Some(Change::PutPrefix(net, to.class)),
            (AddressOrPrefix::Prefix(net), None) => Some(Change::DeletePrefix(net)),
            (AddressOrPrefix::Address(_), same) if same == self.from => None,
            (AddressOrPrefix::Address(address), Some(to)) => Some(Change::PutAddress(address, to)),
            (AddressOrPrefix::Address(address), None) => Some(Change::DeleteAddress(address)),
        }
    }
}

/// An address or prefix with its entry before and its signature after.
#[derive(Debug)]
struct PendingMove {
    what: AddressOrPrefix,
    from: Option<AddressEntry>,
    found: AddressEntry,
    to: Option<(Signature, u16)>,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum AddressOrPrefix {
    Address(IpAddr),
    Prefix(IpNet),
}

impl Engine {
    /// Finds the next class of all touched addresses and prefixes. Returns the moves, and the classes that are new.
    pub(super) fn moves(&mut self, touched: &Touched) -> (Vec<Move>, Vec<ClassId>) {
        let mut steps = Vec::new();
        // The longest prefix first. Otherwise a new class of a block would briefly apply to narrower blocks
        // inside it.
        let mut nets: Vec<_> = touched.prefixes.iter().copied().collect();
        nets.sort_by_key(|net| std::cmp::Reverse(net.prefix_len()));
        for net in nets {
            let signature = Signature { selectors: self.blocks.signature(&net), ..Signature::default() };
            let from = AddressEntry { class: self.blocks.class_of(&net), ..AddressEntry::default() };
            steps.push(PendingMove {
                what: AddressOrPrefix::Prefix(net),
                from: Some(from),
                found: from,
                to: Some((signature, from.flags)),
            });
        }
        for address in touched.addresses.iter().copied() {
            let from = self.tables.exact_address(address);
            let found = from.or_else(|| self.tables.address(address)).unwrap_or_default();
            let flags = self.flags(address);
            let to = (flags != 0 || self.identities.is_pod(address)).then(|| {
                let selectors = self.blocks.at(address).cloned().unwrap_or_default();
                let mut signature = Signature { selectors, ..Signature::default() };
                self.identities.add_signature(address, &mut signature);
                (signature, flags)
            });
            steps.push(PendingMove { what: AddressOrPrefix::Address(address), from, found, to });
        }
        let renamed = if touched.renaming { self.rename(&steps) } else { BTreeSet::new() };
        let (mut moves, mut new) = (Vec::new(), Vec::new());
        for PendingMove { what, from, found, to } in steps {
            if from.is_some_and(|from| renamed.contains(&from.class)) {
                continue;
            }
            let to = to.map(|(signature, flags)| {
                let (class, is_new) = self.classes.acquire(signature);
                new.extend(is_new.then_some(class));
                AddressEntry { class, flags, ..AddressEntry::default() }
            });
            if let (AddressOrPrefix::Prefix(net), Some(to)) = (what, to) {
                self.blocks.set_class(&net, to.class);
            }
            moves.push(Move { what, from, to, found });
        }
        (moves, new)
    }

    /// Renames classes with users that all get the same new signature. They keep their IDs. Returns these classes.
    fn rename(&mut self, steps: &[PendingMove]) -> BTreeSet<ClassId> {
        let mut classes: HashMap<ClassId, (usize, Option<&Signature>)> = HashMap::new();
        for step in steps {
            let Some(from) = step.from.filter(|from| from.class != ClassId::NONE) else { continue };
            let to = step.to.as_ref().filter(|(_, flags)| *flags == from.flags).map(|(signature, _)| signature);
            let (count, signature) = classes.entry(from.class).or_insert((0, to));
            *count += 1;
            if *signature != to {
                *signature = None;
            }
        }
        let mut ids: Vec<_> = classes.keys().copied().collect();
        ids.sort_unstable();
        ids.retain(|id| {
            let (count, signature) = classes[id];
            signature.is_some_and(|signature| self.classes.rename(*id, count, signature))
        });
        ids.into_iter().collect()
    }

    fn flags(&self, address: IpAddr) -> u16 {
        if self.cluster_state.is_local_address(address) {
            return address_flags::LOCAL_NODE;
        }
        let flag = |is: bool, flag: u16| if is { flag } else { 0 };
        flag(self.cluster_state.is_service(address), address_flags::SERVICE)
            | flag(self.cluster_state.is_node(address), address_flags::NODE)
    }

    /// Removes the classes without users, with their allow entries.
    pub(super) fn retire_classes(&mut self, changes: &mut Vec<Change>) {
        for (class, signature) in self.classes.retire() {
            for rule_set in self.rule_sets_with(signature.all_selectors()) {
                self.disallow(changes, rule_set, class);
            }
        }
    }

    /// Returns the rule sets that now allow less to some address.
    pub(super) fn narrowed(&self, moves: &[Move]) -> BTreeSet<RuleSetId> {
        let (mut narrowed, mut pairs) = (BTreeSet::new(), BTreeSet::new());
        for step in moves {
            let AddressOrPrefix::Address(address) = step.what else { continue };
            let now = self.tables.address(address).unwrap_or_default();
            let changed = step.found.flags ^ now.flags;
            if changed & address_flags::NODE != 0 {
                narrowed.extend(self.rule_sets.evaluating_services());
            }
            if step.found.flags & changed & address_flags::LOCAL_NODE != 0 {
                narrowed.extend(self.rule_sets.all());
            } else if step.found.class != now.class {
                pairs.insert((step.found.class, now.class));
            }
        }
        for (from, to) in pairs {
            narrowed.extend(self.rule_sets_matching(&[from, to]).into_iter().filter(|rule_set| {
                let (before, after) = (self.allowed(*rule_set, from), self.allowed(*rule_set, to));
                before != after && before != PortSetId::NONE && after != PortSetId::ALL
            }));
        }
        narrowed
    }

    /// Returns the rule sets that may have an entry for one of the classes.
    pub(super) fn rule_sets_matching(&self, classes: &[ClassId]) -> BTreeSet<RuleSetId> {
        let signatures = classes.iter().filter_map(|class| self.classes.signature(*class));
        self.rule_sets_with(signatures.flat_map(|signature| signature.all_selectors()))
    }

    fn rule_sets_with(&self, selectors: impl Iterator<Item = PeerSelectorId>) -> BTreeSet<RuleSetId> {
        selectors.flat_map(|selector| self.rule_sets.matching_selector(selector)).collect()
    }

    pub(super) fn allowed(&self, rule_set: RuleSetId, class: ClassId) -> PortSetId {
        let entry = self.tables.allow(&AllowKey { rule_set, class });
        let any = || self.rule_sets.get(rule_set).map(|rule_set| rule_set.policy.any);
        entry.map(|entry| entry.port_set).or_else(any).unwrap_or(PortSetId::NONE)
    }

    /// Writes what rule sets allow to new classes, and what new rule sets allow to any class.
    pub(super) fn allow_new(
        &mut self,
        changes: &mut Vec<Change>,
        classes: Vec<ClassId>,
        rule_sets: &BTreeSet<RuleSetId>,
    ) {
        let mut cache = AllowCache::new();
        for class in classes {
            for rule_set in self.rule_sets_matching(&[class]) {
                self.allow(changes, &mut cache, rule_set, class);
            }
        }
        for id in rule_sets {
            let classes = self.rule_sets.get(*id).map(|rule_set| self.classes_with_entries(rule_set));
            for class in classes.into_iter().flatten() {
                self.allow(changes, &mut cache, *id, class);
            }
        }
    }

    /// Writes what a rule set allows to a class, if that is more than any peer gets and not yet written. Returns false
    /// if there is no room for it.
    pub(super) fn allow(
        &mut self,
        changes: &mut Vec<Change>,
        cache: &mut AllowCache,
        rule_set: RuleSetId,
        class: ClassId,
    ) -> bool {
        let key = AllowKey { rule_set, class };
        if self.tables.allow(&key).is_some() {
            return true;
        }
        self.rule_sets.admit(rule_set, class);
        let Some(rules) = self.rule_sets.get(rule_set) else { return true };
        let (AllowEntries::Of(any), Some(signature)) = (&rules.any, self.classes.signature(class)) else { return true };
        let matching = rules.matching(signature);
        let Some(namespace) = rules.namespace().filter(|_| !matching.is_empty()).cloned() else { return true };
        // The cost of a block includes the entries for its prefixes.
        let entries = u64::from(!self.is_prefix(signature));
        let has_names = || matching.iter().any(|at| self.parts.rule(*at).is_some_and(CompiledRule::has_names));
        let cache_key = (matching.len() <= MAX_CACHED_RULES).then(|| {
            let named = if has_names() { signature.ports.iter().copied().collect() } else { Vec::new() };
            (rule_set, matching.clone(), named)
        });
        let found = cache_key.as_ref().and_then(|cache_key| cache.get(cache_key)).copied();
        let exists = |entry: &AllowEntry| self.port_sets.exists(entry.port_set);
        let found = found.filter(|entry| entry.as_ref().is_none_or(exists));
        let entry = if let Some(found) = found {
            if found.is_some() && !self.has_room(&namespace, (0, entries)) {
                self.rule_sets.refuse(rule_set, class);
                return false;
            }
            if let Some(found) = found {
                self.port_sets.add_user(found.port_set);
            }
            found
        } else {
            let contents = self.contents(any.clone(), &matching, signature);
            let is_needless = matches!(&contents, AllowEntries::Of(ports) if ports == any);
            if !is_needless && !self.has_room(&namespace, (self.port_sets.missing(&contents), entries)) {
                self.rule_sets.refuse(rule_set, class);
                return false;
            }
            let entry = (!is_needless).then(|| self.intern(changes, &contents, &namespace));
            cache.extend(cache_key.map(|cache_key| (cache_key, entry)));
            entry
        };
        if let Some(entry) = entry {
            self.charge(key);
            self.write(changes, Change::PutAllow(key, entry));
        }
        true
    }

    /// Returns whether a signature consists of blocks only.
    pub(super) fn is_prefix(&self, signature: &Signature) -> bool {
        signature.ports.is_empty() && signature.all_selectors().all(|selector| self.selectors.is_block(selector))
    }

    /// Charges an entry, unless the cost of a block includes it.
    fn charge(&mut self, AllowKey { rule_set, class }: AllowKey) {
        if self.classes.signature(class).is_some_and(|signature| !self.is_prefix(signature)) {
            self.rule_sets.charge(rule_set, class);
        }
    }

    /// Sets the entry of a rule set for a class. The caller has already counted the entry as a user of its port set.
    pub(super) fn set_entry(&mut self, changes: &mut Vec<Change>, key: AllowKey, entry: AllowEntry) {
        let before = self.tables.allow(&key);
        if before != Some(entry) {
            self.write(changes, Change::PutAllow(key, entry));
        }
        if before.is_none() {
            self.charge(key);
        }
        if let Some(before) = before {
            let ports = self.port_sets.release(before.port_set);
            self.write_all(changes, ports);
        }
    }

    /// Deletes the entry of a rule set for a class.
    pub(super) fn disallow(&mut self, changes: &mut Vec<Change>, rule_set: RuleSetId, class: ClassId) {
        let key = AllowKey { rule_set, class };
        self.rule_sets.discharge(rule_set, class);
        let Some(AllowEntry { port_set, .. }) = self.tables.allow(&key) else { return };
        self.write(changes, Change::DeleteAllow(key));
        let ports = self.port_sets.release(port_set);
        self.write_all(changes, ports);
    }
}
