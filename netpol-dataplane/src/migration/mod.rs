//! Plans the migration from the tables of an earlier engine (the compiler of policies) to those of a new engine, which
//! uses other IDs. After every single write, each endpoint has the verdicts of its old policy or of its new one. Pure
//! functions, no I/O.
//!
//! 1. Each address moves to a transitional class for its pair of (old class, new class). That class has the entries of
//!    the old rule sets for the old class and those of the new rule sets for the new class.
//! 2. The endpoints get their new rule sets.
//! 3. The addresses move to their new classes, and all old entries are deleted.
//!
//! For Service ports, see `frontends`.

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

/// The content of all tables, and what the endpoints' rule sets allow to every address.
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
    /// For each egress rule set of an endpoint, what it allows to every address. Rule sets that allow everything are
    /// omitted: with them, programs never look up Services.
    pub any: BTreeMap<RuleSetId, PortSetId>,
}

/// The steps of a migration. Between `before` and `after`, every endpoint changes to its new policy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Migration {
    /// Adds the new entries beside the old ones, and moves addresses to transitional classes.
    pub before: Vec<Change>,
    /// Moves addresses to their new classes, and deletes the old entries.
    pub after: Vec<Change>,
}

impl Snapshot {
    /// Records the egress policy of an endpoint.
    pub fn note_egress(&mut self, egress: DirectionPolicy) {
        if egress.isolated() && egress.any != PortSetId::ALL {
            self.any.insert(egress.rule_set, egress.any);
        }
    }

    /// Returns the classes in use.
    pub fn classes(&self) -> impl Iterator<Item = ClassId> {
        let found = self.addresses.values().map(|entry| entry.class).chain(self.prefixes.values().copied());
        let found = found.chain(self.frontends.values().copied());
        found.chain(self.allow.keys().map(|key| key.class))
    }

    /// Returns the class of the longest prefix that covers `net`.
    fn class_of_net(&self, net: IpNet) -> ClassId {
        let lengths = (0..=net.prefix_len()).rev();
        let covering = lengths.filter_map(|length| IpNet::new(net.addr(), length).ok().map(|net| net.trunc()));
        covering.filter_map(|net| self.prefixes.get(&net)).copied().next().unwrap_or(ClassId::NONE)
    }

    /// Returns the entry that a lookup of the address finds.
    fn entry_of(&self, address: IpAddr) -> AddressEntry {
        let from_prefixes = || AddressEntry { class: self.class_of_net(IpNet::from(address)), flags: 0, endpoint: 0 };
        self.addresses.get(&address).copied().unwrap_or_else(from_prefixes)
    }
}

/// Allocates the transitional classes, one for each pair of (old class, new class).
#[derive(Debug)]
struct Pairs {
    /// The highest class that is in use or was allocated.
    highest: u32,
    /// The transitional class of each pair.
    ids: BTreeMap<(ClassId, ClassId), ClassId>,
}

impl Pairs {
    /// Allocates a class that belongs to no pair.
    fn unused_class(&mut self) -> ClassId {
        self.highest += 1;
        ClassId(self.highest)
    }

    /// Returns the transitional class of a pair of old class and new class.
    fn get(&mut self, old: ClassId, new: ClassId) -> ClassId {
        // Class 0 allows nothing by itself, so the other class can be used for the pair.
        if old == ClassId::NONE || new == ClassId::NONE {
            return old.max(new);
        }
        *self.ids.entry((old, new)).or_insert_with(|| {
            self.highest += 1;
            ClassId(self.highest)
        })
    }
}

/// Plans the migration. `old` must not use any ID of `new`, nor a class ID above the highest one of `new`.
pub fn plan(old: &Snapshot, new: &Snapshot) -> Migration {
    let highest_class = |tables: &Snapshot| tables.classes().filter(|class| *class != ClassId::NONE).max();
    let highest = highest_class(new).or_else(|| highest_class(old)).unwrap_or_default();
    let mut pairs = Pairs { highest: highest.0, ids: BTreeMap::new() };
    let addresses: BTreeSet<IpAddr> = old.addresses.keys().chain(new.addresses.keys()).copied().collect();
    let prefixes: BTreeSet<IpNet> = old.prefixes.keys().chain(new.prefixes.keys()).copied().collect();
    let steps = frontends::plan(old, new, &mut pairs);
    let mut moves = steps.before;
    for &address in &addresses {
        let (old_entry, new_entry) = (old.entry_of(address), new.entry_of(address));
        // Set the flags of both entries. At worst, an endpoint with its old policy allows a new address of the local
        // node too early, or an endpoint with its new policy allows a removed address of the local node too long.
        let flags = old_entry.flags
            | new_entry.flags
            | if steps.transitional.contains(&address) { address_flags::SERVICE } else { 0 };
        moves.push(Change::PutAddress(
            address,
            AddressEntry { class: pairs.get(old_entry.class, new_entry.class), flags, endpoint: 0 },
        ));
    }
    for &net in &prefixes {
        moves.push(Change::PutPrefix(net, pairs.get(old.class_of_net(net), new.class_of_net(net))));
    }

    let mut migration = Migration::default();
    for (&(key, prefix_len), &entry) in &new.ports {
        migration.before.push(Change::PutPort { prefix_len, key, entry });
    }
    migration.before.extend(new.allow.iter().map(|(key, entry)| Change::PutAllow(*key, *entry)));
    let mut transitional_allow: Vec<(AllowKey, AllowEntry)> = transitional_entries(old, new, &pairs.ids);
    transitional_allow.extend(steps.allow);
    migration.before.extend(transitional_allow.iter().map(|(key, entry)| Change::PutAllow(*key, *entry)));
    migration.before.extend(moves);

    migration.after.extend(steps.after);
    for address in addresses {
        migration.after.push(match new.addresses.get(&address) {
            Some(entry) => Change::PutAddress(address, *entry),
            None => Change::DeleteAddress(address),
        });
    }
    for net in prefixes {
        migration.after.push(match new.prefixes.get(&net) {
            Some(class) => Change::PutPrefix(net, *class),
            None => Change::DeletePrefix(net),
        });
    }
    migration.after.extend(steps.last);
    migration.after.extend(transitional_allow.iter().map(|(key, _)| Change::DeleteAllow(*key)));
    migration.after.extend(old.allow.keys().map(|key| Change::DeleteAllow(*key)));
    migration
        .after
        .extend(old.ports.keys().map(|(key, prefix_len)| Change::DeletePort { prefix_len: *prefix_len, key: *key }));
    migration
}

/// Returns the `ALLOW` entries of the transitional class of each pair: copies of the old rule sets' entries for the old
/// class, and of the new rule sets' entries for the new class.
fn transitional_entries(
    old: &Snapshot,
    new: &Snapshot,
    pairs: &BTreeMap<(ClassId, ClassId), ClassId>,
) -> Vec<(AllowKey, AllowEntry)> {
    let (old, new) = (by_class(old), by_class(new));
    let mut entries = Vec::new();
    for (&(old_class, new_class), &class) in pairs {
        for (rule_set, entry) in old.get(&old_class).into_iter().chain(new.get(&new_class)).flatten() {
            entries.push((AllowKey { rule_set: *rule_set, class }, *entry));
        }
    }
    entries
}

/// Groups the `ALLOW` entries by class.
fn by_class(tables: &Snapshot) -> BTreeMap<ClassId, Vec<(RuleSetId, AllowEntry)>> {
    let mut by_class: BTreeMap<ClassId, Vec<(RuleSetId, AllowEntry)>> = BTreeMap::new();
    for (key, entry) in &tables.allow {
        by_class.entry(key.class).or_default().push((key.rule_set, *entry));
    }
    by_class
}
