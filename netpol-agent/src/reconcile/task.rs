//! The loop around a [`Reconciler`]: waits for whatever comes first, drains what else is queued, and settles once. It takes
//! none of the kernel's locks that others hold for long, and compiles nothing: threads do what does. Long lists of writes are
//! executed in slices. So whatever happens, it is back within milliseconds.

use std::path::PathBuf;
use std::time::{Duration, Instant};
use std::{future, io};

use thiserror::Error;
use tokio::sync::mpsc;
use tokio::task::yield_now;
use tokio::time::{Instant as Deadline, sleep_until};

use super::{Compiled, Origin, Reconciler};
use crate::api::{Progress, Question, Readiness, unknown_node};
use crate::dataplane::{InterfaceOutcome, Kernel, RingReader};
use crate::endpoints::{Lookout, Monitor, NetlinkError, PodAddressMonitor};
use crate::events::Reporter;
use crate::metrics::{self, Meter};
use crate::source::Batch;
use crate::worker::{Died, Outcomes};

/// Everything is looked at anew after this long, whatever was told.
const RESYNC: Duration = Duration::from_secs(10);
/// The first look again at what is not there yet; doubles up to [`SLOWEST`].
const FASTEST: Duration = Duration::from_millis(5);
/// While something is waited for: a look takes about a millisecond, and whatever changes here makes it fast again.
const SLOWEST: Duration = Duration::from_secs(2);
/// So long writes are executed before interfaces, outcomes and questions are served again.
const SLICE: Duration = Duration::from_millis(2);
/// Denied packets wait this long for the engine, where it has one job after the other.
const RING_TURN: Duration = Duration::from_millis(50);
/// What has not come after looks that are this far apart is not waited for before the agent calls itself ready.
const LATE: Duration = Duration::from_millis(500);

/// What the loop waits for.
#[derive(Debug)]
pub struct Inputs {
    /// Objects.
    pub source: mpsc::Receiver<Batch>,
    /// Links and addresses.
    pub monitor: Monitor,
    /// Addresses in pods' namespaces.
    pub pod_addresses: PodAddressMonitor,
    /// Looks at them.
    pub lookout: Lookout,
    /// What became of what the dataplane began.
    pub outcomes: Outcomes<InterfaceOutcome>,
    /// The engine, back from each compile job.
    pub compiled: Outcomes<Compiled>,
    /// Denied packets.
    pub ring: RingReader,
    /// Questions for whoever asks.
    pub questions: mpsc::Receiver<Question>,
    /// Told of each change.
    pub progress: Progress,
    /// Written once everything known at the start is enforced.
    pub ready_file: Option<PathBuf>,
}

/// Why the loop cannot go on.
#[derive(Debug, Error)]
pub enum LoopError {
    /// Netlink fails for good.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// A thread is gone.
    #[error(transparent)]
    Died(#[from] Died),
}

/// Runs until `stop` resolves. What is enforced then stays enforced.
///
/// # Errors
/// Where netlink fails for good, or a thread has died.
#[expect(clippy::too_many_lines, reason = "a branch for each of a dozen things that it waits for")]
pub async fn run(
    mut reconciler: Reconciler<Kernel>,
    mut inputs: Inputs,
    mut reporter: Reporter,
    mut meter: Meter,
    stop: impl Future<Output = ()>,
) -> Result<(), LoopError> {
    tokio::pin!(stop);
    inputs.progress.made();
    let mut back_off = FASTEST;
    let mut last_look = Instant::now();
    let mut last_resync = last_look;
    let mut ready = false;
    let mut node_was_unknown = false;
    let (mut source_open, mut ring_open) = (true, true);
    // Questions about the objects, which only the engine knows.
    let mut checks = Vec::new();
    let mut ring_served = last_look;
    loop {
        let more = proceed(&mut reconciler, &mut meter, &mut reporter, &inputs.progress, &mut checks);
        // Where one job follows the other, denied packets have their turn in between.
        let starved = reconciler.is_due() && ring_open && ring_served.elapsed() >= RING_TURN;
        if !starved {
            reconciler.advance();
        }
        let node_unknown = reconciler.is_node_unknown();
        if !ready && !node_unknown && reconciler.pods_waiting() == 0 && !reconciler.is_starting() {
            ready = true;
            tell_ready(&reconciler, inputs.ready_file.as_deref());
        }
        meter.readiness = match (node_unknown, ready) {
            (true, _) => Readiness::UnknownNode,
            (false, true) => Readiness::Ready,
            (false, false) => Readiness::Starting,
        };
        if node_unknown != std::mem::replace(&mut node_was_unknown, node_unknown) {
            if node_unknown {
                tracing::error!("not ready: {}", unknown_node(reconciler.node()));
            } else {
                tracing::info!(node = reconciler.node(), "the Node object of this node is there");
            }
        }
        if reconciler.is_whole() {
            meter.whole();
        }
        inputs.lookout.start_requested(|| reconciler.known());
        let looking = inputs.lookout.is_running();
        let waiting = reconciler.is_waiting();
        // Counted from the last look, and asked for before the ring is: denied packets must put nothing off.
        let next_look = if waiting { last_look + back_off } else { last_resync + RESYNC };
        let overdue = reconciler.next_overdue();
        tokio::select! {
            biased;
            () = &mut stop => return Ok(()),
            batch = inputs.source.recv(), if source_open => {
                let Some(first) = batch else {
                    tracing::error!("the source has ended; what it said last stays in force");
                    source_open = false;
                    continue;
                };
                reconciler.take_in(first);
                while let Ok(more) = inputs.source.try_recv() {
                    reconciler.take_in(more);
                }
                // Interfaces tell by themselves when they change; what is behind one is asked where a pod misses its own.
                if reconciler.is_waiting() {
                    inputs.lookout.request(false);
                }
                back_off = FASTEST;
            }
            outcome = inputs.outcomes.next() => {
                let mut outcomes = vec![outcome?];
                outcomes.extend(std::iter::from_fn(|| inputs.outcomes.ready()));
                reconciler.ended(outcomes);
            }
            survey = inputs.lookout.next_snapshot() => {
                match survey? {
                    Ok(survey) => reconciler.surveyed(survey),
                    Err(error) => reconciler.not_surveyed(&error),
                }
                last_look = Instant::now();
            }
            changed = inputs.monitor.changed() => {
                let changed = changed?;
                reconciler.gone(&changed.gone);
                inputs.lookout.removed(changed.gone);
                reconciler.heard(changed.links);
                let leads_elsewhere = changed.routed.iter().any(|ifindex| !reconciler.is_routed(*ifindex));
                if changed.interfaces || leads_elsewhere {
                    inputs.lookout.add_routed(changed.routed);
                    inputs.lookout.request(changed.anything);
                    back_off = FASTEST;
                }
                if changed.filters {
                    reconciler.verify();
                }
            }
            namespaces = inputs.pod_addresses.changed() => {
                inputs.lookout.request_addresses(reconciler.interfaces_to(&namespaces?));
                continue;
            }
            compiled = inputs.compiled.next() => {
                let compiled = compiled?;
                reconciler.compiled(compiled);
            }
            () = sleep_until(Deadline::from_std(overdue.unwrap_or(last_resync))), if overdue.is_some() => {
                reconciler.settle_overdue();
            }
            () = sleep_until(Deadline::from_std(next_look)), if !looking => {
                if last_resync.elapsed() >= RESYNC {
                    last_resync = Instant::now();
                    reconciler.verify();
                    inputs.lookout.request(true);
                } else {
                    inputs.lookout.request(false);
                }
                if waiting {
                    back_off = (back_off * 2).min(SLOWEST);
                    if back_off > LATE && !reconciler.is_starting() {
                        reconciler.retry();
                        ready_late(&reconciler, &mut ready, inputs.ready_file.as_deref());
                    }
                }
            }
            Some(question) = inputs.questions.recv() => {
                match question {
                    Question::Check(..) if !reconciler.has_engine() => checks.push(question),
                    question => answer(question, &reconciler, &meter, &reporter),
                }
                continue;
            }
            // Before what is less urgent, and after everything that is more: the next slice.
            () = future::ready(()), if more => continue,
            // Names of what is denied are the engine's; meanwhile the ring keeps the events.
            result = inputs.ring.read(|event| reporter.deny(&event, &reconciler)), if ring_open && reconciler.has_engine() => {
                ring_open = is_open(&result);
                ring_served = Instant::now();
                // The ring never runs dry in a flood, and the runtime has more to do than this loop.
                yield_now().await;
                continue;
            }
            () = future::ready(()), if starved => {
                ring_served = Instant::now();
                continue;
            }
        }
        inputs.progress.made();
    }
}

/// Executes a slice of what is to be written; whether there is more. What only the engine knows is asked before it goes away
/// with the next job.
fn proceed(
    reconciler: &mut Reconciler<Kernel>,
    meter: &mut Meter,
    reporter: &mut Reporter,
    progress: &Progress,
    checks: &mut Vec<Question>,
) -> bool {
    let more = reconciler.execute(SLICE);
    let finished = reconciler.finished();
    if !finished.is_empty() {
        note_finished(finished, meter);
        progress.made();
    }
    if reconciler.has_engine() {
        reporter.review(reconciler);
        reporter.summarize(reconciler, |id, direction| meter.counters.suppressed(id, direction).unwrap_or(0));
        for check in checks.drain(..) {
            answer(check, reconciler, meter, reporter);
        }
    }
    more
}

/// Takes note of batches that are enforced now, as far as they can be.
fn note_finished(finished: Vec<Origin>, meter: &mut Meter) {
    for Origin { batches, took, start } in finished {
        for (revision, at) in &batches {
            if start {
                meter.started(*revision);
            } else {
                meter.received(*revision, *at);
            }
        }
        if !start && !batches.is_empty() {
            meter.applied(took);
        }
    }
}

fn is_open(ring: &io::Result<()>) -> bool {
    if let Err(error) = ring {
        tracing::error!(%error, "cannot read the ring buffer; denied packets are counted but not told until the agent is \
            started again");
    }
    ring.is_ok()
}

fn answer(question: Question, reconciler: &Reconciler<Kernel>, meter: &Meter, reporter: &Reporter) {
    // Whoever asked may have gone.
    match question {
        Question::Metrics(asker) => drop(asker.send(metrics::render(reconciler, meter, reporter))),
        Question::Ready(asker) => drop(asker.send(meter.readiness.clone())),
        Question::Status(asker) => drop(asker.send(meter.status(reconciler))),
        Question::Check(check, asker) => drop(asker.send(reconciler.check(&check, meter.last_received()))),
    }
}

/// A pod whose interface never comes does not keep the rest from being called ready.
fn ready_late(reconciler: &Reconciler<Kernel>, ready: &mut bool, file: Option<&std::path::Path>) {
    if reconciler.is_node_unknown() {
        return;
    }
    if !std::mem::replace(ready, true) {
        tracing::warn!(
            pods = reconciler.pods_waiting(),
            "pods of this node are not enforced yet: their interfaces are not there, or failed"
        );
        tell_ready(reconciler, file);
    }
}

fn tell_ready(reconciler: &Reconciler<Kernel>, file: Option<&std::path::Path>) {
    let attached = reconciler.held().values().filter(|held| held.attached).count();
    tracing::info!(endpoints = attached, "ready");
    if let Some(file) = file
        && let Err(error) = std::fs::write(file, format!("{}\n", std::process::id()))
    {
        tracing::error!(file = %file.display(), %error, "cannot write the ready file");
    }
}
