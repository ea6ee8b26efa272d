//! From tables whose ids nobody remembers to tables with ids of their own, such that after every single write each endpoint
//! is judged by its old policy or by its new one. Pure.
//!
//! New ids are none of the old ones. Each address first moves to a transitional class for its (old class, new class)
//! pair, which has what old rule sets allow to the old class and what new rule sets allow to the new one; then endpoints
//! flip; then addresses move on to their new class, and the rest is deleted.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use netpol_common::{AddressEntry, AllowEntry, AllowKey, ClassId, PortEntry, PortKey, RuleSetId, address_flags};
use netpol_policy::model::{Frontend, Place};
use netpol_policy::tables::Change;

/// Everything the tables say, endpoints aside.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// `ADDRESSES_V4` and `ADDRESSES_V6`.
    pub addresses: BTreeMap<IpAddr, AddressEntry>,
    /// `PREFIXES_V4` and `PREFIXES_V6`.
    pub prefixes: BTreeMap<IpNet, ClassId>,
    /// `SERVICES_V4` and `SERVICES_V6`.
    pub frontends: BTreeMap<Frontend, ClassId>,
    /// `ALLOW`.
    pub allow: BTreeMap<AllowKey, AllowEntry>,
    /// `PORTS`, by key and prefix length.
    pub ports: BTreeMap<(PortKey, u32), PortEntry>,
}

/// The steps of a switch. Between `before` and `after` every endpoint flips to its new policy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Switch {
    /// Puts what is new beside what is old.
    pub before: Vec<Change>,
    /// Takes away what is old.
    pub after: Vec<Change>,
}

impl Snapshot {
    /// The classes in use.
    pub fn classes(&self) -> impl Iterator<Item = ClassId> {
        let found = self.addresses.values().map(|entry| entry.class).chain(self.prefixes.values().copied());
        let found = found.chain(self.frontends.values().copied());
        found.chain(self.allow.keys().map(|key| key.class))
    }

    /// The class of the longest prefix that covers `net`.
    fn class_of_net(&self, net: IpNet) -> ClassId {
        let widths = (0..=net.prefix_len()).rev();
        let covering = widths.filter_map(|width| IpNet::new(net.addr(), width).ok().map(|net| net.trunc()));
        covering.filter_map(|net| self.prefixes.get(&net)).copied().next().unwrap_or(ClassId::NOBODY)
    }

    /// The entry that is found for an address.
    fn entry_of(&self, address: IpAddr) -> AddressEntry {
        let from_prefixes = || AddressEntry { class: self.class_of_net(IpNet::from(address)), flags: 0 };
        self.addresses.get(&address).copied().unwrap_or_else(from_prefixes)
    }
}

/// Numbers the transitional classes.
#[derive(Debug)]
struct Pairs {
    next: u32,
    ids: BTreeMap<(ClassId, ClassId), ClassId>,
}

impl Pairs {
    /// A class that is nobody's.
    fn apart(&mut self) -> ClassId {
        self.next += 1;
        ClassId(self.next)
    }

    fn get(&mut self, old: ClassId, new: ClassId) -> ClassId {
        // A class nobody names allows nothing to anyone: the other one alone says all there is to say.
        if old == ClassId::NOBODY || new == ClassId::NOBODY {
            return old.max(new);
        }
        *self.ids.entry((old, new)).or_insert_with(|| {
            self.next += 1;
            ClassId(self.next)
        })
    }
}

/// Plans the switch. No id of `new` may be in use in `old`, nor the classes that follow its highest.
pub fn plan(old: &Snapshot, new: &Snapshot) -> Switch {
    let highest = new.classes().chain(old.classes().filter(|_| new.classes().next().is_none())).max();
    let mut pairs = Pairs { next: highest.unwrap_or_default().0, ids: BTreeMap::new() };
    let addresses: BTreeSet<IpAddr> = old.addresses.keys().chain(new.addresses.keys()).copied().collect();
    let prefixes: BTreeSet<IpNet> = old.prefixes.keys().chain(new.prefixes.keys()).copied().collect();
    let frontends: BTreeSet<Frontend> = old.frontends.keys().chain(new.frontends.keys()).copied().collect();
    let mut moves = Vec::new();
    // One that only either has: to the other's rule sets it has an unknown class, of which they allow nothing.
    for (&frontend, &will_be) in &new.frontends {
        let was = old.frontends.get(&frontend);
        moves.push(Change::PutFrontend(frontend, was.map_or(will_be, |was| pairs.get(*was, will_be))));
    }
    let shut = shut(old, new, &addresses, &frontends);
    let nobodys = pairs.apart();
    moves.extend(shut.iter().map(|frontend| Change::PutFrontend(*frontend, nobodys)));
    for &address in &addresses {
        let (was, will_be) = (old.entry_of(address), new.entry_of(address));
        // A flag that either has: at worst an old endpoint allows its node early, or a new one a little longer.
        let is_shut = shut.iter().any(|frontend| frontend.place == Place::Address(address));
        let flags = was.flags | will_be.flags | if is_shut { address_flags::SERVICE } else { 0 };
        moves.push(Change::PutAddress(address, AddressEntry { class: pairs.get(was.class, will_be.class), flags }));
    }
    for &net in &prefixes {
        moves.push(Change::PutPrefix(net, pairs.get(old.class_of_net(net), new.class_of_net(net))));
    }

    let mut switch = Switch::default();
    for (&(key, prefix_len), &entry) in &new.ports {
        switch.before.push(Change::PutPort { prefix_len, key, entry });
    }
    switch.before.extend(new.allow.iter().map(|(key, entry)| Change::PutAllow(*key, *entry)));
    let transitional: Vec<(AllowKey, AllowEntry)> = transitional_entries(old, new, &pairs.ids);
    switch.before.extend(transitional.iter().map(|(key, entry)| Change::PutAllow(*key, *entry)));
    switch.before.extend(moves);

    for address in addresses {
        switch.after.push(match new.addresses.get(&address) {
            Some(entry) => Change::PutAddress(address, *entry),
            None => Change::DeleteAddress(address),
        });
    }
    for net in prefixes {
        switch.after.push(match new.prefixes.get(&net) {
            Some(class) => Change::PutPrefix(net, *class),
            None => Change::DeletePrefix(net),
        });
    }
    for frontend in frontends {
        switch.after.push(match new.frontends.get(&frontend) {
            Some(class) => Change::PutFrontend(frontend, *class),
            None => Change::DeleteFrontend(frontend),
        });
    }
    switch.after.extend(shut.into_iter().map(Change::DeleteFrontend));
    switch.after.extend(transitional.iter().map(|(key, _)| Change::DeleteAllow(*key)));
    switch.after.extend(old.allow.keys().map(|key| Change::DeleteAllow(*key)));
    switch
        .after
        .extend(old.ports.keys().map(|(key, prefix_len)| Change::DeletePort { prefix_len: *prefix_len, key: *key }));
    switch
}

/// The ports of nodes at addresses that become a node's or cease to be one: old rule sets and new ones mean something else there, and
/// one flag says which, so that meanwhile nobody is let through.
fn shut(
    old: &Snapshot,
    new: &Snapshot,
    addresses: &BTreeSet<IpAddr>,
    frontends: &BTreeSet<Frontend>,
) -> BTreeSet<Frontend> {
    let differ =
        |address: &&IpAddr| (old.entry_of(**address).flags ^ new.entry_of(**address).flags) & address_flags::NODE != 0;
    let at = |address: &IpAddr| {
        let (place, any_node) = (Place::Address(*address), Place::any_node(*address));
        let nodes = frontends.iter().filter(move |frontend| frontend.place == any_node);
        nodes.map(move |frontend| Frontend { place, ..*frontend })
    };
    addresses.iter().filter(differ).flat_map(at).filter(|frontend| !frontends.contains(frontend)).collect()
}

/// What old rule sets allow to the old class of each pair, and new ones to the new.
fn transitional_entries(
    old: &Snapshot,
    new: &Snapshot,
    pairs: &BTreeMap<(ClassId, ClassId), ClassId>,
) -> Vec<(AllowKey, AllowEntry)> {
    let (old, new) = (by_class(old), by_class(new));
    let mut entries = Vec::new();
    for (&(was, will_be), &class) in pairs {
        for (rule_set, entry) in old.get(&was).into_iter().chain(new.get(&will_be)).flatten() {
            entries.push((AllowKey { rule_set: *rule_set, class }, *entry));
        }
    }
    entries
}

fn by_class(tables: &Snapshot) -> BTreeMap<ClassId, Vec<(RuleSetId, AllowEntry)>> {
    let mut by_class: BTreeMap<ClassId, Vec<(RuleSetId, AllowEntry)>> = BTreeMap::new();
    for (key, entry) in &tables.allow {
        by_class.entry(key.class).or_default().push((key.rule_set, *entry));
    }
    by_class
}
