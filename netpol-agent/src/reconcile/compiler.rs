//! Runs the engine (the compiler of policies) on a separate thread: compilation can take long, and must not block the
//! main loop.
//!
//! The main loop moves the engine and a job to the thread. The thread returns the engine and the changes of the maps
//! (the writes). Until then, the loop has no engine. It uses its own index of this node's pods ([`super::pods`]), and
//! the policies that are already enforced.

use std::collections::BTreeMap;
use std::io;
use std::time::{Duration, Instant};

use netpol_common::Endpoint;
use netpol_policy::cluster_state::Event;
use netpol_policy::compile::{Engine, FirstIds, NodeScope, Omitted};
use netpol_policy::model::{PodKey, PolicyKey};
use netpol_policy::tables::{Change, EndpointPolicy};

use super::Options;
use super::migration_input::{free_ids, snapshot_of};
use netpol_dataplane::MapName;
use netpol_dataplane::migration::{Snapshot, plan};
use netpol_node::worker::{Outcomes, Worker};

/// Minimum time between two updates of [`EngineStats`]: each update reads all tables and policies.
const COUNT_INTERVAL: Duration = Duration::from_secs(1);

/// Where and when compile jobs run.
#[derive(Debug)]
pub enum Compiler {
    /// Immediately, on the current thread: no job is ever pending.
    Inline,
    /// On the current thread, when a test calls [`Reconciler::compile`](super::Reconciler::compile). So the test can
    /// check the state before the job runs.
    Manual,
    /// On the thread of this worker.
    Thread(Worker<Task>),
}

impl Compiler {
    /// Starts a thread for compile jobs.
    ///
    /// # Errors
    /// If the thread cannot be started.
    pub fn start() -> io::Result<(Self, Outcomes<Compiled>)> {
        let (worker, compiled) = Worker::start("compile", "compiles policies", Task::run)?;
        Ok((Self::Thread(worker), compiled))
    }
}

/// A job for the engine.
#[derive(Debug)]
pub(super) enum Job {
    /// Compile the first objects (the events), and replace the tables of an earlier agent (the snapshot).
    Start(Box<Snapshot>, Vec<Event>),
    /// Apply these events one by one.
    Apply(Vec<Event>),
    /// Apply these events, which are all changes during an outage of the API server. No mix of old and new objects may
    /// be enforced: the events are applied in a safe order, or the engine is replaced.
    Resync(Vec<Event>),
    /// Replace the engine with one that has the same objects and new IDs, before the IDs are used up.
    Renew,
}

/// A job, and the engine that runs it.
#[derive(Debug)]
pub struct Task {
    pub(super) engine: Box<Engine>,
    pub(super) job: Job,
    /// Endpoints in the data plane. A new engine must not allocate the IDs of the rule sets and port sets that these
    /// endpoints use.
    pub(super) endpoints: Vec<Endpoint>,
    pub(super) stats: EngineStats,
}

/// The engine after its job, and the writes.
#[derive(Debug)]
pub struct Compiled {
    pub(super) engine: Box<Engine>,
    pub(super) step: Step,
    pub(super) stats: EngineStats,
    /// Policies that are only partly enforced, because of the memory limit for policies.
    pub(super) omitted: BTreeMap<PolicyKey, Omitted>,
}

/// The writes of a job.
#[derive(Debug)]
pub(super) enum Step {
    /// Changes of the maps, in the order in which they are written.
    Writes(Vec<Change>),
    /// A migration from the tables of one engine to the tables of another. `before` is written first, then the policies
    /// of all endpoints, then `after`.
    Migration { before: Vec<Change>, policies: BTreeMap<PodKey, EndpointPolicy>, after: Vec<Change> },
}

/// Copies of the engine's metrics. They are reported while the compile thread has the engine.
#[derive(Clone, Debug, Default)]
pub(super) struct EngineStats {
    /// When the numbers were read from the engine. `None`: never.
    updated: Option<Instant>,
    /// Number of entries that each map should have.
    pub(super) entries: BTreeMap<MapName, usize>,
    /// Number of invalid fields in policies.
    pub(super) diagnostics: usize,
}

impl EngineStats {
    fn refresh(&mut self, engine: &Engine) {
        if self.updated.is_none_or(|at| at.elapsed() >= COUNT_INTERVAL) {
            *self = Self { updated: Some(Instant::now()), entries: entries(engine), diagnostics: diagnostics(engine) };
        }
    }
}

/// Returns the number of entries that each map should have.
pub(super) fn entries(engine: &Engine) -> BTreeMap<MapName, usize> {
    let mut entries = BTreeMap::new();
    for change in engine.tables().entries() {
        if let Some(map) = MapName::written_by(&change) {
            *entries.entry(map).or_default() += 1;
        }
    }
    entries
}

/// Returns the number of invalid fields in policies.
pub(super) fn diagnostics(engine: &Engine) -> usize {
    engine.cluster_state().policies.values().map(|policy| policy.diagnostics.len()).sum()
}

impl Task {
    /// Runs the job.
    pub(super) fn run(self) -> Compiled {
        let Self { mut engine, job, endpoints, mut stats } = self;
        let step = match job {
            Job::Start(old, events) => {
                engine.apply_all(events);
                let step = migration(&old, &engine);
                release_free_memory();
                step
            }
            Job::Apply(events) => Step::Writes(engine.apply_all(events)),
            Job::Resync(events) => match engine.in_safe_order(events.clone()) {
                Some(events) => Step::Writes(engine.apply_all(events)),
                None => replace_engine(&mut engine, events, &endpoints),
            },
            Job::Renew => replace_engine(&mut engine, Vec::new(), &endpoints),
        };
        stats.refresh(&engine);
        let omitted = engine.omitted();
        Compiled { engine, step, stats, omitted }
    }
}

/// Returns an engine that has no objects yet. It does not allocate the IDs that `old` or `endpoints` use.
pub(super) fn new_engine<'a>(
    options: &Options,
    old: &Snapshot,
    endpoints: impl IntoIterator<Item = &'a Endpoint>,
) -> Box<Engine> {
    let scope = NodeScope::Node(options.node.clone());
    let engine = Engine::new(scope, free_ids(old, endpoints)).with_policy_memory(options.policy_memory);
    Box::new(engine.with_agent_namespace(options.agent_namespace.clone()))
}

/// Returns an empty engine, used while the real one is compiling.
pub(super) fn placeholder(scope: NodeScope) -> Box<Engine> {
    Box::new(Engine::new(scope, FirstIds::default()))
}

/// Replaces the engine with a new engine, which has the same objects, changed by `events`. Returns the migration to the
/// tables of the new engine.
fn replace_engine(engine: &mut Box<Engine>, events: Vec<Event>, endpoints: &[Endpoint]) -> Step {
    let mut old = snapshot_of(engine.tables());
    // The egress rule sets of orphaned endpoints (their pods are deleted) are migrated, too.
    for endpoint in endpoints {
        old.note_egress(endpoint.egress);
        old.note_egress(endpoint.shadow_egress);
    }
    // A rule set that allows nothing has no map entries, so its ID is found only in endpoints. `endpoints` has
    // the endpoints in the data plane. `compiled_endpoints` has those of the old engine. Some of these are possibly not
    // written yet.
    let compiled_endpoints = engine.tables().endpoints().map(|(_, policy)| Endpoint {
        ingress: policy.ingress,
        egress: policy.egress,
        shadow_ingress: policy.shadow_ingress,
        shadow_egress: policy.shadow_egress,
        ..Endpoint::default()
    });
    let used: Vec<Endpoint> = endpoints.iter().copied().chain(compiled_endpoints).collect();
    let next = engine.successor(events, free_ids(&old, &used));
    **engine = next;
    migration(&old, engine)
}

/// Plans the migration from `old` tables to the tables of an engine with other IDs.
fn migration(old: &Snapshot, engine: &Engine) -> Step {
    let migration = plan(old, &snapshot_of(engine.tables()));
    let policies = engine.tables().endpoints().map(|(pod, policy)| (pod.clone(), policy)).collect();
    Step::Migration { before: migration.before, policies, after: migration.after }
}

/// Returns free memory to the kernel. During its start, the agent parses all objects and loads the eBPF programs. This
/// needs far more memory than the agent needs later.
fn release_free_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: the argument is a number, and only free memory is affected.
    unsafe {
        libc::malloc_trim(0);
    }
}
