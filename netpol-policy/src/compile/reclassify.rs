//! Moves addresses and prefixes from class to class.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use netpol_common::{AddressEntry, AllowEntry, AllowKey, ClassId, PortSetId, RuleSetId, address_flags};

use super::Engine;
use super::allow::Contents;
use super::classes::Signature;
use super::services::FrontendMove;
use super::transaction::Transaction;
use crate::tables::Change;

/// One address or prefix, before and after.
#[derive(Debug)]
pub(super) struct Move {
    pub(super) what: What,
    /// Its own entry before.
    pub(super) from: Option<AddressEntry>,
    /// Its own entry after.
    pub(super) to: Option<AddressEntry>,
    /// What was found for it before, by prefix if it had no entry.
    found: AddressEntry,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum What {
    Address(IpAddr),
    Prefix(IpNet),
}

impl Engine {
    /// Finds the classes of all that is touched, and writes what is allowed to those that are new.
    pub(super) fn classify(&mut self, transaction: &mut Transaction) -> Vec<Move> {
        let mut moves = Vec::new();
        let mut new = Vec::new();
        for net in std::mem::take(&mut transaction.prefixes) {
            let signature = Signature { atoms: self.blocks.signature(&net), ..Signature::default() };
            let to = AddressEntry { class: self.acquire(signature, &mut new), flags: 0, endpoint: 0 };
            let from = AddressEntry { class: self.blocks.set_class(&net, to.class), flags: 0, endpoint: 0 };
            moves.push(Move { what: What::Prefix(net), from: Some(from), to: Some(to), found: from });
        }
        for address in std::mem::take(&mut transaction.addresses) {
            let from = self.tables.exact_address(address);
            let found = from.or_else(|| self.tables.address(address)).unwrap_or_default();
            let flags = self.flags(address);
            let to = (flags != 0 || self.identities.has(address)).then(|| {
                let atoms = self.blocks.at(address).cloned().unwrap_or_default();
                let mut signature = Signature { atoms, ..Signature::default() };
                self.identities.sign(address, &mut signature);
                AddressEntry { class: self.acquire(signature, &mut new), flags, endpoint: 0 }
            });
            moves.push(Move { what: What::Address(address), from, to, found });
        }
        for class in new {
            self.allow_to_new_class(transaction, class);
        }
        moves
    }

    fn flags(&self, address: IpAddr) -> u16 {
        if self.world.is_own(address) {
            return address_flags::OWN_NODE;
        }
        let flag = |is: bool, flag: u16| if is { flag } else { 0 };
        flag(self.world.is_service(address), address_flags::SERVICE)
            | flag(self.world.is_node(address), address_flags::NODE)
    }

    fn acquire(&mut self, signature: Signature, new: &mut Vec<ClassId>) -> ClassId {
        let (id, is_new) = self.classes.acquire(signature);
        if is_new {
            new.push(id);
        }
        id
    }

    /// Writes the moves.
    pub(super) fn make(&mut self, transaction: &mut Transaction, moves: &[Move]) {
        for Move { what, from, to, .. } in moves {
            let change = match (*what, to) {
                (What::Prefix(net), Some(to)) => Change::PutPrefix(net, to.class),
                (What::Prefix(net), None) => Change::DeletePrefix(net),
                (What::Address(_), same) if same == from => continue,
                (What::Address(address), Some(to)) => Change::PutAddress(address, *to),
                (What::Address(address), None) => Change::DeleteAddress(address),
            };
            self.write(transaction, change);
        }
    }

    /// Lets go of the classes before.
    pub(super) fn release(&mut self, transaction: &mut Transaction, moves: &[Move]) {
        for class in moves.iter().filter_map(|step| step.from).map(|from| from.class) {
            if self.classes.release(class) {
                transaction.unused_classes.insert(class);
            }
        }
    }

    /// Takes away the entries of unused classes.
    pub(super) fn retire_classes(&mut self, transaction: &mut Transaction) {
        for class in std::mem::take(&mut transaction.unused_classes) {
            let Some(signature) = self.classes.retire(class) else { continue };
            let rule_sets: BTreeSet<_> = signature.all_atoms().flat_map(|atom| self.rule_sets.asking(atom)).collect();
            for rule_set in rule_sets {
                self.disallow(transaction, rule_set, class);
            }
        }
    }

    /// Says which rule sets allow less to some address than before.
    pub(super) fn rejudge(&mut self, transaction: &mut Transaction, moves: &[Move], frontends: &[FrontendMove]) {
        let mut narrowed = self.narrowed_frontends(frontends);
        for step in moves.iter().filter(|step| matches!(step.what, What::Address(_))) {
            let What::Address(address) = step.what else { continue };
            let now = self.tables.address(address).unwrap_or_default();
            let changed = step.found.flags ^ now.flags;
            if changed & address_flags::NODE != 0 {
                narrowed.extend(self.rule_sets.asking_services());
            }
            if step.found.flags & changed & address_flags::OWN_NODE != 0 {
                narrowed.extend(self.rule_sets.all());
            } else if step.found.class != now.class {
                for rule_set in self.asking_about(&[step.found.class, now.class]) {
                    let (before, after) = (self.allowed(rule_set, step.found.class), self.allowed(rule_set, now.class));
                    if before != after && before != PortSetId::NONE && after != PortSetId::ALL {
                        narrowed.insert(rule_set);
                    }
                }
            }
        }
        // Nobody was judged by a new one.
        let narrowed = narrowed.difference(&transaction.new_rule_sets).copied();
        let narrowed: Vec<_> = narrowed.filter(|rule_set| self.rule_sets.is_used(*rule_set)).collect();
        if !narrowed.is_empty() {
            self.write(transaction, Change::Rejudge(narrowed));
        }
    }

    /// The rule sets that may have an entry for one of the classes.
    pub(super) fn asking_about(&self, classes: &[ClassId]) -> BTreeSet<RuleSetId> {
        let signatures = classes.iter().filter_map(|class| self.classes.signature(*class));
        signatures.flat_map(Signature::all_atoms).flat_map(|atom| self.rule_sets.asking(atom)).collect()
    }

    pub(super) fn allowed(&self, rule_set: RuleSetId, class: ClassId) -> PortSetId {
        let entry = self.tables.allow(&AllowKey { rule_set, class });
        let any = || self.rule_sets.get(rule_set).map(|rule_set| rule_set.policy.any);
        entry.map(|entry| entry.port_set).or_else(any).unwrap_or(PortSetId::NONE)
    }

    fn allow_to_new_class(&mut self, transaction: &mut Transaction, class: ClassId) {
        for rule_set in self.asking_about(&[class]) {
            self.allow(transaction, rule_set, class);
        }
    }

    pub(super) fn allow_to_new_rule_sets(&mut self, transaction: &mut Transaction) {
        for id in transaction.new_rule_sets.clone() {
            let Some(rule_set) = self.rule_sets.get(id) else { continue };
            let classes: BTreeSet<_> =
                rule_set.deciding_atoms().flat_map(|atom| self.classes.answering(atom)).collect();
            for class in classes {
                self.allow(transaction, id, class);
            }
        }
    }

    /// Writes what a rule set allows to a class, if that is more than it allows to anyone and not yet written.
    fn allow(&mut self, transaction: &mut Transaction, rule_set: RuleSetId, class: ClassId) {
        let key = AllowKey { rule_set, class };
        if self.tables.allow(&key).is_some() {
            return;
        }
        let Some(rules) = self.rule_sets.get(rule_set) else { return };
        let contents = Contents::of(&rules.rules, self.classes.signature(class));
        if contents == rules.any || matches!(rules.any, Contents::All(_)) {
            return;
        }
        let (entry, ports) = self.port_sets.acquire(&contents);
        for change in ports {
            self.write(transaction, change);
        }
        self.write(transaction, Change::PutAllow(key, entry));
    }

    /// Takes away what is written for a rule set and a class.
    pub(super) fn disallow(&mut self, transaction: &mut Transaction, rule_set: RuleSetId, class: ClassId) {
        let key = AllowKey { rule_set, class };
        let Some(AllowEntry { port_set, .. }) = self.tables.allow(&key) else { return };
        self.write(transaction, Change::DeleteAllow(key));
        for change in self.port_sets.release(port_set) {
            self.write(transaction, change);
        }
    }
}
