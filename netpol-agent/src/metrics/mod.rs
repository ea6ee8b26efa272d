//! Numbers for Prometheus, and whether the agent is ready. Off unless an address is given.

mod convergence;
mod page;
mod source;

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::api::{Readiness, unknown_node};
use crate::conflicts::Counts;
use crate::dataplane::{CounterReader, Kernel};
use crate::reconcile::Reconciler;
use crate::source::{Revision, SourceState};
use convergence::Convergence;

pub use page::render;
pub use source::render_waiting;

/// What only the loop knows.
pub struct Meter {
    /// Reads what the programs count.
    pub counters: CounterReader,
    /// Whether the agent is ready.
    pub readiness: Readiness,
    /// Who else enforces here.
    pub conflicts: Arc<Counts>,
    convergence: Convergence,
    source: SourceState,
    batches: u64,
    applying: Duration,
}

impl Meter {
    /// Starts at zero. The source keeps its state up to date itself.
    pub fn new(counters: CounterReader, source: SourceState) -> Self {
        Self {
            counters,
            readiness: Readiness::Starting,
            conflicts: Arc::default(),
            convergence: Convergence::default(),
            source,
            batches: 0,
            applying: Duration::ZERO,
        }
    }

    /// A batch of objects took this long to enforce.
    pub fn applied(&mut self, took: Duration) {
        self.batches += 1;
        self.applying += took;
    }

    /// What was known at the start is taken in; how long that took is no measure of changes.
    pub fn started(&mut self, revision: Revision) {
        self.convergence.start(revision);
    }

    /// A batch is taken in, which reached the agent at this moment.
    pub fn received(&mut self, revision: Revision, at: Instant) {
        self.convergence.receive(revision, at);
    }

    /// Everything taken in so far is in the kernel now.
    pub fn whole(&mut self) {
        self.convergence.whole();
    }

    /// The last batch that was taken in.
    pub fn last_received(&self) -> Revision {
        self.convergence.received
    }

    /// How the agent is; the node and the source are for others to tell.
    pub fn status(&self, reconciler: &Reconciler<Kernel>) -> netpol_api::Status {
        netpol_api::Status {
            version: String::new(),
            node: String::new(),
            source: String::new(),
            ready: self.readiness == Readiness::Ready,
            generation_received: self.convergence.received.0,
            generation: self.convergence.enforced.0,
            last_change_ms: self.convergence.last_change.and_then(|at| u64::try_from(at.as_millis()).ok()),
            pending: reconciler.pending(),
            endpoints: reconciler.endpoints(),
            left_out: reconciler.left_out_for_status(),
            warnings: match self.readiness {
                Readiness::UnknownNode => vec![unknown_node(reconciler.node())],
                Readiness::Ready | Readiness::Starting => Vec::new(),
            },
        }
    }
}
