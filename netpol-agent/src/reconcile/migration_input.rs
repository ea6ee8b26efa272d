//! Inputs of a migration: unused IDs, and a snapshot of an engine's tables. A migration replaces the map entries of an
//! old engine (compiler of policies), or of an earlier agent, by those of a new engine. The new engine assigns other
//! IDs.

use netpol_common::{Endpoint, PortSetId};
use netpol_policy::compile::{FirstIds, UsedIds};
use netpol_policy::tables::{Change, Tables};

use super::{QUARANTINE, all_policies};
use netpol_dataplane::migration::Snapshot;

/// Returns IDs that neither the old tables nor the endpoints use. A rule set that allows nothing has no map entries, so
/// its ID is found only in endpoints.
pub(super) fn free_ids<'a>(old: &Snapshot, endpoints: impl IntoIterator<Item = &'a Endpoint>) -> FirstIds {
    let mut used = UsedIds {
        classes: old.classes().collect(),
        rule_sets: old.allow.keys().map(|key| key.rule_set).collect(),
        port_sets: old.ports.keys().map(|(key, _)| key.set).collect(),
        rules: old.ports.values().map(|entry| entry.rule).chain(old.allow.values().map(|entry| entry.rule)).collect(),
    };
    used.port_sets.extend(old.allow.values().map(|entry| entry.port_set));
    for policy in endpoints.into_iter().flat_map(all_policies) {
        used.rule_sets.insert(policy.rule_set);
        used.port_sets.insert(policy.any);
    }
    // These IDs are reserved: no engine allocates them.
    used.rule_sets.remove(&QUARANTINE);
    used.port_sets.remove(&PortSetId::ALL);
    used.port_sets.remove(&PortSetId::SOME);
    FirstIds::unused_by(&used)
}

/// Returns a snapshot of an engine's tables.
pub(super) fn snapshot_of(tables: &Tables) -> Snapshot {
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
            Change::PutEndpoint(_, policy) => {
                snapshot.note_egress(policy.egress);
                snapshot.note_egress(policy.shadow_egress);
            }
            _ => {}
        }
    }
    snapshot
}
