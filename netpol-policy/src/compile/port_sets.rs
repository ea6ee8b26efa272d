//! Port sets, interned by content.

use std::collections::{BTreeMap, HashMap};

use netpol_common::{AllowEntry, PortEntry, PortKey, PortSetId, RuleId, port_verdict};

use super::allow::{Contents, PortPrefix};
use super::ids::Counter;
use crate::tables::Change;

type Ports = BTreeMap<PortPrefix, RuleId>;

/// The port sets in use.
#[derive(Clone, Debug)]
pub(super) struct PortSets {
    ids: HashMap<Ports, PortSetId>,
    entries: BTreeMap<PortSetId, PortSet>,
    counter: Counter,
}

#[derive(Clone, Debug)]
struct PortSet {
    ports: Ports,
    users: usize,
}

impl PortSets {
    pub(super) fn new(first: PortSetId) -> Self {
        Self { ids: HashMap::new(), entries: BTreeMap::new(), counter: Counter::starting_at(first.0) }
    }

    /// How many ids were handed out.
    pub(super) fn ids_spent(&self) -> u32 {
        self.counter.spent()
    }

    /// The set of these ports, with a user more; and the writes it takes, if it is new.
    pub(super) fn acquire(&mut self, contents: &Contents) -> (AllowEntry, Vec<Change>) {
        let ports = match contents {
            Contents::All(rule) => return (AllowEntry { port_set: PortSetId::ALL, rule: *rule }, Vec::new()),
            Contents::Of(ports) => ports,
        };
        let entry = |port_set| AllowEntry { port_set, rule: RuleId::NONE };
        if ports.is_empty() {
            return (entry(PortSetId::NONE), Vec::new());
        }
        if let Some(id) = self.ids.get(ports) {
            if let Some(set) = self.entries.get_mut(id) {
                set.users += 1;
            }
            return (entry(*id), Vec::new());
        }
        let id = PortSetId(self.counter.next());
        self.ids.insert(ports.clone(), id);
        self.entries.insert(id, PortSet { ports: ports.clone(), users: 1 });
        let put = |(prefix, rule): (&PortPrefix, &RuleId)| Change::PutPort {
            prefix_len: prefix.length,
            key: key(id, *prefix),
            entry: PortEntry { verdict: port_verdict::ALLOW, rule: *rule },
        };
        (entry(id), ports.iter().map(put).collect())
    }

    /// A user less; and the writes it takes, if that was the last.
    pub(super) fn release(&mut self, id: PortSetId) -> Vec<Change> {
        let Some(set) = self.entries.get_mut(&id) else { return Vec::new() };
        set.users -= 1;
        if set.users > 0 {
            return Vec::new();
        }
        let ports = self.entries.remove(&id).map(|set| set.ports).unwrap_or_default();
        self.ids.remove(&ports);
        ports.keys().map(|prefix| Change::DeletePort { prefix_len: prefix.length, key: key(id, *prefix) }).collect()
    }
}

fn key(set: PortSetId, prefix: PortPrefix) -> PortKey {
    PortKey { set, protocol: prefix.protocol, zero: 0, port: prefix.port.to_be_bytes() }
}
