//! Passes requests of API clients to the main loop (`reconcile::task`).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use netpol_api::{ExplainResponse, GenerationStatus, List, PodStatus, PolicyList, ShadowReport, Status};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::time::timeout;

use super::resources::{ExplainQuery, PolicyQuery, ShadowQuery};
use crate::events::FlowBuffer;
use crate::gate::{GateStats, StartingPods};
use crate::reconcile::{Check, CheckResult, ConditionState, ContainerStarts};
use netpol_source::{SourceQuery, SourceState};

/// Maximum number of requests that wait for conditions; more are rejected. Each waiting request costs a check after
/// every change.
pub(super) const MAX_WAITERS: usize = 64;
/// Maximum number of clients that read records of flows at the same time.
pub(super) const MAX_STREAMS: usize = 32;
/// The main loop has at least this time to respond, even if a request has less time left. A response takes longer only
/// while policies are being compiled.
const LOOP_TIMEOUT: Duration = Duration::from_millis(100);

/// A request to the main loop.
#[derive(Debug)]
pub enum LoopRequest {
    /// The metrics.
    Metrics(oneshot::Sender<String>),
    /// Whether the agent is ready.
    Ready(oneshot::Sender<Readiness>),
    /// The status, without version, node and source.
    Status(oneshot::Sender<Status>),
    /// Whether a condition holds now.
    Check(Check, oneshot::Sender<CheckResult>),
    /// The pods of this node.
    Pods(oneshot::Sender<List<PodStatus>>),
    /// Policies.
    Policies(PolicyQuery, oneshot::Sender<PolicyList>),
    /// The verdict of a connection.
    Explain(ExplainQuery, oneshot::Sender<Result<ExplainResponse, String>>),
    /// What policies in shadow mode would have denied.
    Shadow(ShadowQuery, oneshot::Sender<ShadowReport>),
    /// The last batches of changes. A generation is the number of a batch.
    Generations(oneshot::Sender<List<GenerationStatus>>),
}

impl LoopRequest {
    /// Returns whether the response needs the engine, which compiles policies. While the engine compiles, such a
    /// request waits.
    pub fn needs_engine(&self) -> bool {
        match self {
            Self::Check(..) | Self::Policies(..) | Self::Explain(..) | Self::Shadow(..) => true,
            Self::Metrics(_) | Self::Ready(_) | Self::Status(_) | Self::Pods(_) | Self::Generations(_) => false,
        }
    }
}

/// Whether the agent is ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// All policies that existed at the start are enforced.
    Ready,
    /// Not everything is enforced yet.
    Starting,
    /// There are Node objects, but none with the node name of the agent: the agent cannot find the pods of its node.
    UnknownNode,
}

/// Notifies waiting requests of changes. The main loop owns this sender.
#[derive(Debug)]
pub struct Progress(watch::Sender<u64>);

impl Progress {
    /// Reports that the loop started, that a batch was applied, or that an interface changed.
    pub fn notify(&self) {
        self.0.send_modify(|count| *count += 1);
    }
}

/// The data in responses that does not come from the main loop.
#[derive(Clone, Debug)]
pub struct About {
    /// Name of the agent's node.
    pub node: String,
    /// Source of the objects: the API server or a directory.
    pub source: String,
    /// State of the source.
    pub state: SourceState,
    /// The last records of flows.
    pub flows: FlowBuffer,
}

/// Sends requests to the loop; clones share everything.
#[derive(Clone, Debug)]
pub struct Requests {
    pub(super) about: Arc<About>,
    source_queries: mpsc::Sender<SourceQuery>,
    /// Changes whenever the loop reports progress.
    progress: watch::Receiver<u64>,
    /// Limits the number of requests that wait for conditions.
    pub(super) waiters: Arc<Semaphore>,
    /// Limits the number of clients that read records of flows.
    pub(super) streams: Arc<Semaphore>,
    /// Permits one metrics request at a time.
    pub(super) metrics_turn: Arc<Semaphore>,
    pub(super) warnings: Warnings,
    /// Adds the addresses of starting pods (pods with a delayed start) to the objects that the loop receives.
    pub(crate) starting: StartingPods,
    /// When the containers of pods can start. The start gate writes this state, and the reconciler reads it.
    pub(crate) container_starts: ContainerStarts,
    /// State and counters of the start gate, which delays the start of a pod until its policies are enforced.
    pub gate: GateStats,
    to_loop: mpsc::Sender<LoopRequest>,
}

/// Warnings about features of the agent that do not work, by subject. Clones share everything.
#[derive(Clone, Debug, Default)]
pub(super) struct Warnings(Arc<Mutex<BTreeMap<&'static str, String>>>);

impl Warnings {
    pub(super) fn set(&self, subject: &'static str, warning: String) {
        self.lock().insert(subject, warning);
    }

    pub(super) fn clear(&self, subject: &'static str) {
        self.lock().remove(subject);
    }

    pub(super) fn all(&self) -> Vec<String> {
        self.lock().values().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<&'static str, String>> {
        // The map is consistent after each change. So it can be used even after a panic of another thread.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Creates the channels between API clients and the loop.
pub fn requests(
    about: About,
    source_queries: mpsc::Sender<SourceQuery>,
    starting: StartingPods,
) -> (Requests, mpsc::Receiver<LoopRequest>, Progress) {
    let (to_loop, receiver) = mpsc::channel(16);
    let (sender, progress) = watch::channel(0);
    let waiters = Arc::new(Semaphore::new(MAX_WAITERS));
    let metrics_turn = Arc::new(Semaphore::new(1));
    let (warnings, gate) = (Warnings::default(), GateStats::default());
    let requests = Requests {
        about: Arc::new(about),
        source_queries,
        progress,
        waiters,
        streams: Arc::new(Semaphore::new(MAX_STREAMS)),
        metrics_turn,
        warnings,
        starting,
        container_starts: ContainerStarts::default(),
        gate,
        to_loop,
    };
    (requests, receiver, Progress(sender))
}

impl Requests {
    /// Returns whether the loop has started. It starts when the source has sent its first objects.
    pub(super) fn is_started(&self) -> bool {
        *self.progress.borrow() > 0
    }

    /// Sends a request to the loop and returns the response. `None`: the loop has ended.
    pub(super) async fn send<T>(&self, request: impl FnOnce(oneshot::Sender<T>) -> LoopRequest) -> Option<T> {
        let (answer, answered) = oneshot::channel();
        self.to_loop.send(request(answer)).await.ok()?;
        answered.await.ok()
    }

    /// Sends a query to the source.
    ///
    /// # Errors
    /// If the source has ended.
    pub async fn query_source(&self, query: SourceQuery) -> Result<(), ()> {
        self.source_queries.send(query).await.map_err(|_| ())
    }

    /// Checks a condition whenever the loop reports progress, until the condition holds, the condition can never hold,
    /// or the time is over. `None`: the loop has ended.
    pub async fn wait_until(&self, check: &Check, until: Instant) -> Option<CheckResult> {
        let mut progress = self.progress.clone();
        loop {
            // The call of `changed` below returns only for progress that is reported after this line.
            progress.mark_unchanged();
            // The main loop does not respond while policies are being compiled, so this request has a time limit.
            let left = until.saturating_duration_since(Instant::now());
            let response = self.send(|answer| LoopRequest::Check(check.clone(), answer));
            let Ok(result) = timeout(left.max(LOOP_TIMEOUT), response).await else {
                return Some(CheckResult::unknown("changes are still being compiled"));
            };
            let result = result?;
            let left = until.saturating_duration_since(Instant::now());
            if !matches!(result.condition, ConditionState::NotYet(_)) || left.is_zero() {
                return Some(result);
            }
            // An error of `changed` means that the main loop has ended. The next `send` detects that.
            let _ = timeout(left, progress.changed()).await;
        }
    }
}
