//! What is to be compiled, and what is to be written, in order. Both wait here: the loop does a slice of writes at a time, and
//! serves interfaces, outcomes and questions in between.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use netpol_common::IfIndex;
use netpol_policy::model::PodKey;
use netpol_policy::tables::{Change, EndpointPolicy};
use netpol_policy::world::Event;

use super::compiler::{Compiled, Compiler, Job, Step, Task, placeholder};
use super::pods::Ticket;
use super::{Reconciler, failures};
use crate::dataplane::Dataplane;
use crate::source::{Batch, Revision};

/// So many writes between two looks at the clock: about 0.1 ms.
const BETWEEN_LOOKS: usize = 64;

/// Which batches a piece of work is about.
#[derive(Clone, Debug, Default)]
pub struct Origin {
    /// Their numbers, and when they reached the agent.
    pub batches: Vec<(Revision, Instant)>,
    /// They are what was known at the start.
    pub start: bool,
    /// How long the writes and the compile took, once both are done.
    pub took: Duration,
}

/// Waits to be compiled.
#[derive(Debug)]
pub(super) struct Pending {
    job: Job,
    origin: Origin,
    ticket: Ticket,
}

/// Waits to be written. Executed from the first to the last.
#[derive(Debug)]
pub(super) enum Write {
    /// Table entries and endpoints; whether one of them makes room.
    Changes(std::vec::IntoIter<Change>, bool),
    /// All endpoints get these policies.
    Flip(BTreeMap<PodKey, EndpointPolicy>, Ticket),
    /// Entries that failed, tried again as they are wanted by then.
    Retry(std::vec::IntoIter<failures::Entry>),
    /// Detach what an earlier agent left on interfaces that nothing needs.
    Strays(Vec<IfIndex>),
    /// All of it is written.
    Done(Origin, Ticket, Instant),
}

/// See the module.
#[derive(Debug)]
pub(super) struct Work {
    pub(super) compiler: Compiler,
    backlog: VecDeque<Pending>,
    /// What the engine does now, and since when.
    compiling: Option<(Origin, Ticket, Instant)>,
    /// With [`Compiler::Manual`]: the job that was given to it.
    held: Option<Task>,
    writes: VecDeque<Write>,
    /// What an earlier agent left, until the first compile.
    pub(super) strays: Vec<IfIndex>,
    finished: Vec<Origin>,
}

impl Work {
    pub(super) fn new(compiler: Compiler) -> Self {
        Self {
            compiler,
            backlog: VecDeque::new(),
            compiling: None,
            held: None,
            writes: VecDeque::new(),
            strays: Vec::new(),
            finished: Vec::new(),
        }
    }

    /// Adds to what is to be compiled. Single steps that wait together are compiled together.
    pub(super) fn push(&mut self, job: Job, origin: Origin, ticket: Ticket) {
        let job = match job {
            Job::Apply(more) => match self.backlog.back_mut() {
                Some(Pending { job: Job::Apply(events), origin: known, ticket: last }) => {
                    events.extend(more);
                    known.batches.extend(origin.batches);
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
    /// Takes a batch of a source in, and enforces what follows as far as it can be had at once.
    pub fn take_in(&mut self, batch: Batch) {
        let Batch { revision, events, after_gap, received } = batch;
        let origin = Origin { batches: vec![(revision, received)], ..Origin::default() };
        let job = if after_gap { Job::Resync } else { Job::Apply };
        self.submit(events, job, origin);
    }

    /// Takes objects in and enforces what they say.
    pub fn apply(&mut self, events: Vec<Event>) {
        self.submit(events, Job::Apply, Origin::default());
    }

    /// Takes in what became different while the source was away. Taken in one by one, such events would pass through mixtures
    /// of before and after that may allow or deny what neither does.
    pub fn jump(&mut self, events: Vec<Event>) {
        self.submit(events, Job::Resync, Origin::default());
    }

    fn submit(&mut self, events: Vec<Event>, job: impl FnOnce(Vec<Event>) -> Job, origin: Origin) {
        let mut local = false;
        for event in &events {
            local |= self.pods.apply(event);
        }
        let ticket = self.pods.ticket();
        self.work.push(job(events), origin, ticket);
        if !matches!(self.work.compiler, Compiler::Thread(_)) {
            self.advance();
        }
        if local && self.is_busy() {
            self.settle();
        }
    }

    /// Begins what is to be done next; does all of it where the compiler is inline.
    pub fn advance(&mut self) {
        if !matches!(self.work.compiler, Compiler::Inline) {
            self.give();
            return;
        }
        loop {
            while self.execute(Duration::MAX) {}
            self.give();
            let Some(task) = self.work.held.take() else { break };
            self.compiled(task.run());
        }
        self.work.finished.clear();
    }

    /// Gives the engine its next job. Not before all that follows from its last one is written: a new engine must know the
    /// ids in the dataplane.
    fn give(&mut self) {
        if self.work.compiling.is_some() || !self.work.writes.is_empty() {
            return;
        }
        let Some(Pending { job, origin, ticket }) = self.work.backlog.pop_front() else { return };
        self.note_names();
        let placeholder = placeholder(self.scope());
        let engine = std::mem::replace(&mut self.engine, placeholder);
        let endpoints = self.held.values().map(|held| held.endpoint).collect();
        let task = Task { engine, job, endpoints, facts: self.facts.clone() };
        self.work.compiling = Some((origin, ticket, Instant::now()));
        match &self.work.compiler {
            Compiler::Thread(worker) => worker.give(task),
            Compiler::Inline | Compiler::Manual => self.work.held = Some(task),
        }
    }

    /// Takes the engine back, with what is to be written.
    pub fn compiled(&mut self, compiled: Compiled) {
        let Compiled { engine, step, facts, left_out } = compiled;
        self.engine = engine;
        self.facts = facts;
        self.shortage.review(left_out);
        let Some((origin, ticket, begun)) = self.work.compiling.take() else { return };
        let changes = |changes: Vec<Change>| {
            let makes_room = changes.iter().any(failures::makes_room);
            Write::Changes(changes.into_iter(), makes_room)
        };
        match step {
            Step::Writes(writes) => self.work.writes.push_back(changes(writes)),
            Step::Switch { before, policies, after } => {
                self.work.writes.push_back(changes(before));
                self.work.writes.push_back(Write::Flip(policies, ticket));
                self.work.writes.push_back(changes(after));
            }
        }
        let strays = std::mem::take(&mut self.work.strays);
        self.work.writes.push_back(Write::Done(origin, ticket, begun));
        if !strays.is_empty() {
            self.work.writes.push_back(Write::Strays(strays));
        }
        if self.engine.is_worn() && !self.work.backlog.iter().any(|pending| matches!(pending.job, Job::Renew)) {
            self.work.push(Job::Renew, Origin::default(), ticket);
        }
    }

    /// With [`Compiler::Manual`]: runs the job that is pending; false where there is none. The writes are left to
    /// [`Self::execute`].
    pub fn compile(&mut self) -> bool {
        let Some(task) = self.work.held.take() else { return false };
        self.compiled(task.run());
        true
    }

    /// Executes what is to be written, for as long as `budget` says; returns whether there is more.
    pub fn execute(&mut self, budget: Duration) -> bool {
        let begun = Instant::now();
        while let Some(mut write) = self.work.writes.pop_front() {
            match &mut write {
                Write::Changes(changes, makes_room) => {
                    for change in changes.by_ref().take(BETWEEN_LOOKS) {
                        self.make(change);
                    }
                    if changes.len() > 0 {
                        self.work.writes.push_front(write);
                    } else if *makes_room && !self.failures.is_empty() {
                        self.want_retry();
                    }
                }
                Write::Retry(entries) => {
                    for entry in entries.by_ref().take(BETWEEN_LOOKS) {
                        if let Some(change) = self.failures.change(&entry) {
                            self.write(&change);
                        }
                    }
                    if entries.len() > 0 {
                        self.work.writes.push_front(write);
                    } else {
                        self.settle();
                    }
                }
                Write::Flip(policies, ticket) => {
                    self.policies = std::mem::take(policies);
                    self.names_stale = true;
                    self.pods.evaluated(*ticket);
                    self.early.clear();
                    self.starting = false;
                    self.settle();
                }
                Write::Strays(strays) => self.detach_strays(std::mem::take(strays)),
                Write::Done(origin, ticket, began) => {
                    self.pods.evaluated(*ticket);
                    self.settle();
                    origin.took = began.elapsed();
                    self.work.finished.push(std::mem::take(origin));
                }
            }
            if begun.elapsed() >= budget {
                break;
            }
        }
        !self.work.writes.is_empty()
    }

    /// Tries again what did not fit. What each entry is to be is asked when it is its turn: it may be written by then.
    pub(super) fn want_retry(&mut self) {
        if !self.work.writes.iter().any(|write| matches!(write, Write::Retry(_))) {
            self.work.writes.push_front(Write::Retry(self.failures.entries().into_iter()));
        }
    }

    /// Remembers the policies of each rule set in use, for the time while the engine is away.
    fn note_names(&mut self) {
        if !std::mem::replace(&mut self.names_stale, false) {
            return;
        }
        let desired = self.policies.values().flat_map(|policy| [policy.ingress, policy.egress]);
        let held = self.held.values().flat_map(|held| [held.endpoint.ingress, held.endpoint.egress]);
        let used: BTreeSet<_> = desired.chain(held).map(|direction| direction.rule_set).collect();
        self.names.retain(|rule_set, _| used.contains(rule_set));
        for rule_set in used {
            if let Some(policies) = self.engine.rule_set(rule_set) {
                self.names.entry(rule_set).or_insert_with(|| policies.to_vec());
            }
        }
    }

    /// What was finished since the last call.
    pub fn finished(&mut self) -> Vec<Origin> {
        std::mem::take(&mut self.work.finished)
    }

    /// Whether something that was taken in is not compiled and written yet.
    pub fn is_busy(&self) -> bool {
        !self.work.is_idle()
    }

    /// Whether the engine could be given another job.
    pub fn is_due(&self) -> bool {
        self.has_engine() && self.work.writes.is_empty() && !self.work.backlog.is_empty()
    }

    /// How long the job that the engine has now has taken so far.
    pub fn evaluating(&self) -> Option<Duration> {
        self.work.compiling.as_ref().map(|(_, _, begun)| begun.elapsed())
    }

    /// Whether the first objects are still being compiled.
    pub fn is_starting(&self) -> bool {
        self.starting
    }

    /// Whether writes wait to be executed.
    pub fn has_writes(&self) -> bool {
        !self.work.writes.is_empty()
    }

    /// Whether the engine is here, to be asked for names; otherwise it is with the compiler.
    pub fn has_engine(&self) -> bool {
        self.work.compiling.is_none()
    }
}
