//! From one state to another that is more than a step away, such that every endpoint is judged by the one or by the other.

use netpol_common::{Endpoint, PortSetId};
use netpol_policy::compile::{Engine, FirstIds, UsedIds};
use netpol_policy::tables::{Change, Tables};
use netpol_policy::world::Event;

use super::{QUARANTINE, Reconciler};
use crate::dataplane::Dataplane;
use crate::dataplane::switch::{Snapshot, plan};

impl<D: Dataplane> Reconciler<D> {
    /// Takes in what became different while nobody looked. Taken in one by one, such events would pass through mixtures of
    /// before and after that may allow or deny what neither does.
    pub fn jump(&mut self, events: Vec<Event>) {
        if let Some(events) = self.engine.one_step(events.clone()) {
            self.apply(events);
        } else {
            self.succeed(events);
        }
    }

    /// Goes on with a new engine.
    pub(super) fn succeed(&mut self, events: Vec<Event>) {
        let mut old = snapshot_of(self.engine.tables());
        // Those of pods that are gone go on.
        self.held.values().for_each(|held| old.note_egress(held.endpoint.egress));
        let ids = free_ids(&old, self.held.values().map(|held| &held.endpoint));
        let engine = self.engine.successor(events, ids);
        self.switch(&old, engine);
    }

    /// Enforces what an engine says, whose ids are none of those that are in `old` tables and endpoints.
    pub(super) fn switch(&mut self, old: &Snapshot, engine: Engine) {
        let new = snapshot_of(engine.tables());
        let switch = plan(old, &new);
        self.engine = engine;
        self.execute(&switch.before);
        self.policies = self.engine.tables().endpoints().map(|(pod, policy)| (pod.clone(), policy)).collect();
        self.settle();
        self.execute(&switch.after);
        self.settle();
    }
}

/// Ids that neither tables nor endpoints use: a rule set that allows nothing stands in its endpoints alone.
pub(super) fn free_ids<'a>(old: &Snapshot, endpoints: impl IntoIterator<Item = &'a Endpoint>) -> FirstIds {
    let mut used = UsedIds {
        classes: old.classes().collect(),
        rule_sets: old.allow.keys().map(|key| key.rule_set).collect(),
        port_sets: old.ports.keys().map(|(key, _)| key.set).collect(),
        rules: old.ports.values().map(|entry| entry.rule).chain(old.allow.values().map(|entry| entry.rule)).collect(),
    };
    used.port_sets.extend(old.allow.values().map(|entry| entry.port_set));
    for policy in endpoints.into_iter().flat_map(|endpoint| [endpoint.ingress, endpoint.egress]) {
        used.rule_sets.insert(policy.rule_set);
        used.port_sets.insert(policy.any);
    }
    used.rule_sets.remove(&QUARANTINE);
    used.port_sets.remove(&PortSetId::ALL);
    used.port_sets.remove(&PortSetId::SOME);
    FirstIds::apart_from(&used)
}

fn snapshot_of(tables: &Tables) -> Snapshot {
    let mut snapshot = Snapshot::default();
    for change in tables.entries() {
        match change {
            Change::PutPort { prefix_len, key, entry } => {
                snapshot.ports.insert((key, prefix_len), entry);
            }
            Change::PutAllow(key, entry) => {
                snapshot.allow.insert(key, entry);
            }
            Change::PutAddress(address, entry) => {
                snapshot.addresses.insert(address, entry);
            }
            Change::PutPrefix(net, class) => {
                snapshot.prefixes.insert(net, class);
            }
            Change::PutFrontend(frontend, class) => {
                snapshot.frontends.insert(frontend, class);
            }
            Change::PutEndpoint(_, policy) => snapshot.note_egress(policy.egress),
            _ => {}
        }
    }
    snapshot
}
