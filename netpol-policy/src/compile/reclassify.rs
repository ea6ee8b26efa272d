//! Moves addresses and prefixes to another class.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;

use ipnet::IpNet;
use netpol_common::{AddressEntry, AllowEntry, AllowKey, ClassId, PortSetId, RuleSetId, address_flags};

use super::Engine;
use super::allow::AllowEntries;
use super::classes::Signature;
use super::parts::CompiledRule;
use super::services::FrontendMove;
use super::transaction::Transaction;
use crate::tables::Change;

/// Number of matching rules above which contents are not cached for the next class.
const MAX_CACHED_RULES: usize = 64;

/// An address or prefix with its entries before and after.
#[derive(Debug)]
pub(super) struct Move {
    pub(super) what: AddressOrPrefix,
    /// Its own entry before.
    pub(super) from: Option<AddressEntry>,
    /// Its own entry after.
    pub(super) to: Option<AddressEntry>,
    /// The entry that applied before: its own, or that of the longest prefix.
    found: AddressEntry,
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
    /// Finds the new class of everything that the transaction touches, and writes the allow entries of new classes.
    pub(super) fn classify(&mut self, transaction: &mut Transaction) -> Vec<Move> {
        let mut steps = Vec::new();
        // The longest prefix first. Otherwise a new class of a block would briefly apply to narrower blocks
        // inside it.
        let mut nets: Vec<_> = std::mem::take(&mut transaction.prefixes).into_iter().collect();
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
        for address in std::mem::take(&mut transaction.addresses) {
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
        let renamed = if transaction.renaming { self.rename(&steps) } else { BTreeSet::new() };
        let (mut moves, mut new) = (Vec::new(), Vec::new());
        for PendingMove { what, from, found, to } in steps {
            if from.is_some_and(|from| renamed.contains(&from.class)) {
                continue;
            }
            let to = to.map(|(signature, flags)| AddressEntry {
                class: self.acquire(signature, &mut new),
                flags,
                ..AddressEntry::default()
            });
            if let (AddressOrPrefix::Prefix(net), Some(to)) = (what, to) {
                self.blocks.set_class(&net, to.class);
            }
            moves.push(Move { what, from, to, found });
        }
        for class in new {
            self.allow_to_new_class(transaction, class);
        }
        moves
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

    fn acquire(&mut self, signature: Signature, new: &mut Vec<ClassId>) -> ClassId {
        let (id, is_new) = self.classes.acquire(signature);
        if is_new {
            new.push(id);
        }
        id
    }

    /// Writes the moves.
    pub(super) fn write_moves(&mut self, transaction: &mut Transaction, moves: &[Move]) {
        for Move { what, from, to, .. } in moves {
            let change = match (*what, to) {
                (AddressOrPrefix::Prefix(net), Some(to)) => Change::PutPrefix(net, to.class),
                (AddressOrPrefix::Prefix(net), None) => Change::DeletePrefix(net),
                (AddressOrPrefix::Address(_), same) if same == from => continue,
                (AddressOrPrefix::Address(address), Some(to)) => Change::PutAddress(address, *to),
                (AddressOrPrefix::Address(address), None) => Change::DeleteAddress(address),
            };
            self.write(transaction, change);
        }
    }

    /// Releases the classes before the moves.
    pub(super) fn release_classes(&mut self, transaction: &mut Transaction, moves: &[Move]) {
        for class in moves.iter().filter_map(|step| step.from).map(|from| from.class) {
            if self.classes.release(class) {
                transaction.unused_classes.insert(class);
            }
        }
    }

    /// Deletes the allow entries of unused classes.
    pub(super) fn retire_classes(&mut self, transaction: &mut Transaction) {
        for class in std::mem::take(&mut transaction.unused_classes) {
            let Some(signature) = self.classes.retire(class) else { continue };
            let rule_sets: BTreeSet<_> =
                signature.all_selectors().flat_map(|selector| self.rule_sets.matching_selector(selector)).collect();
            for rule_set in rule_sets {
                self.disallow(transaction, rule_set, class);
            }
        }
    }

    /// Requests re-evaluation of flows for the rule sets that now allow less to some address.
    pub(super) fn reevaluate(&mut self, transaction: &mut Transaction, moves: &[Move], frontends: &[FrontendMove]) {
        let mut narrowed = self.narrowed_frontends(frontends);
        for step in moves.iter().filter(|step| matches!(step.what, AddressOrPrefix::Address(_))) {
            let AddressOrPrefix::Address(address) = step.what else { continue };
            let now = self.tables.address(address).unwrap_or_default();
            let changed = step.found.flags ^ now.flags;
            if changed & address_flags::NODE != 0 {
                narrowed.extend(self.rule_sets.evaluating_services());
            }
            if step.found.flags & changed & address_flags::LOCAL_NODE != 0 {
                narrowed.extend(self.rule_sets.all());
            } else if step.found.class != now.class {
                for rule_set in self.rule_sets_matching(&[step.found.class, now.class]) {
                    let (before, after) = (self.allowed(rule_set, step.found.class), self.allowed(rule_set, now.class));
                    if before != after && before != PortSetId::NONE && after != PortSetId::ALL {
                        narrowed.insert(rule_set);
                    }
                }
            }
        }
        // New rule sets have no flows yet. Rule sets that change in place only grow in this step.
        let narrowed = narrowed.difference(&transaction.new_rule_sets).copied();
        let narrowed = narrowed.filter(|rule_set| !transaction.growing.contains(rule_set));
        let narrowed: Vec<_> = narrowed.filter(|rule_set| self.rule_sets.is_used(*rule_set)).collect();
        if !narrowed.is_empty() {
            self.write(transaction, Change::Reevaluate(narrowed));
        }
    }

    /// Returns the rule sets that may have an entry for one of the classes.
    pub(super) fn rule_sets_matching(&self, classes: &[ClassId]) -> BTreeSet<RuleSetId> {
        let signatures = classes.iter().filter_map(|class| self.classes.signature(*class));
        signatures
            .flat_map(|signature| signature.all_selectors())
            .flat_map(|selector| self.rule_sets.matching_selector(selector))
            .collect()
    }

    pub(super) fn allowed(&self, rule_set: RuleSetId, class: ClassId) -> PortSetId {
        let entry = self.tables.allow(&AllowKey { rule_set, class });
        let any = || self.rule_sets.get(rule_set).map(|rule_set| rule_set.policy.any);
        entry.map(|entry| entry.port_set).or_else(any).unwrap_or(PortSetId::NONE)
    }

    fn allow_to_new_class(&mut self, transaction: &mut Transaction, class: ClassId) {
        for rule_set in self.rule_sets_matching(&[class]) {
            self.allow(transaction, rule_set, class);
        }
    }

    pub(super) fn allow_to_new_rule_sets(&mut self, transaction: &mut Transaction) {
        for id in transaction.new_rule_sets.clone() {
            let Some(rule_set) = self.rule_sets.get(id) else { continue };
            let classes = self.classes_with_entries(rule_set);
            for class in classes {
                self.allow(transaction, id, class);
            }
        }
    }

    /// Writes what a rule set allows to a class, if that is more than any peer gets and not yet written. Returns false
    /// if there is no room for it.
    pub(super) fn allow(&mut self, transaction: &mut Transaction, rule_set: RuleSetId, class: ClassId) -> bool {
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
        let found = cache_key.as_ref().and_then(|cache_key| transaction.known_contents.get(cache_key)).copied();
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
            let entry = (!is_needless).then(|| self.intern(transaction, &contents, &namespace));
            transaction.known_contents.extend(cache_key.map(|cache_key| (cache_key, entry)));
            entry
        };
        if let Some(entry) = entry {
            self.charge(key);
            self.write(transaction, Change::PutAllow(key, entry));
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
    pub(super) fn set_entry(&mut self, transaction: &mut Transaction, key: AllowKey, entry: AllowEntry) {
        let before = self.tables.allow(&key);
        if before != Some(entry) {
            self.write(transaction, Change::PutAllow(key, entry));
        }
        if before.is_none() {
            self.charge(key);
        }
        if let Some(before) = before {
            for change in self.port_sets.release(before.port_set) {
                self.write(transaction, change);
            }
        }
    }

    /// Deletes the entry of a rule set for a class.
    pub(super) fn disallow(&mut self, transaction: &mut Transaction, rule_set: RuleSetId, class: ClassId) {
        let key = AllowKey { rule_set, class };
        self.rule_sets.discharge(rule_set, class);
        let Some(AllowEntry { port_set, .. }) = self.tables.allow(&key) else { return };
        self.write(transaction, Change::DeleteAllow(key));
        for change in self.port_sets.release(port_set) {
            self.write(transaction, change);
        }
    }
}
