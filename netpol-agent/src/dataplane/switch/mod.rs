//! From tables whose ids nobody remembers to tables with ids of their own, such that after every single write each endpoint
//! is judged by its old policy or by its new one. Pure.
//!
//! New ids are none of the old ones. Each address first moves to a transitional class for its (old class, new class)
//! pair, which has what old rule sets allow to the old class and what new rule sets allow to the new one; then endpoints
//! flip; then addresses move on to their new class, and the rest is deleted. Ports of Services: see `frontends`.

mod frontends;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use netpol_common::{
    AddressEntry, AllowEntry, AllowKey, ClassId, DirectionPolicy, PortEntry, PortKey, PortSetId, RuleSetId,
    address_flags,
};
use netpol_policy::model::Frontend;
use netpol_policy::tables::Change;

/// Everything the tables say, and of endpoints what their rule sets allow to anyone.
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
    /// Of each rule set of egress that an endpoint has, what it allows to anyone; those that allow everything aside, which never
    /// ask for Services.
    pub anyone: BTreeMap<RuleSetId, PortSetId>,
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
    /// Notes an endpoint's policy for what its pod sends.
    pub fn note_egress(&mut self, egress: DirectionPolicy) {
        if egress.isolated() && egress.any != PortSetId::ALL {
            self.anyone.insert(egress.rule_set, egress.any);
        }
    }

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
        let from_prefixes = || AddressEntry { class: self.class_of_net(IpNet::from(address)), flags: 0, endpoint: 0 };
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
    let numbered = |tables: &Snapshot| tables.classes().filter(|class| *class != ClassId::NOBODY).max();
    let highest = numbered(new).or_else(|| numbered(old)).unwrap_or_default();
    let mut pairs = Pairs { next: highest.0, ids: BTreeMap::new() };
    let addresses: BTreeSet<IpAddr> = old.addresses.keys().chain(new.addresses.keys()).copied().collect();
    let prefixes: BTreeSet<IpNet> = old.prefixes.keys().chain(new.prefixes.keys()).copied().collect();
    let steps = frontends::plan(old, new, &mut pairs);
    let mut moves = steps.before;
    for &address in &addresses {
        let (was, will_be) = (old.entry_of(address), new.entry_of(address));
        // A flag that either has: at worst an old endpoint allows its node early, or a new one a little longer.
        let flags =
            was.flags | will_be.flags | if steps.meanwhile.contains(&address) { address_flags::SERVICE } else { 0 };
        moves.push(Change::PutAddress(
            address,
            AddressEntry { class: pairs.get(was.class, will_be.class), flags, endpoint: 0 },
        ));
    }
    for &net in &prefixes {
        moves.push(Change::PutPrefix(net, pairs.get(old.class_of_net(net), new.class_of_net(net))));
    }

    let mut switch = Switch::default();
    for (&(key, prefix_len), &entry) in &new.ports {
        switch.before.push(Change::PutPort { prefix_len, key, entry });
    }
    switch.before.extend(new.allow.iter().map(|(key, entry)| Change::PutAllow(*key, *entry)));
    let mut transitional: Vec<(AllowKey, AllowEntry)> = transitional_entries(old, new, &pairs.ids);
    transitional.extend(steps.allow);
    switch.before.extend(transitional.iter().map(|(key, entry)| Change::PutAllow(*key, *entry)));
    switch.before.extend(moves);

    switch.after.extend(steps.after);
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
    switch.after.extend(steps.last);
    switch.after.extend(transitional.iter().map(|(key, _)| Change::DeleteAllow(*key)));
    switch.after.extend(old.allow.keys().map(|key| Change::DeleteAllow(*key)));
    switch
        .after
        .extend(old.ports.keys().map(|(key, prefix_len)| Change::DeletePort { prefix_len: *prefix_len, key: *key }));
    switch
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
