//! The start gate: delays the start of a pod until the pod's policies are enforced.
//!
//! The container runtime reports a pod when the network of the pod's sandbox is ready, and starts the containers only
//! after the response. The pod's labels come from the source (the API server or a directory). The pod's addresses come
//! from the runtime. The overlay is the step that adds these addresses to the Pod object of the source.
//!
//! ```text
//! source ──► Overlay ──► main loop   netpol-cni ─► POST /v1/pods/start ─┐
//!               ▲                    containerd, CRI-O ─► NRI ──────────┴─► Gate::hold
//!               └────────── addresses of starting pods ◄─────────────────────┘
//! ```

pub mod cni;
mod nri;
mod overlay;
mod stats;

use std::time::{Duration, Instant};

use netpol_api::{Condition, EXEMPT_NAMESPACE, StartOutcome, Target, TargetKind};
use netpol_policy::model::{ObjectKey, PodKey};
use thiserror::Error;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout_at;

use crate::api::Requests;
use crate::reconcile::{Check, ConditionState};
use netpol_source::{Batch, Feed, Generation, SourceQuery, Subject};
use overlay::{Overlay, StartState};

pub use nri::serve as serve_nri;
pub use overlay::PodStart;
pub use stats::{BOUNDS, GateStats};

/// Maximum number of queued commands to the overlay.
const QUEUE: usize = 64;

/// Why a pod's policies are not enforced in time. The runtime retries the start.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum StartError {
    /// The source has no such pod.
    #[error("no pod {0} with this UID on this node")]
    NoSuchPod(PodKey),
    /// The source cannot return the pod.
    #[error("cannot get pod {0}: {1}")]
    Source(PodKey, String),
    /// The addresses of the pod's sandbox cannot be read.
    #[error("cannot read the addresses of pod {0}: {1}")]
    Addresses(PodKey, String),
    /// The pod's policies are not enforced yet.
    #[error("the policies of pod {0} are not enforced yet: {1}")]
    NotEnforced(PodKey, String),
    /// The agent is stopping.
    #[error("the agent is stopping")]
    Stopping,
}

/// A command to the overlay.
#[derive(Debug)]
enum Command {
    /// A pod starts. The answer also has the generation (number) of the last batch that the source has sent.
    Start(PodStart, oneshot::Sender<(StartState, Generation)>),
    /// Pods that ran already when the runtime connected.
    Running(Vec<PodStart>),
    /// A sandbox of a pod has stopped. The text is the ID of the sandbox.
    Stop(PodKey, String),
}

/// Sends commands to the overlay, which adds the addresses of starting pods to the objects of the source. Clones share
/// the overlay.
#[derive(Clone, Debug)]
pub struct StartingPods(mpsc::Sender<Command>);

/// Delays the start of pods.
#[derive(Clone, Debug)]
pub struct Gate {
    requests: Requests,
}

/// A pod that may start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdmittedPod {
    /// How long the start was delayed.
    pub took: Duration,
    /// `None` if the pod's policies are enforced. Otherwise, the pod is exempt from the gate, and this is the reason
    /// why its policies are not enforced.
    pub exempt: Option<StartError>,
}

/// Returns whether a pod may start even if its policies are not enforced in time. This is true for pods in
/// [`EXEMPT_NAMESPACE`], because a node may not work at all without them.
fn is_exempt(pod: &PodKey) -> bool {
    &*pod.namespace == EXEMPT_NAMESPACE
}

impl StartingPods {
    /// Starts a task that applies the overlay to the batches of a source. Returns a feed of the changed batches.
    pub fn add_to(feed: Feed, node: &str) -> (Feed, Self) {
        let (commands, received) = mpsc::channel(QUEUE);
        let (sender, batches) = mpsc::channel(1);
        tokio::spawn(forward(Overlay::new(node.into()), feed.batches, received, sender));
        (Feed { batches, ..feed }, Self(commands))
    }

    /// Returns a value without an overlay, as after the agent has stopped.
    #[cfg(test)]
    pub(crate) fn closed() -> Self {
        Self(mpsc::channel(1).0)
    }
}

/// Forwards batches, and adds a batch for each change of the addresses of starting pods. An added batch has the same
/// generation as the batch before it.
async fn forward(
    mut overlay: Overlay,
    mut batches: mpsc::Receiver<Batch>,
    mut commands: mpsc::Receiver<Command>,
    sender: mpsc::Sender<Batch>,
) {
    let mut generation = Generation::default();
    loop {
        let events = tokio::select! {
            // Batches come first, so that a command finds each pod that the source has sent.
            biased;
            batch = batches.recv() => {
                let Some(mut batch) = batch else { return };
                overlay.apply(&mut batch.events);
                generation = batch.generation;
                if sender.send(batch).await.is_err() {
                    return;
                }
                continue;
            }
            Some(command) = commands.recv() => match command {
                Command::Start(start, answer) => {
                    let state = overlay.start(&start);
                    let events = match &state {
                        StartState::Known(event) => event.iter().cloned().collect(),
                        StartState::Unknown => Vec::new(),
                    };
                    // An error means that the request was canceled, for example by its time limit.
                    let _ = answer.send((state, generation));
                    events
                }
                Command::Running(running) => overlay.running(running),
                Command::Stop(key, sandbox) => overlay.stop(&key, &sandbox).into_iter().collect(),
            },
        };
        let batch = Batch { generation, events, after_resync: false, received: Instant::now() };
        if !batch.events.is_empty() && sender.send(batch).await.is_err() {
            return;
        }
    }
}

impl Gate {
    /// Creates the gate.
    pub fn new(requests: Requests) -> Self {
        Self { requests }
    }

    /// Waits until a starting pod's policies are enforced. If they are not enforced within `limit`, a pod in a
    /// namespace that is exempt from the gate may start anyway. `via` is the kind of gate for logs and metrics: `cni`
    /// or `nri`.
    ///
    /// # Errors
    /// If the policies of a pod that is not exempt are not enforced within `limit`.
    pub async fn hold(&self, start: PodStart, via: &'static str, limit: Duration) -> Result<AdmittedPod, StartError> {
        let (started, key) = (Instant::now(), start.key.clone());
        // `container_starts.hold` records that the runtime waits. It does not itself delay the start.
        let container_starts = &self.requests.container_starts;
        container_starts.hold(&key);
        let result = self.start(start, started + limit).await;
        let took = started.elapsed();
        match result {
            Ok(()) => {
                container_starts.remove(&key);
                self.requests.gate.record(&key, via, StartOutcome::Enforced, took, None);
                tracing::info!(pod = %key, via, took_ms = took.as_millis(), "enforced; the pod may start");
                Ok(AdmittedPod { took, exempt: None })
            }
            Err(error) => self.decide(&key, via, took, error),
        }
    }

    /// Allows or refuses a start immediately. Called if the addresses of the pod's sandbox are unknown: the gate cannot
    /// wait for enforcement without them.
    ///
    /// # Errors
    /// Returns `error`, unless the pod's namespace is exempt from the gate.
    fn decide_without_delay(
        &self,
        key: &PodKey,
        via: &'static str,
        error: StartError,
    ) -> Result<AdmittedPod, StartError> {
        self.decide(key, via, Duration::ZERO, error)
    }

    /// Allows or refuses the start of a pod with policies that are not enforced. `error`: why they are not enforced.
    fn decide(
        &self,
        key: &PodKey,
        via: &'static str,
        took: Duration,
        error: StartError,
    ) -> Result<AdmittedPod, StartError> {
        let record = |outcome| self.requests.gate.record(key, via, outcome, took, Some(error.to_string()));
        if is_exempt(key) {
            self.requests.container_starts.release(key);
            record(StartOutcome::Exempt);
            tracing::warn!(
                pod = %key, via, %error,
                "the pod starts before its policies are enforced: kube-system is exempt"
            );
            Ok(AdmittedPod { took, exempt: Some(error) })
        } else {
            // No container starts: the runtime removes the sandbox, or netpol-cni repeats the request.
            record(StartOutcome::Refused);
            tracing::warn!(pod = %key, via, %error, "the start of a pod is refused; the runtime retries it");
            Err(error)
        }
    }

    /// Publishes the pod's addresses, and waits until the pod's policies are enforced.
    async fn start(&self, start: PodStart, until: Instant) -> Result<(), StartError> {
        let generation = match self.announce(&start, until).await? {
            (StartState::Known(_), generation) => generation,
            (StartState::Unknown, _) => {
                self.wait_for_object(&start.key, until).await?;
                match self.announce(&start, until).await? {
                    (StartState::Known(_), generation) => generation,
                    (StartState::Unknown, _) => return Err(StartError::NoSuchPod(start.key)),
                }
            }
        };
        let (namespace, name) = (start.key.namespace.to_string(), start.key.name.to_string());
        let condition = Condition::Enforced(Target { kind: TargetKind::Pod, namespace, name });
        let check = Check { condition, generation, addresses: Some(start.addresses) };
        let Some(result) = self.requests.wait_until(&check, until).await else { return Err(StartError::Stopping) };
        let pending = || result.pending.first().map(|pending| pending.reason.clone());
        match result.condition {
            ConditionState::Holds => Ok(()),
            ConditionState::Absent => Err(StartError::NoSuchPod(start.key)),
            ConditionState::Never(reason) => Err(StartError::NotEnforced(start.key, reason)),
            ConditionState::NotYet(reason) => {
                Err(StartError::NotEnforced(start.key, reason.or_else(pending).unwrap_or_default()))
            }
        }
    }

    /// Adds the addresses of pods that already run, if the API server has not published these addresses yet.
    pub async fn running(&self, running: Vec<PodStart>) {
        // If the overlay has ended, the agent is stopping.
        let _ = self.requests.starting.0.send(Command::Running(running)).await;
    }

    /// Removes the addresses of a sandbox that has stopped.
    pub async fn stop(&self, key: PodKey, sandbox: String) {
        self.requests.container_starts.remove(&key);
        // If the overlay has ended, the agent is stopping.
        let _ = self.requests.starting.0.send(Command::Stop(key, sandbox)).await;
    }

    /// Records that the runtime does not wait for this agent any more.
    fn disconnected(&self) {
        self.requests.container_starts.release_all();
    }

    /// Sends the addresses of the pod to the overlay. The response of the overlay is delayed while the agent handles
    /// earlier changes.
    async fn announce(&self, start: &PodStart, until: Instant) -> Result<(StartState, Generation), StartError> {
        let (answer, answered) = oneshot::channel();
        let announced = async {
            let sent = self.requests.starting.0.send(Command::Start(start.clone(), answer)).await;
            sent.map_err(|_| StartError::Stopping)?;
            answered.await.map_err(|_| StartError::Stopping)
        };
        let busy = || StartError::NotEnforced(start.key.clone(), "the agent handles earlier changes".to_owned());
        timeout_at(until.into(), announced).await.map_err(|_| busy())?
    }

    /// Waits until the source has sent the current version of the pod.
    async fn wait_for_object(&self, key: &PodKey, until: Instant) -> Result<(), StartError> {
        let failed = |reason: String| StartError::Source(key.clone(), reason);
        let (answer, answered) = oneshot::channel();
        let query = SourceQuery { subject: Subject::Object(ObjectKey::Pod(key.clone())), answer };
        let response = async {
            self.requests.query_source(query).await.map_err(|()| StartError::Stopping)?;
            answered.await.map_err(|_| StartError::Stopping)?.map_err(failed)
        };
        let response = timeout_at(until.into(), response).await;
        let state = response.map_err(|_| failed("the API server did not respond in time".to_owned()))??;
        if state.exists { Ok(()) } else { Err(StartError::NoSuchPod(key.clone())) }
    }
}

#[cfg(test)]
mod tests {
    use netpol_source::SourceState;

    use super::*;
    use crate::api::{About, requests};

    #[tokio::test]
    async fn the_start_of_a_pod_is_refused_in_time_while_the_agent_is_busy() {
        // The overlay never answers. This simulates an agent that handles earlier changes.
        let (commands, _receiver) = mpsc::channel(1);
        let about = About {
            node: "n1".into(),
            source: "dir:x".into(),
            state: SourceState::default(),
            flows: crate::events::FlowBuffer::default(),
        };
        let (requests, _, _) = requests(about, mpsc::channel(1).0, StartingPods(commands));
        let start =
            PodStart { key: PodKey::new("shop", "web"), uid: None, sandbox: "1".to_owned(), addresses: Vec::new() };
        let refused = Gate::new(requests).hold(start, "cni", Duration::from_millis(20)).await;
        assert!(matches!(refused, Err(StartError::NotEnforced(..))), "{refused:?}");
    }
}
