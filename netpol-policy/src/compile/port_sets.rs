//! Port sets: the ports that a rule set allows to a class or to any peer. Equal port sets are stored once.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher, RandomState};

use netpol_common::{AllowEntry, PortEntry, PortKey, PortSetId, RuleId, port_verdict};

use super::allow::{AllowedPorts, PortPrefix, Ports};
use super::entry_counts::EntryCounts;
use super::ids::Counter;
use super::memory_limit::Account;
use crate::tables::Change;

/// The port sets in use.
#[derive(Clone, Debug, Default)]
pub(super) struct PortSets {
    /// IDs by content hash. This hash is a sum: it adds a hash of each port prefix and its rule. So it can be updated
    /// incrementally.
    by_hash: HashMap<u64, Vec<PortSetId>>,
    sets: BTreeMap<PortSetId, PortSet>,
    /// Number of entries of the map `PORTS`, by [`Account`] of the memory limit. The entries of a port set are charged
    /// to the account of the rule set for which the port set was created.
    entry_counts: EntryCounts,
    counter: Counter,
    hasher: RandomState,
}

#[derive(Clone, Debug)]
struct PortSet {
    ports: Ports,
    hash: u64,
    /// Number of `ALLOW` entries and rule sets that use the port set.
    users: usize,
    /// The account to which the entries are charged.
    account: Account,
    /// Whether the endpoint of a deleted pod (orphaned endpoint) may use the set. If so, the set must not change.
    frozen: bool,
}

/// The difference between the old and the new contents of a port set.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Diff {
    /// New prefixes, and prefixes that now belong to another rule. Sorted.
    pub(super) put: Vec<(PortPrefix, RuleId)>,
    /// Removed prefixes. Sorted.
    pub(super) delete: Vec<PortPrefix>,
}

impl Diff {
    pub(super) fn is_empty(&self) -> bool {
        self.put.is_empty() && self.delete.is_empty()
    }

    pub(super) fn apply(&self, ports: &mut Ports) {
        ports.extend(self.put.iter().copied());
        for prefix in &self.delete {
            ports.remove(prefix);
        }
    }
}

impl PortSets {
    pub(super) fn new(first: PortSetId) -> Self {
        Self { counter: Counter::starting_at(first.0), ..Self::default() }
    }

    /// Returns how many IDs were allocated.
    pub(super) fn ids_allocated(&self) -> u32 {
        self.counter.allocated()
    }

    /// Returns the ports of a set. Returns `None` for the constant sets `NONE` and `ALL` of [`PortSetId`].
    pub(super) fn ports(&self, id: PortSetId) -> Option<&Ports> {
        self.sets.get(&id).map(|set| &set.ports)
    }

    /// Returns the number of users of a set: `ALLOW` entries, and rule sets that allow its ports to any peer.
    pub(super) fn user_count(&self, id: PortSetId) -> usize {
        self.sets.get(&id).map_or(0, |set| set.users)
    }

    /// Returns whether a set is still in use.
    pub(super) fn exists(&self, id: PortSetId) -> bool {
        [PortSetId::NONE, PortSetId::ALL].contains(&id) || self.sets.contains_key(&id)
    }

    /// Adds a user. The constant sets (`NONE` and `ALL`) always exist, so their users are not counted.
    pub(super) fn add_user(&mut self, id: PortSetId) {
        if let Some(set) = self.sets.get_mut(&id) {
            set.users += 1;
        }
    }

    /// Returns the number of entries by account.
    pub(super) fn entry_counts(&self) -> &EntryCounts {
        &self.entry_counts
    }

    /// Returns how many map entries [`PortSets::acquire`] would add for these ports.
    pub(super) fn entries_to_add(&self, contents: &AllowedPorts) -> u64 {
        match contents {
            AllowedPorts::Of(ports) if self.find(self.hash_of(ports), |existing| existing == ports).is_none() => {
                ports.len() as u64
            }
            AllowedPorts::Of(_) | AllowedPorts::All(_) => 0,
        }
    }

    /// Adds a user to the set of these ports. Returns an `ALLOW` entry with the set, and the changes that write the set
    /// if it is new. The entries of a new set are charged to `account`.
    pub(super) fn acquire(&mut self, contents: &AllowedPorts, account: &Account) -> (AllowEntry, Vec<Change>) {
        let ports = match contents {
            AllowedPorts::All(rule) => return (AllowEntry { port_set: PortSetId::ALL, rule: *rule }, Vec::new()),
            AllowedPorts::Of(ports) => ports,
        };
        let entry = |port_set| AllowEntry { port_set, rule: RuleId::NONE };
        if ports.is_empty() {
            return (entry(PortSetId::NONE), Vec::new());
        }
        let hash = self.hash_of(ports);
        if let Some(id) = self.find(hash, |existing| existing == ports) {
            self.add_user(id);
            return (entry(id), Vec::new());
        }
        let id = PortSetId(self.counter.next());
        self.by_hash.entry(hash).or_default().push(id);
        self.sets.insert(id, PortSet { ports: ports.clone(), hash, users: 1, account: account.clone(), frozen: false });
        self.entry_counts.add(account, ports.len() as u64);
        (entry(id), ports.iter().map(|(prefix, rule)| put_change(id, *prefix, *rule)).collect())
    }

    /// Changes a set for all of its users. Returns the changes, additions first. Returns `None` if the set cannot
    /// change: it is frozen, would be empty, or would be equal to another set.
    pub(super) fn change(&mut self, id: PortSetId, diff: &Diff) -> Option<Vec<Change>> {
        let set = self.sets.get(&id).filter(|set| !set.frozen)?;
        if set.ports.len() + diff.put.len() == diff.delete.len() {
            return None;
        }
        let mut hash = set.hash;
        for (prefix, rule) in &diff.put {
            if let Some(existing) = set.ports.get(prefix) {
                hash = hash.wrapping_sub(self.hash((prefix, existing)));
            }
            hash = hash.wrapping_add(self.hash((prefix, rule)));
        }
        for prefix in &diff.delete {
            if let Some(existing) = set.ports.get(prefix) {
                hash = hash.wrapping_sub(self.hash((prefix, existing)));
            }
        }
        let changed_ports = || {
            let mut ports = set.ports.clone();
            diff.apply(&mut ports);
            ports
        };
        if self.by_hash.contains_key(&hash) {
            let changed = changed_ports();
            if changed.is_empty() || self.find(hash, |existing| *existing == changed).is_some() {
                return None;
            }
        }
        self.remove_hash(id);
        let set = self.sets.get_mut(&id)?;
        set.hash = hash;
        self.entry_counts.subtract(&set.account, set.ports.len() as u64);
        diff.apply(&mut set.ports);
        self.entry_counts.add(&set.account, set.ports.len() as u64);
        self.by_hash.entry(hash).or_default().push(id);
        let puts = diff.put.iter().map(|(prefix, rule)| put_change(id, *prefix, *rule));
        Some(puts.chain(diff.delete.iter().map(|prefix| delete_change(id, *prefix))).collect())
    }

    /// Forbids changes of a set in place, for the reason in `PortSet::frozen`.
    pub(super) fn freeze(&mut self, id: PortSetId) {
        if let Some(set) = self.sets.get_mut(&id) {
            set.frozen = true;
        }
    }

    /// Removes a user. If that was the last user, removes the set and returns the changes that delete it.
    pub(super) fn release(&mut self, id: PortSetId) -> Vec<Change> {
        let Some(set) = self.sets.get_mut(&id) else { return Vec::new() };
        set.users -= 1;
        if set.users > 0 {
            return Vec::new();
        }
        self.remove_hash(id);
        let Some(PortSet { ports, account, .. }) = self.sets.remove(&id) else { return Vec::new() };
        self.entry_counts.subtract(&account, ports.len() as u64);
        ports.keys().map(|prefix| delete_change(id, *prefix)).collect()
    }

    fn hash_of(&self, ports: &Ports) -> u64 {
        ports.iter().fold(0, |sum, one| sum.wrapping_add(self.hash(one)))
    }

    fn hash(&self, entry: (&PortPrefix, &RuleId)) -> u64 {
        self.hasher.hash_one(entry)
    }

    fn find(&self, hash: u64, is_same: impl Fn(&Ports) -> bool) -> Option<PortSetId> {
        let mut ids = self.by_hash.get(&hash)?.iter();
        ids.find(|id| self.sets.get(id).is_some_and(|set| is_same(&set.ports))).copied()
    }

    fn remove_hash(&mut self, id: PortSetId) {
        let Some(hash) = self.sets.get(&id).map(|set| set.hash) else { return };
        if let Some(ids) = self.by_hash.get_mut(&hash) {
            ids.retain(|existing| *existing != id);
            if ids.is_empty() {
                self.by_hash.remove(&hash);
            }
        }
    }
}

fn put_change(id: PortSetId, prefix: PortPrefix, rule: RuleId) -> Change {
    let entry = PortEntry { verdict: port_verdict::ALLOW, rule };
    Change::PutPort { prefix_len: prefix.length, key: port_key(id, prefix), entry }
}

fn delete_change(id: PortSetId, prefix: PortPrefix) -> Change {
    Change::DeletePort { prefix_len: prefix.length, key: port_key(id, prefix) }
}

fn port_key(set: PortSetId, prefix: PortPrefix) -> PortKey {
    PortKey { set, protocol: prefix.protocol, zero: 0, port: prefix.port.to_be_bytes() }
}
