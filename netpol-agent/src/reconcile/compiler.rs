//! Runs the engine, on a thread of its own: a compile may take as long as it takes, and the loop goes on meanwhile.
//!
//! The engine travels: it is sent to the thread with a job and comes back with the writes. While it is away the loop works
//! with what it has itself: the pods of this node ([`super::pods`]) and the policies that are enforced.

use std::collections::BTreeMap;
use std::io;
use std::time::{Duration, Instant};

use netpol_common::Endpoint;
use netpol_policy::compile::{Engine, FirstIds, LeftOut, NodeScope};
use netpol_policy::model::{PodKey, PolicyKey};
use netpol_policy::tables::{Change, EndpointPolicy};
use netpol_policy::world::Event;

use super::Options;
use super::jump::{free_ids, snapshot_of};
use crate::dataplane::MapName;
use crate::dataplane::switch::{Snapshot, plan};
use crate::worker::{Outcomes, Worker};

/// Numbers about the engine's content are counted anew at most this often: it takes a look at all of it.
const COUNT: Duration = Duration::from_secs(1);

/// Where compile jobs run.
#[derive(Debug)]
pub enum Compiler {
    /// At once, in the caller: nothing is ever pending.
    Inline,
    /// When [`Reconciler::compile`](super::Reconciler::compile) is called: tests see what holds meanwhile.
    Manual,
    /// On this thread.
    Thread(Worker<Task>),
}

impl Compiler {
    /// Starts a thread for compile jobs.
    ///
    /// # Errors
    /// Where the kernel refuses one.
    pub fn start() -> io::Result<(Self, Outcomes<Compiled>)> {
        let (worker, compiled) = Worker::start("compile", "compiles policies", Task::run)?;
        Ok((Self::Thread(worker), compiled))
    }
}

/// What the engine is to do.
#[derive(Debug)]
pub(super) enum Job {
    /// Compile these objects, to replace the tables of an earlier agent.
    Start(Box<Snapshot>, Vec<Event>),
    /// Take these events in, one after the other.
    Apply(Vec<Event>),
    /// Take these events in as one step: they are what differs after a gap.
    Resync(Vec<Event>),
    /// Start again with fresh ids.
    Renew,
}

/// A job, and the engine that does it.
#[derive(Debug)]
pub struct Task {
    pub(super) engine: Box<Engine>,
    pub(super) job: Job,
    /// Endpoints in the dataplane, whose ids a new engine must not give away.
    pub(super) endpoints: Vec<Endpoint>,
    pub(super) facts: Facts,
}

/// The engine after its job, and what is to be written.
#[derive(Debug)]
pub struct Compiled {
    pub(super) engine: Box<Engine>,
    pub(super) step: Step,
    pub(super) facts: Facts,
    /// The policies that are enforced in part.
    pub(super) left_out: BTreeMap<PolicyKey, LeftOut>,
}

/// How the dataplane follows the engine.
#[derive(Debug)]
pub(super) enum Step {
    /// One write after the other.
    Writes(Vec<Change>),
    /// From the tables of one engine to those of another.
    Switch { before: Vec<Change>, policies: BTreeMap<PodKey, EndpointPolicy>, after: Vec<Change> },
}

/// Numbers for metrics, for the time while the engine is away.
#[derive(Clone, Debug, Default)]
pub(super) struct Facts {
    counted: Option<Instant>,
    /// How many entries each table should have.
    pub(super) entries: BTreeMap<MapName, usize>,
    /// Invalid fields of policies.
    pub(super) problems: usize,
}

impl Facts {
    fn refresh(&mut self, engine: &Engine) {
        if self.counted.is_none_or(|at| at.elapsed() >= COUNT) {
            *self = Self { counted: Some(Instant::now()), entries: entries(engine), problems: problems(engine) };
        }
    }
}

/// How many entries each table should have.
pub(super) fn entries(engine: &Engine) -> BTreeMap<MapName, usize> {
    let mut entries = BTreeMap::new();
    for change in engine.tables().entries() {
        if let Some(map) = MapName::written_by(&change) {
            *entries.entry(map).or_default() += 1;
        }
    }
    entries
}

/// How many fields of policies are invalid.
pub(super) fn problems(engine: &Engine) -> usize {
    engine.world().policies.values().map(|policy| policy.problems.len()).sum()
}

impl Task {
    /// Does the job.
    pub(super) fn run(self) -> Compiled {
        let Self { mut engine, job, endpoints, mut facts } = self;
        let step = match job {
            Job::Start(old, events) => {
                engine.apply_all(events);
                let step = switch(&old, &engine);
                trim();
                step
            }
            Job::Apply(events) => Step::Writes(engine.apply_all(events)),
            Job::Resync(events) => match engine.one_step(events.clone()) {
                Some(events) => Step::Writes(engine.apply_all(events)),
                None => succeed(&mut engine, events, &endpoints),
            },
            Job::Renew => succeed(&mut engine, Vec::new(), &endpoints),
        };
        facts.refresh(&engine);
        let left_out = engine.left_out();
        Compiled { engine, step, facts, left_out }
    }
}

/// An engine without objects, whose ids are none of those in `old` tables and endpoints.
pub(super) fn empty<'a>(
    options: &Options,
    old: &Snapshot,
    endpoints: impl IntoIterator<Item = &'a Endpoint>,
) -> Box<Engine> {
    let scope = NodeScope::Node(options.node.clone());
    Box::new(Engine::new(scope, free_ids(old, endpoints)).with_policy_memory(options.policy_memory))
}

/// Stands in for the engine while that is away.
pub(super) fn placeholder(scope: NodeScope) -> Box<Engine> {
    Box::new(Engine::new(scope, FirstIds::default()))
}

/// Goes on with a new engine.
fn succeed(engine: &mut Box<Engine>, events: Vec<Event>, endpoints: &[Endpoint]) -> Step {
    let mut old = snapshot_of(engine.tables());
    // Those of pods that are gone go on.
    for endpoint in endpoints {
        old.note_egress(endpoint.egress);
    }
    // A rule set that allows nothing stands in its endpoints alone.
    let desired = engine.tables().endpoints().map(|(_, policy)| Endpoint {
        ingress: policy.ingress,
        egress: policy.egress,
        ..Endpoint::default()
    });
    let used: Vec<Endpoint> = endpoints.iter().copied().chain(desired).collect();
    let next = engine.successor(events, free_ids(&old, &used));
    **engine = next;
    switch(&old, engine)
}

/// From `old` tables to those of an engine, whose ids are none of those in there.
fn switch(old: &Snapshot, engine: &Engine) -> Step {
    let switch = plan(old, &snapshot_of(engine.tables()));
    let policies = engine.tables().endpoints().map(|(pod, policy)| (pod.clone(), policy)).collect();
    Step::Switch { before: switch.before, policies, after: switch.after }
}

/// Gives back what parsing and loading took and no longer need; the agent keeps far less for the rest of its life.
fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes a number, and touches memory that is free only.
    unsafe {
        libc::malloc_trim(0);
    }
}
