//! The number of entries of each BPF map, and its capacity.

use netpol_api::MapStatus;
use netpol_dataplane::{Capacities, Dataplane, MapName};

use crate::reconcile::Reconciler;

/// Lists all maps.
pub fn maps<D: Dataplane>(reconciler: &Reconciler<D>, capacities: &Capacities) -> Vec<MapStatus> {
    let (entries, failed) = (reconciler.entries(), reconciler.failed_writes());
    let status = |map: &MapName| MapStatus {
        name: map.name().to_owned(),
        entries: entries.get(map).map(|count| *count as u64),
        capacity: capacities.of(*map).into(),
        full: failed.full.get(map.name()).copied().unwrap_or_default(),
    };
    MapName::ALL.iter().map(status).collect()
}
