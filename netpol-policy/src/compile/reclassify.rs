//! Moves addresses and prefixes to another class (equivalence class of addresses that match the same peer selectors).
//! The module [`super`] explains the terms.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use ipnet::IpNet;
use netpol_common::{AddressEntry, AllowEntry, AllowKey, ClassId, PortSetId, RuleSetId, address_flags};

use super::Engine;
use super::allow::AllowedPorts;
use super::classes::Signature;
use super::parts::{CompiledRule, RuleAt};
use super::selectors::PeerSelectorId;
use super::transaction::{Changes, Touched};
use crate::tables::Change;

/// If more than this number of rules of a rule set match a class, the `ALLOW` entry of this pair is not stored in an
/// `AllowCache`: the entry's key in the cache would contain all of these rules.
const MAX_CACHED_RULES: usize = 64;

/// Cache of `ALLOW` entries. An entry is for a rule set and a class. Its key in the cache is the rule set, the rules of
/// the rule set that match the class, and the named ports of the class (if these rules have named ports).
/// `None` means that no entry is needed, because these rules allow no more than the rule set allows to every peer.
pub(super) type AllowCache = HashMap<(RuleSetId, Vec<RuleAt>, Vec<(PeerSelectorId, u16)>), Option<AllowEntry>>;

/// Addresses and prefixes that move to another class.
#[derive(Debug, Default)]
pub(super) struct Moves {
    /// Each prefix with its classes before and after the move. The longest prefix comes first: otherwise a new class of
    /// a block would briefly apply to narrower blocks inside it.
    pub(super) prefixes: Vec<(IpNet, ClassId, ClassId)>,
    pub(super) addresses: BTreeMap<IpAddr, AddressMove>,
    /// The classes that did not exist before.
    new: Vec<ClassId>,
}

/// The entries of an address before and after the move.
#[derive(Debug)]
pub(super) struct AddressMove {
    pub(super) from: Option<AddressEntry>,
    pub(super) to: Option<AddressEntry>,
    /// The entry that a lookup found before the move: the address's own entry, or that of the longest prefix.
    pub(super) found_before: AddressEntry,
}

impl Moves {
    /// Returns the changes that write the moves.
    pub(super) fn changes(&self) -> impl Iterator<Item = Change> {
        let addresses = self.addresses.iter().filter(|(_, moved)| moved.from != moved.to);
        let addresses = addresses.map(|(address, moved)| match moved.to {
            Some(to) => Change::PutAddress(*address, to),
            None => Change::DeleteAddress(*address),
        });
        self.prefixes.iter().map(|(net, _, to)| Change::PutPrefix(*net, *to)).chain(addresses)
    }

    /// Returns the previous class of each address and prefix.
    pub(super) fn classes_before(&self) -> impl Iterator<Item = ClassId> {
        let addresses = self.addresses.values().filter_map(|moved| Some(moved.from?.class));
        self.prefixes.iter().map(|(_, from, _)| *from).chain(addresses)
    }
}

impl Engine {
    /// Finds the next class of each address and prefix in `touched` (those that may get another class). If
    /// [`Touched::may_replace_signatures`] is set, first replaces signatures of classes, see
    /// [`super::classes::Classes::replace_signatures`]: such a class keeps its ID and gets another signature, and its
    /// users (addresses and prefixes) do not move.
    pub(super) fn find_moves(&mut self, touched: &Touched) -> Moves {
        let prefix = |net: &IpNet| {
            let signature = Signature { selectors: self.blocks.signature(net), ..Signature::default() };
            (*net, self.blocks.class_of(net), signature)
        };
        let mut prefixes: Vec<_> = touched.prefixes.iter().map(prefix).collect();
        prefixes.sort_by_key(|(net, ..)| std::cmp::Reverse(net.prefix_len()));
        let address = |address: &IpAddr| (*address, self.tables.exact_address(*address), self.signature(*address));
        let addresses: Vec<_> = touched.addresses.iter().map(address).collect();
        let mut replaced = BTreeSet::new();
        if touched.may_replace_signatures {
            let moving_prefixes = prefixes.iter().map(|(_, from, to)| (*from, Some(to)));
            let moving_addresses = addresses.iter().filter_map(|(_, from, to)| {
                let from = (*from)?;
                let to = to.as_ref().filter(|(_, flags)| *flags == from.flags);
                Some((from.class, to.map(|(signature, _)| signature)))
            });
            replaced = self.classes.replace_signatures(moving_prefixes.chain(moving_addresses));
        }
        let mut moves = Moves::default();
        for (net, from, signature) in prefixes.into_iter().filter(|(_, from, _)| !replaced.contains(from)) {
            let to = self.acquire(signature, &mut moves.new);
            self.blocks.set_class(&net, to);
            moves.prefixes.push((net, from, to));
        }
        for (address, from, to) in addresses {
            if from.is_some_and(|from| replaced.contains(&from.class)) {
                continue;
            }
            let to = to.map(|(signature, flags)| AddressEntry {
                class: self.acquire(signature, &mut moves.new),
                flags,
                ..AddressEntry::default()
            });
            let found_before = from.or_else(|| self.tables.address(address)).unwrap_or_default();
            moves.addresses.insert(address, AddressMove { from, to, found_before });
        }
        moves
    }

    /// Returns the next signature and flags of an address, if it needs an entry of its own.
    fn signature(&self, address: IpAddr) -> Option<(Signature, u16)> {
        let flags = self.flags(address);
        (flags != 0 || self.identities.is_pod(address)).then(|| {
            let selectors = self.blocks.at(address).cloned().unwrap_or_default();
            let mut signature = Signature { selectors, ..Signature::default() };
            self.identities.add_signature(address, &mut signature);
            (signature, flags)
        })
    }

    fn acquire(&mut self, signature: Signature, new: &mut Vec<ClassId>) -> ClassId {
        let (class, is_new) = self.classes.acquire(signature);
        new.extend(is_new.then_some(class));
        class
    }

    fn flags(&self, address: IpAddr) -> u16 {
        if self.cluster_state.is_local_address(address) {
            return address_flags::LOCAL_NODE;
        }
        let flag_if = |is: bool, flag: u16| if is { flag } else { 0 };
        flag_if(self.cluster_state.has_frontend_at(address), address_flags::SERVICE)
            | flag_if(self.cluster_state.is_node(address), address_flags::NODE)
    }

    /// Removes the classes that have no users, and the `ALLOW` entries of these classes.
    pub(super) fn retire_classes(&mut self, changes: &mut Changes) {
        for (class, signature) in self.classes.retire() {
            for rule_set in self.rule_sets_with(signature.all_selectors()) {
                self.disallow(changes, rule_set, class);
            }
        }
    }

    /// Returns the rule sets that may now allow less to some address: flows of their endpoints are evaluated again.
    pub(super) fn narrowed_by_addresses(&self, moves: &Moves) -> BTreeSet<RuleSetId> {
        let (mut narrowed, mut pairs) = (BTreeSet::new(), BTreeSet::new());
        for (address, moved) in &moves.addresses {
            let now = self.tables.address(*address).unwrap_or_default();
            let changed = moved.found_before.flags ^ now.flags;
            // If an address becomes the address of a node, or no longer is one, its nodePort frontends change.
            if changed & address_flags::NODE != 0 {
                narrowed.extend(self.rule_sets.evaluating_services());
            }
            // If the address no longer belongs to the local node, every rule set may allow less to it now, because
            // traffic with the local node is always allowed.
            if moved.found_before.flags & changed & address_flags::LOCAL_NODE != 0 {
                narrowed.extend(self.rule_sets.all());
            } else if moved.found_before.class != now.class {
                pairs.insert((moved.found_before.class, now.class));
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

    /// Returns the port set that a rule set allows to a class.
    pub(super) fn allowed(&self, rule_set: RuleSetId, class: ClassId) -> PortSetId {
        let entry = self.tables.allow(&AllowKey { rule_set, class });
        let any = || self.rule_sets.get(rule_set).map(|rule_set| rule_set.policy.any);
        entry.map(|entry| entry.port_set).or_else(any).unwrap_or(PortSetId::NONE)
    }

    /// Writes what rule sets allow to new classes, and what new rule sets allow to all classes.
    pub(super) fn allow_new(&mut self, changes: &mut Changes, moves: &Moves, new_rule_sets: &BTreeSet<RuleSetId>) {
        let mut cache = AllowCache::new();
        for class in &moves.new {
            for rule_set in self.rule_sets_matching(&[*class]) {
                self.allow(changes, &mut cache, rule_set, *class);
            }
        }
        for id in new_rule_sets {
            let classes = self.rule_sets.get(*id).map(|rule_set| self.classes_with_entries(rule_set));
            for class in classes.into_iter().flatten() {
                self.allow(changes, &mut cache, *id, class);
            }
        }
    }

    /// Writes what a rule set allows to a class, unless this is already written, or the rule set allows the same to
    /// every peer. Returns false if the memory limit leaves no room for the entry.
    pub(super) fn allow(
        &mut self,
        changes: &mut Changes,
        cache: &mut AllowCache,
        rule_set: RuleSetId,
        class: ClassId,
    ) -> bool {
        let key = AllowKey { rule_set, class };
        if self.tables.allow(&key).is_some() {
            return true;
        }
        self.rule_sets.clear_refusal(rule_set, class);
        let Some(rules) = self.rule_sets.get(rule_set) else { return true };
        let (AllowedPorts::Of(any), Some(signature)) = (&rules.any, self.classes.signature(class)) else { return true };
        let matching = rules.matching(signature);
        let Some(account) = (!matching.is_empty()).then(|| rules.account.clone()) else { return true };
        // The entry of a class that matches only blocks is not counted: the cost of these blocks includes it.
        let entries = u64::from(!self.has_only_blocks(signature));
        let has_names = || matching.iter().any(|at| self.parts.rule(*at).is_some_and(CompiledRule::has_names));
        let cache_key = (matching.len() <= MAX_CACHED_RULES).then(|| {
            let named = if has_names() { signature.ports.iter().copied().collect() } else { Vec::new() };
            (rule_set, matching.clone(), named)
        });
        let found = cache_key.as_ref().and_then(|cache_key| cache.get(cache_key)).copied();
        // The port set of a cached entry may have been removed after the entry was cached.
        let exists = |entry: &AllowEntry| self.port_sets.exists(entry.port_set);
        let found = found.filter(|entry| entry.as_ref().is_none_or(exists));
        let entry = if let Some(found) = found {
            if found.is_some() && !self.has_room(&account, (0, entries)) {
                self.rule_sets.refuse(rule_set, class);
                return false;
            }
            if let Some(found) = found {
                self.port_sets.add_user(found.port_set);
            }
            found
        } else {
            let contents = self.contents(any.clone(), &matching, signature);
            let is_needless = matches!(&contents, AllowedPorts::Of(ports) if ports == any);
            if !is_needless && !self.has_room(&account, (self.port_sets.entries_to_add(&contents), entries)) {
                self.rule_sets.refuse(rule_set, class);
                return false;
            }
            let entry = (!is_needless).then(|| self.intern(changes, &contents, &account));
            cache.extend(cache_key.map(|cache_key| (cache_key, entry)));
            entry
        };
        if let Some(entry) = entry {
            self.charge(key);
            self.write(changes, Change::PutAllow(key, entry));
        }
        true
    }

    /// Returns whether all peer selectors of a signature are blocks, as in the signature of a prefix.
    pub(super) fn has_only_blocks(&self, signature: &Signature) -> bool {
        signature.ports.is_empty() && signature.all_selectors().all(|selector| self.selectors.is_block(selector))
    }

    /// Charges an entry to the account of its rule set. Each namespace has an account; all rule sets for shadow mode
    /// share one. The entry of a class that matches only blocks is not counted: the cost of these blocks includes it.
    fn charge(&mut self, AllowKey { rule_set, class }: AllowKey) {
        if self.classes.signature(class).is_some_and(|signature| !self.has_only_blocks(signature)) {
            self.rule_sets.charge(rule_set, class);
        }
    }

    /// Sets the entry of a rule set for a class. The caller has already counted the entry as a user of its port set.
    pub(super) fn set_entry(&mut self, changes: &mut Changes, key: AllowKey, entry: AllowEntry) {
        let before = self.tables.allow(&key);
        if before != Some(entry) {
            self.write(changes, Change::PutAllow(key, entry));
        }
        match before {
            Some(before) => self.release_ports(changes, before.port_set),
            None => self.charge(key),
        }
    }

    /// Deletes the entry of a rule set for a class.
    pub(super) fn disallow(&mut self, changes: &mut Changes, rule_set: RuleSetId, class: ClassId) {
        let key = AllowKey { rule_set, class };
        self.rule_sets.discharge(rule_set, class);
        let Some(AllowEntry { port_set, .. }) = self.tables.allow(&key) else { return };
        self.write(changes, Change::DeleteAllow(key));
        self.release_ports(changes, port_set);
    }
}
