//! Queues compile jobs and writes, in order. The agent's main loop executes a few writes at a time, and handles
//! interfaces, finished operations and API requests in between.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use netpol_policy::cluster_state::Event;
use netpol_policy::model::PodKey;
use netpol_policy::tables::{Change, EndpointPolicy};

use super::compiler::{Compiled, Compiler, Job, Step, Task, placeholder};
use super::history::ended_suspensions;
use super::pods::Ticket;
use super::{Reconciler, all_policies, failures};
use netpol_dataplane::Dataplane;
use netpol_source::{Batch, Generation};

/// Number of changes that are written between two checks of the clock. Writing them takes about 0.1 ms.
const CHANGES_PER_CHECK: usize = 64;

/// The batches that a job or its writes come from.
#[derive(Clone, Debug, Default)]
pub struct Origin {
    /// Numbers of the batches, and when the agent received them.
    pub batches: Vec<(Generation, Instant)>,
    /// Whether the job compiles the first objects after the start.
    pub start: bool,
    /// Time that compiling and writing took. Set when both are done.
    pub took: Duration,
}

/// A pending compile job. The job includes all changes of this node's pods up to the change with the number `ticket`.
#[derive(Debug)]
pub(super) struct Pending {
    job: Job,
    origin: Origin,
    ticket: Ticket,
}

/// A pending write. Writes are executed in order.
#[derive(Debug)]
pub(super) enum Write {
    /// Changes of map entries and endpoints, and whether one of the changes frees space in a map.
    Changes(std::vec::IntoIter<Change>, bool),
    /// Sets the policies of all endpoints.
    SetPolicies(BTreeMap<PodKey, EndpointPolicy>, Ticket),
    /// Retries writing failed entries. The value of each entry is read only when the entry is written.
    Retry(std::vec::IntoIter<failures::EntryKey>),
    /// Marks the end of a job. The [`Instant`] is the time when the job began.
    Done(Origin, Ticket, Instant),
}

/// Pending compile jobs and writes.
#[derive(Debug)]
pub(super) struct Work {
    pub(super) compiler: Compiler,
    backlog: VecDeque<Pending>,
    /// Origin and ticket of the job that the engine runs now, and when the job began.
    compiling: Option<(Origin, Ticket, Instant)>,
    /// With [`Compiler::Manual`] or [`Compiler::Inline`]: the job that waits to be run.
    waiting_task: Option<Task>,
    writes: VecDeque<Write>,
    finished: Vec<Origin>,
}

impl Work {
    pub(super) fn new(compiler: Compiler) -> Self {
        Self {
            compiler,
            backlog: VecDeque::new(),
            compiling: None,
            waiting_task: None,
            writes: VecDeque::new(),
            finished: Vec::new(),
        }
    }

    /// Queues a compile job. If the last queued job also applies events, adds the events to that job.
    pub(super) fn push(&mut self, job: Job, origin: Origin, ticket: Ticket) {
        let job = match job {
            Job::Apply(more) => match self.backlog.back_mut() {
                Some(Pending { job: Job::Apply(events), origin: pending, ticket: last }) => {
                    events.extend(more);
                    pending.batches.extend(origin.batches);
                    *last = ticket;
                    return;
                }
                _ => Job::Apply(more),
            },
            other => other,
        };
        self.backlog.push_back(Pending { job, origin, ticket });
    }

    fn is_idle(&self) -> bool {
        self.backlog.is_empty() && self.compiling.is_none() && self.writes.is_empty()
    }
}

impl<D: Dataplane> Reconciler<D> {
    /// Queues a batch of a source, and immediately does what needs no compilation.
    pub fn apply_batch(&mut self, batch: Batch) {
        self.history.received(&batch, false);
        let Batch { generation, events, after_resync, received } = batch;
        let origin = Origin { batches: vec![(generation, received)], ..Origin::default() };
        let job = if after_resync { Job::Resync } else { Job::Apply };
        self.submit(events, job, origin);
    }

    /// Applies events.
    pub fn apply(&mut self, events: Vec<Event>) {
        self.submit(events, Job::Apply, Origin::default());
    }

    /// Applies the difference that was found after an outage of the source. If these events were applied one by one,
    /// the tables could pass through states that never existed in the cluster, and that allow or deny too much.
    pub fn resync(&mut self, events: Vec<Event>) {
        self.submit(events, Job::Resync, Origin::default());
    }

    fn submit(&mut self, events: Vec<Event>, job: impl FnOnce(Vec<Event>) -> Job, origin: Origin) {
        let mut local_pods_changed = false;
        for event in &events {
            local_pods_changed |= self.pods.apply(event);
        }
        let ticket = self.pods.ticket();
        self.work.push(job(events), origin, ticket);
        if !matches!(self.work.compiler, Compiler::Thread(_)) {
            self.advance();
        }
        if local_pods_changed && self.is_busy() {
            self.reconcile(false);
        }
    }

    /// Starts the next job. With an inline compiler, runs all pending jobs.
    pub fn advance(&mut self) {
        if !matches!(self.work.compiler, Compiler::Inline) {
            self.start_next_job();
            return;
        }
        loop {
            while self.execute(Duration::MAX) {}
            self.start_next_job();
            let Some(task) = self.work.waiting_task.take() else { break };
            self.compiled(task.run());
        }
        self.work.finished.clear();
    }

    /// Starts the next compile job, if all writes of the last job are done. A job may replace the engine with a new
    /// one, which must not allocate IDs that pending writes use.
    fn start_next_job(&mut self) {
        if self.work.compiling.is_some() || !self.work.writes.is_empty() {
            return;
        }
        let Some(Pending { job, origin, ticket }) = self.work.backlog.pop_front() else { return };
        self.store_rule_set_names();
        // The job gets the engine. Until the job ends, an empty engine takes its place.
        let placeholder = placeholder(self.scope());
        let engine = std::mem::replace(&mut self.engine, placeholder);
        let endpoints = self.pod_endpoints().map(|pod_endpoint| pod_endpoint.endpoint).collect();
        let task = Task { engine, job, endpoints, stats: self.stats.clone() };
        self.work.compiling = Some((origin, ticket, Instant::now()));
        match &self.work.compiler {
            Compiler::Thread(worker) => worker.send(task),
            Compiler::Inline | Compiler::Manual => self.work.waiting_task = Some(task),
        }
    }

    /// Takes the engine back from the compiler, and queues the writes.
    pub fn compiled(&mut self, compiled: Compiled) {
        let Compiled { engine, step, stats, omitted } = compiled;
        self.engine = engine;
        self.stats = stats;
        self.shortage.review(omitted);
        let suspensions = self.suspensions.clone();
        self.log_suspensions();
        let ended = ended_suspensions(&suspensions, &self.suspensions, jiff::Timestamp::now().into());
        self.jobs_compiled += 1;
        let Some((origin, ticket, begun)) = self.work.compiling.take() else { return };
        self.history.begin(&origin.batches, ended);
        let changes = |changes: Vec<Change>| {
            let makes_room = changes.iter().any(failures::makes_room);
            Write::Changes(changes.into_iter(), makes_room)
        };
        match step {
            Step::Writes(writes) => self.work.writes.push_back(changes(writes)),
            Step::Migration { before, policies, after } => {
                self.work.writes.push_back(changes(before));
                self.work.writes.push_back(Write::SetPolicies(policies, ticket));
                self.work.writes.push_back(changes(after));
            }
        }
        self.work.writes.push_back(Write::Done(origin, ticket, begun));
        // Before the IDs are used up, the engine is replaced.
        if self.engine.needs_successor() && !self.work.backlog.iter().any(|pending| matches!(pending.job, Job::Renew)) {
            self.work.push(Job::Renew, Origin::default(), ticket);
        }
    }

    /// With [`Compiler::Manual`]: runs the pending job; returns false if there is none. The writes are left to
    /// [`Self::execute`].
    pub fn compile(&mut self) -> bool {
        let Some(task) = self.work.waiting_task.take() else { return false };
        self.compiled(task.run());
        true
    }

    /// Executes pending writes for about the time `budget`. Returns whether more writes are pending.
    pub fn execute(&mut self, budget: Duration) -> bool {
        let begun = Instant::now();
        while let Some(mut write) = self.work.writes.pop_front() {
            match &mut write {
                Write::Changes(changes, makes_room) => {
                    for change in changes.by_ref().take(CHANGES_PER_CHECK) {
                        self.execute_change(change);
                    }
                    if changes.len() > 0 {
                        self.work.writes.push_front(write);
                    } else if *makes_room && !self.failures.is_empty() {
                        self.queue_retry();
                    }
                }
                Write::Retry(entries) => {
                    for entry in entries.by_ref().take(CHANGES_PER_CHECK) {
                        if let Some(change) = self.failures.change(&entry) {
                            self.write(&change);
                        }
                    }
                    if entries.len() > 0 {
                        self.work.writes.push_front(write);
                    } else {
                        self.reconcile(false);
                    }
                }
                Write::SetPolicies(policies, ticket) => {
                    self.policies = std::mem::take(policies);
                    self.rule_set_names_stale = true;
                    self.pods.record_compiled(*ticket);
                    self.starting = None;
                    self.reconcile(false);
                }
                Write::Done(origin, ticket, job_begun) => {
                    self.pods.record_compiled(*ticket);
                    self.reconcile(false);
                    // Writes between this job and the next one belong to no batch.
                    self.history.begin(&[], Vec::new());
                    origin.took = job_begun.elapsed();
                    self.work.finished.push(std::mem::take(origin));
                }
            }
            if begun.elapsed() >= budget {
                break;
            }
        }
        !self.work.writes.is_empty()
    }

    /// Queues a retry of failed entries. The value of each entry is read only when the entry is written, because the
    /// value may change before.
    pub(super) fn queue_retry(&mut self) {
        if !self.work.writes.iter().any(|write| matches!(write, Write::Retry(_))) {
            self.work.writes.push_front(Write::Retry(self.failures.entries().into_iter()));
        }
    }

    /// Stores the names of the policies of each rule set in use, because the engine is not available while it is
    /// compiling.
    fn store_rule_set_names(&mut self) {
        if !std::mem::replace(&mut self.rule_set_names_stale, false) {
            return;
        }
        let desired = self
            .policies
            .values()
            .flat_map(|policy| [policy.ingress, policy.egress, policy.shadow_ingress, policy.shadow_egress]);
        let current = self.pod_endpoints().flat_map(|pod_endpoint| all_policies(&pod_endpoint.endpoint));
        let used: BTreeSet<_> = desired.chain(current).map(|direction| direction.rule_set).collect();
        self.rule_set_names.retain(|rule_set, _| used.contains(rule_set));
        for rule_set in used {
            if let Some(policies) = self.engine.rule_set(rule_set) {
                self.rule_set_names.entry(rule_set).or_insert_with(|| policies.to_vec());
            }
        }
    }

    /// Returns the origins of the jobs that finished since the last call.
    pub fn finished(&mut self) -> Vec<Origin> {
        std::mem::take(&mut self.work.finished)
    }

    /// Returns whether jobs or writes are pending.
    pub fn is_busy(&self) -> bool {
        !self.work.is_idle()
    }

    /// Returns whether the next compile job can start.
    pub fn can_start_job(&self) -> bool {
        self.has_engine() && self.work.writes.is_empty() && !self.work.backlog.is_empty()
    }

    /// Returns how long the current compile job has taken so far.
    pub fn compiling_for(&self) -> Option<Duration> {
        self.work.compiling.as_ref().map(|(_, _, begun)| begun.elapsed())
    }

    /// Returns whether the first objects are still being compiled.
    pub fn is_starting(&self) -> bool {
        self.starting.is_some()
    }

    /// Returns whether the engine is available. It is not available while it is compiling.
    pub fn has_engine(&self) -> bool {
        self.work.compiling.is_none()
    }
}
