//! `kube`: reads the objects of a cluster from its API server.
//!
//! `watch` has one task for each resource. The task requests the objects through `access` and `client`, and parses them
//! with `trim`. `gather` combines the events of all tasks into batches. `query` requests the current versions of
//! objects, and waits until the watches have delivered them.
//!
//! `kube_runtime::watcher` (version 5.0) is not used, for these reasons:
//!
//! * It consumes bookmarks and does not report that a watch was resumed. So while no object changes, a source cannot
//!   distinguish "in sync" from "no data since the connection was lost". `status`, readiness and metrics report this
//!   difference.
//! * It does not fall back to paginated lists if the API server has no streaming lists.
//! * Its errors have no `Retry-After`. The retry policy of `kube_client` reads this header, but it retries inside of a
//!   request. So the source could not report that the API server is unavailable.
//! * It deserializes complete objects. From the JSON text, `trim` reads only the fields that policies need.
//!
//! Invalid objects are not among the reasons: with `DeserializeGuard`, a list with an invalid object does not fail. But
//! `DeserializeGuard` clones each object as a generic value first.

mod access;
mod annotations;
mod backoff;
mod client;
mod failure;
mod gather;
mod intern;
mod lines;
mod query;
mod resource;
mod store;
mod trim;
mod watch;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::time::{Instant as Deadline, sleep_until};

use super::state::SourceState;
use super::{Batch, Feed, Generation, SourceError, SourceQuery};
use access::Access;
pub use backoff::jitter;
pub(super) use client::client;
use gather::{Gatherer, WatchEvent};
use query::{PendingQuery, QueryResult};
pub use resource::Resource;
use watch::Watcher;

/// Maximum number of watch events processed at a time.
const MAX_EVENTS: usize = 4096;

/// Time limits and page size of the source.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The first requests are spread over this time, because all agents of a cluster may start at once.
    pub start_jitter: Duration,
    /// Time limit for the start of a response.
    pub response_timeout: Duration,
    /// Idle timeout of lists, and of watches over HTTP/1.1, which has no pings.
    pub idle_timeout: Duration,
    /// Watches are renewed after a random time, between this time and twice this time.
    pub watch_timeout: Duration,
    /// After an outage longer than this, watches do not resume but list everything again. The API server compacts its
    /// history every five minutes, so a watch can rarely resume after a longer outage.
    pub max_resume_age: Duration,
    /// Idle timeout of streaming lists.
    pub streaming_list_idle_timeout: Duration,
    /// Number of objects in a page.
    pub page_size: u32,
    /// Whether streaming lists are tried first.
    pub streaming: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            start_jitter: Duration::from_millis(500),
            response_timeout: Duration::from_secs(15),
            idle_timeout: Duration::from_secs(100),
            watch_timeout: Duration::from_mins(5),
            max_resume_age: Duration::from_mins(5),
            streaming_list_idle_timeout: Duration::from_secs(10),
            page_size: 500,
            streaming: true,
        }
    }
}

/// Watches the cluster of a kubeconfig. Without a kubeconfig, watches the cluster in which the agent runs. If the agent
/// does not run in a cluster, watches the cluster of the default kubeconfig.
///
/// # Errors
/// If the credentials cannot be read. An unavailable API server is not an error; the source retries.
pub fn start(kubeconfig: Option<PathBuf>, options: Options) -> Result<Feed, SourceError> {
    let access = Arc::new(Access::open(kubeconfig, options.response_timeout)?);
    let state = SourceState::default();
    let (event_sender, events) = mpsc::channel(MAX_EVENTS);
    for resource in Resource::ALL {
        // Adds the resource to the state. Its objects are not listed yet.
        state.update(resource.plural(), |_| {});
        let watcher = Watcher::new(resource, access.clone(), event_sender.clone(), options, state.clone());
        tokio::spawn(watcher.run());
    }
    let (sender, batches) = mpsc::channel(16);
    let (queries, received_queries) = mpsc::channel(16);
    let (result_sender, query_results) = mpsc::channel(16);
    let source = Source {
        gatherer: Gatherer::new(&Resource::ALL),
        access,
        state: state.clone(),
        generation: Generation::default(),
        query_results: result_sender,
        pending: Vec::new(),
    };
    tokio::spawn(source.run(Inputs { events, queries: received_queries, query_results }, sender));
    Ok(Feed { batches, queries, state })
}

/// What the task of the source receives.
struct Inputs {
    events: mpsc::Receiver<(Resource, WatchEvent)>,
    /// Queries of the agent for the state of objects.
    queries: mpsc::Receiver<SourceQuery>,
    /// The responses of the API server to these queries.
    query_results: mpsc::Receiver<QueryResult>,
}

struct Source {
    gatherer: Gatherer,
    access: Arc<Access>,
    state: SourceState,
    /// The number of the last batch.
    generation: Generation,
    query_results: mpsc::Sender<QueryResult>,
    /// Queries that wait until the watches have delivered the object versions that the API server returned.
    pending: Vec<PendingQuery>,
}

impl Source {
    async fn run(mut self, mut inputs: Inputs, batches: mpsc::Sender<Batch>) {
        let mut received = Vec::new();
        loop {
            let wake = self.gatherer.resync_at();
            tokio::select! {
                count = inputs.events.recv_many(&mut received, MAX_EVENTS) => {
                    if count == 0 {
                        return;
                    }
                    let now = Instant::now();
                    for (resource, event) in received.drain(..) {
                        self.gatherer.process(resource, event, now);
                    }
                }
                () = sleep_until(wake.map_or_else(Deadline::now, Deadline::from_std)), if wake.is_some() => {}
                Some(query) = inputs.queries.recv() => query::start(query, self.access.clone(), self.query_results.clone()),
                Some(result) = inputs.query_results.recv() => self.pending.extend(result.into_pending(&self.gatherer)),
            }
            for bundle in self.gatherer.due(Instant::now()) {
                self.generation.0 += 1;
                let gather::Bundle { events, after_resync, received } = bundle;
                if batches.send(Batch { generation: self.generation, events, after_resync, received }).await.is_err() {
                    return;
                }
            }
            self.answer_queries();
            self.update_state();
        }
    }

    fn answer_queries(&mut self) {
        let (gatherer, generation) = (&self.gatherer, self.generation);
        self.pending.retain_mut(|query| !query.try_answer(gatherer, generation));
    }

    fn update_state(&self) {
        for resource in Resource::ALL {
            let (in_sync, objects) = self.gatherer.sync_and_size(resource);
            self.state.update(resource.plural(), |kind| (kind.in_sync, kind.objects) = (in_sync, objects));
        }
    }
}
