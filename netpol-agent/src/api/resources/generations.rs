//! The last batches of changes. Each batch has a number, its generation.

use netpol_api::{GenerationStatus, List};
use netpol_dataplane::Dataplane;

use crate::events::rfc3339;
use crate::reconcile::{BatchRecord, Reconciler};

/// Lists the last batches, the latest first. `generation` is that of the last enforced batch.
pub fn generations<D: Dataplane>(reconciler: &Reconciler<D>, generation: u64) -> List<GenerationStatus> {
    let status = |batch: &BatchRecord| GenerationStatus {
        generation: batch.change.generation.0,
        received: rfc3339(batch.change.received),
        enforced: batch.enforced.map(rfc3339),
        objects: batch.change.objects.clone(),
        object_count: batch.change.object_count,
    };
    List { node: reconciler.node().to_owned(), generation, items: reconciler.batches().map(status).collect() }
}
