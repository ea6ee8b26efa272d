//! Prometheus metrics, and whether the agent is ready. The metrics are served at `--metrics`, if given, and at
//! the Unix socket.

mod convergence;
mod export;
mod flows;
mod gate;
mod page;
mod source;
mod table;

use std::sync::Arc;
use std::time::{Duration, Instant, UNIX_EPOCH};

use crate::api::resources::maps;
use crate::api::{Readiness, unknown_node};
use crate::conflicts::Conflicts;
use crate::events::{Reporter, rfc3339};
use crate::export::Exporters;
use crate::reconcile::Reconciler;
use convergence::Convergence;
use netpol_api::{FlowCounts, FlowVerdict};
use netpol_common::{Direction, EventKind, Reason};
use netpol_dataplane::{CounterReader, Kernel};
use netpol_policy::model::Suspension;
use netpol_source::{Generation, SourceState};

pub use gate::render_gate;
pub use page::render;
pub use source::render_waiting;

/// Measurements by the main loop.
pub struct Meter {
    /// Reads the counters of the eBPF programs.
    pub counters: CounterReader,
    /// Whether the agent is ready.
    pub readiness: Readiness,
    /// Conflicts with other components on this node.
    pub conflicts: Arc<Conflicts>,
    /// Exports of flow records.
    pub exporters: Exporters,
    convergence: Convergence,
    source: SourceState,
    /// Number of batches that were compiled and written.
    batches: u64,
    /// Total time that it took to compile and write these batches.
    writing: Duration,
}

impl Meter {
    /// Creates a meter with zero counts. `source` is a shared handle that the source updates.
    pub fn new(counters: CounterReader, source: SourceState) -> Self {
        Self {
            counters,
            readiness: Readiness::Starting,
            conflicts: Arc::default(),
            exporters: Exporters::default(),
            convergence: Convergence::default(),
            source,
            batches: 0,
            writing: Duration::ZERO,
        }
    }

    /// Records how long it took to compile and write this number of batches together.
    pub fn record_batches_written(&mut self, count: usize, took: Duration) {
        self.batches += count as u64;
        self.writing += took;
    }

    /// Records that the first objects are applied. The time until they are enforced is not measured.
    pub fn record_first_objects_applied(&mut self, generation: Generation) {
        self.convergence.record_applied(generation);
    }

    /// Records that a batch was applied: it is compiled, and each of its map entries was written or has failed.
    /// `received_at`: when the agent received the batch.
    pub fn record_batch_applied(&mut self, generation: Generation, received_at: Instant) {
        self.convergence.measure(generation, received_at);
    }

    /// Records that all applied batches are enforced: no failed write or attach is left.
    pub fn record_all_enforced(&mut self) {
        self.convergence.record_all_enforced();
    }

    /// Returns the number of the last batch that was applied.
    pub fn last_applied(&self) -> Generation {
        self.convergence.applied
    }

    /// Returns the number of the last enforced batch. All batches before it are enforced, too.
    pub fn last_enforced(&self) -> Generation {
        self.convergence.enforced
    }

    /// Returns the status. `version`, `node`, `source` and `gate` are empty; the API fills them.
    pub fn status(&self, reconciler: &Reconciler<Kernel>, reporter: &Reporter) -> netpol_api::Status {
        netpol_api::Status {
            version: String::new(),
            node: String::new(),
            source: String::new(),
            ready: self.readiness == Readiness::Ready,
            generation_received: reconciler.last_received().0,
            generation: self.convergence.enforced.0,
            last_change_time: self.convergence.last_change.map(|since| rfc3339(UNIX_EPOCH + since)),
            pending: reconciler.pending(),
            endpoints: reconciler.endpoints(),
            partial_policies: reconciler.partial_policies(),
            gate: netpol_api::GateStatus::default(),
            observe: reconciler.observes(),
            suspensions: reconciler.suspensions().iter().map(suspension).collect(),
            flows: self.flow_counts(reconciler, reporter),
            conflicts: self.conflicts.all(),
            maps: maps(reconciler, reconciler.dataplane().capacities()),
            warnings: match self.readiness {
                Readiness::UnknownNode => vec![unknown_node(reconciler.node())],
                Readiness::Ready | Readiness::Starting => Vec::new(),
            },
        }
    }

    fn flow_counts(&self, reconciler: &Reconciler<Kernel>, reporter: &Reporter) -> FlowCounts {
        let mut counts = FlowCounts {
            records: FlowVerdict::ALL.map(|verdict| reporter.events(verdict)).iter().sum::<u64>() - reporter.skipped(),
            suppressed: reporter.skipped(),
            lost_events: self.counters.lost_events(),
            unwritten: reporter.unwritten(),
            ..FlowCounts::default()
        };
        for id in reconciler
            .pod_endpoints()
            .filter(|pod_endpoint| pod_endpoint.pod.is_some())
            .map(|pod_endpoint| pod_endpoint.endpoint.id)
        {
            for direction in Direction::BOTH {
                let packets = self.counters.packets(id, direction).unwrap_or_default().packets;
                for reason in Reason::ALL {
                    let sum = if reason.allows() { &mut counts.allowed_packets } else { &mut counts.denied_packets };
                    *sum += packets[*reason as usize];
                }
                for kind in EventKind::ALL {
                    counts.suppressed += self.counters.suppressed(id, direction, kind).unwrap_or(0);
                }
            }
        }
        counts
    }
}

fn suspension(suspension: &Suspension) -> netpol_api::Suspension {
    netpol_api::Suspension {
        namespace: (!suspension.cluster).then(|| suspension.namespace.to_string()),
        until: suspension.until.to_string(),
        reason: suspension.reason.as_ref().map(ToString::to_string),
    }
}
