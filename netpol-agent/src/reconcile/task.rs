//! Runs the main loop around a [`Reconciler`]: waits for an event, takes all further events that are queued, and
//! reconciles once. Work that can take long runs on other threads: compiling, and operations that wait for locks of the
//! kernel. Long lists of writes are executed in slices. So each pass of the loop takes only a few milliseconds.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use std::{future, io};

use thiserror::Error;
use tokio::sync::mpsc;
use tokio::task::yield_now;
use tokio::time::{Instant as Deadline, sleep, sleep_until};

use super::{Compiled, Origin, PodEndpoint, Reconciler};
use crate::api::resources::{self, Generations};
use crate::api::{LoopRequest, Progress, Readiness, unknown_node};
use crate::events::Reporter;
use crate::metrics::{self, Meter};
use netpol_dataplane::{FlowTotals, FlowTotalsReader, InterfaceOutcome, Kernel, RingReader};
use netpol_node::worker::{Died, Outcomes};
use netpol_node::{CacheUse, InterfaceWatcher, Monitor, NetlinkError, PodAddressMonitor};
use netpol_policy::reference::Packet;
use netpol_source::Batch;

/// Time between full readings of interfaces and programs, even if the kernel reported no change.
const FULL_INTERVAL: Duration = Duration::from_secs(10);
/// First interval between readings while the agent waits for an interface. It doubles up to [`MAX_INTERVAL`].
const MIN_INTERVAL: Duration = Duration::from_millis(5);
/// Longest interval between readings while the agent waits for an interface. A reading takes about a millisecond, and
/// any change resets the interval.
const MAX_INTERVAL: Duration = Duration::from_secs(2);
/// Maximum time for a slice of writes. After each slice, interfaces, finished operations and requests are handled.
const SLICE: Duration = Duration::from_millis(2);
/// How long flow events wait for the engine while it runs one job after another.
const RING_INTERVAL: Duration = Duration::from_millis(50);
/// Maximum number of flow totals that are recorded before other inputs are handled again.
const TOTALS_AT_ONCE: usize = 32;
/// If the interval between readings exceeds this limit, the agent reports ready although some pods still wait.
const READY_INTERVAL: Duration = Duration::from_millis(500);

/// Inputs of the loop.
#[derive(Debug)]
pub struct Inputs {
    /// Batches of objects.
    pub source: mpsc::Receiver<Batch>,
    /// Changes of links and addresses.
    pub monitor: Monitor,
    /// Changes of addresses in pods' namespaces.
    pub pod_addresses: PodAddressMonitor,
    /// Reads interfaces and addresses.
    pub interface_watcher: InterfaceWatcher,
    /// Results of data plane operations.
    pub outcomes: Outcomes<InterfaceOutcome>,
    /// The engine after each compile job.
    pub compiled: Outcomes<Compiled>,
    /// Flow events from the eBPF programs.
    pub ring: RingReader,
    /// Totals (packets and bytes) of flows, if they are recorded.
    pub flow_totals: Option<FlowTotalsReader>,
    /// Requests of API clients.
    pub loop_requests: mpsc::Receiver<LoopRequest>,
    /// Notifies API requests that wait for a condition. The loop calls [`Progress::notify`] when it has started or has
    /// processed a change.
    pub progress: Progress,
    /// File that is written when the agent reports ready.
    pub ready_file: Option<PathBuf>,
}

/// Reasons for which the loop ends.
#[derive(Debug, Error)]
pub enum LoopError {
    /// Netlink fails permanently.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// A thread died.
    #[error(transparent)]
    Died(#[from] Died),
}

/// Runs until `stop` resolves. The policies that are enforced at this time stay enforced.
///
/// # Errors
/// If netlink fails permanently or a thread died.
#[expect(clippy::too_many_lines, reason = "one branch for each of a dozen inputs")]
pub async fn run(
    mut reconciler: Reconciler<Kernel>,
    mut inputs: Inputs,
    mut reporter: Reporter,
    mut meter: Meter,
    stop: impl Future<Output = ()>,
) -> Result<(), LoopError> {
    tokio::pin!(stop);
    inputs.progress.notify();
    let mut back_off = MIN_INTERVAL;
    let mut last_read = Instant::now();
    let mut last_full_read = last_read;
    let mut ready = false;
    let mut node_was_unknown = false;
    let (mut source_open, mut ring_open) = (true, true);
    // Requests that wait for the engine.
    let mut waiting_requests = Vec::new();
    let mut ring_served = last_read;
    let mut queued_totals = VecDeque::new();
    loop {
        let more_writes =
            execute_slice(&mut reconciler, &mut meter, &mut reporter, &inputs.progress, &mut waiting_requests);
        // Flow events need the engine. If they have waited too long, they are read before the engine starts its next
        // job.
        let starved = reconciler.can_start_job() && ring_open && ring_served.elapsed() >= RING_INTERVAL;
        if !starved {
            reconciler.advance();
        }
        let node_unknown = reconciler.is_node_unknown();
        let waiting_count = reconciler.pods_waiting() + reconciler.devices_waiting();
        if !ready && !node_unknown && waiting_count == 0 && !reconciler.is_attaching() && !reconciler.is_starting() {
            ready = true;
            report_ready(&reconciler, inputs.ready_file.as_deref());
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
                tracing::info!(node = reconciler.node(), "the Node object of this node exists now");
            }
        }
        let is_fully_applied = reconciler.is_fully_applied();
        if is_fully_applied {
            meter.record_all_enforced();
            reconciler.record_enforced_batches(meter.last_applied());
        }
        reconciler.update_settled(is_fully_applied);
        inputs.interface_watcher.start_requested_reading(|| reconciler.begin_reading());
        let is_reading = inputs.interface_watcher.is_running();
        let waiting = reconciler.is_waiting();
        // `next_read` is computed from the times of earlier readings, so flow events do not delay readings.
        let next_read = if waiting { last_read + back_off } else { last_full_read + FULL_INTERVAL };
        let pod_overdue = reconciler.next_pod_overdue();
        reconciler.set_clock_if_due();
        let suspension = reconciler.until_suspension_changes();
        tokio::select! {
            biased;
            () = &mut stop => return Ok(()),
            batch = inputs.source.recv(), if source_open => {
                let Some(first) = batch else {
                    tracing::error!("the source ended; enforcement continues with the last objects");
                    source_open = false;
                    continue;
                };
                reconciler.set_clock();
                reconciler.apply_batch(first);
                while let Ok(more) = inputs.source.try_recv() {
                    reconciler.apply_batch(more);
                }
                // The kernel reports changed interfaces. The interfaces are read here only if a pod waits for one.
                if reconciler.is_waiting() {
                    inputs.interface_watcher.request(CacheUse::Allowed);
                }
                back_off = MIN_INTERVAL;
            }
            outcome = inputs.outcomes.next() => {
                let mut outcomes = vec![outcome?];
                outcomes.extend(std::iter::from_fn(|| inputs.outcomes.try_next()));
                reconciler.operations_finished(outcomes);
            }
            interfaces = inputs.interface_watcher.next_snapshot() => {
                match interfaces? {
                    Ok(interfaces) => reconciler.interfaces_read(interfaces),
                    Err(error) => reconciler.interfaces_not_read(&error),
                }
                last_read = Instant::now();
            }
            changed = inputs.monitor.changed() => {
                let changed = changed?;
                reconciler.interfaces_removed(&changed.gone);
                reconciler.links_reported(changed.links.iter().copied());
                let has_new_device = changed.routed.iter().any(|ifindex| !reconciler.is_routed(*ifindex));
                if changed.interfaces_changed() || has_new_device {
                    inputs.interface_watcher.request(CacheUse::Allowed);
                    back_off = MIN_INTERVAL;
                }
                if changed.filters {
                    reconciler.verify();
                }
                inputs.interface_watcher.add(changed);
            }
            namespaces = inputs.pod_addresses.changed() => {
                inputs.interface_watcher.request_for_changed_addresses(reconciler.interfaces_to(&namespaces?));
                continue;
            }
            compiled = inputs.compiled.next() => {
                let compiled = compiled?;
                reconciler.compiled(compiled);
            }
            // A pod has waited too long for its policies.
            () = sleep_until(Deadline::from_std(pod_overdue.unwrap_or(last_full_read))), if pod_overdue.is_some() => {
                reconciler.reconcile(false);
            }
            () = sleep(suspension.unwrap_or_default()), if suspension.is_some() => {}
            () = sleep_until(Deadline::from_std(next_read)), if !is_reading => {
                if last_full_read.elapsed() >= FULL_INTERVAL {
                    last_full_read = Instant::now();
                    reconciler.verify();
                    inputs.interface_watcher.request(CacheUse::Bypassed);
                } else {
                    inputs.interface_watcher.request(CacheUse::Allowed);
                }
                if waiting {
                    back_off = (back_off * 2).min(MAX_INTERVAL);
                    if back_off > READY_INTERVAL && !reconciler.is_starting() {
                        reconciler.retry();
                        ready_without_waiting(&reconciler, &mut ready, inputs.ready_file.as_deref());
                    }
                }
            }
            Some(request) = inputs.loop_requests.recv() => {
                match request {
                    request if request.needs_engine() && !reconciler.has_engine() => waiting_requests.push(request),
                    request => answer(request, &reconciler, &meter, &reporter),
                }
                continue;
            }
            // The next slice of writes: after the more urgent inputs above, before the less urgent inputs below.
            () = future::ready(()), if more_writes => continue,
            // Totals come before flow events, so that totals are handled even in a flood of events. There are at most
            // 1,000 totals per second.
            batch = next_totals(&mut queued_totals, &mut inputs.flow_totals), if reconciler.has_engine() && !starved => {
                for totals in &batch {
                    reporter.record_totals(totals, &reconciler);
                }
                yield_now().await;
                continue;
            }
            // Flow events need names from the engine. While it is compiling, the ring buffer keeps the events.
            result = inputs.ring.read(|event| reporter.record(&event, &reconciler)), if ring_open && reconciler.has_engine() => {
                ring_open = is_open(&result);
                ring_served = Instant::now();
                // The ring buffer is never empty in a flood, and the runtime must run other tasks too.
                yield_now().await;
                continue;
            }
            // The branch above found no event, so none is waiting: the engine can start its next job.
            () = future::ready(()), if starved => {
                ring_served = Instant::now();
                continue;
            }
        }
        inputs.progress.notify();
    }
}

/// Executes a slice of writes, and returns whether more writes are pending. Notices, summaries and waiting requests
/// need the engine, so they are handled before its next job.
fn execute_slice(
    reconciler: &mut Reconciler<Kernel>,
    meter: &mut Meter,
    reporter: &mut Reporter,
    progress: &Progress,
    waiting_requests: &mut Vec<LoopRequest>,
) -> bool {
    let more_writes = reconciler.execute(SLICE);
    let finished = reconciler.finished();
    if !finished.is_empty() {
        record_finished(finished, meter);
        progress.notify();
    }
    if reconciler.has_engine() {
        reporter.report_notices(reconciler);
        let suppressed = |id, direction, kind| meter.counters.suppressed(id, direction, kind).unwrap_or(0);
        reporter.summarize(reconciler, Instant::now(), suppressed);
        for request in waiting_requests.drain(..) {
            answer(request, reconciler, meter, reporter);
        }
    }
    more_writes
}

/// Returns the next totals of flows: as many as can be recorded in about a millisecond. Further totals stay in `queue`.
/// Waits if there are no totals.
async fn next_totals(queue: &mut VecDeque<FlowTotals>, reader: &mut Option<FlowTotalsReader>) -> Vec<FlowTotals> {
    while queue.is_empty() {
        match reader {
            Some(open_reader) => match open_reader.next().await {
                Some(totals) => queue.extend(totals),
                None => *reader = None,
            },
            None => future::pending().await,
        }
    }
    queue.drain(..queue.len().min(TOTALS_AT_ONCE)).collect()
}

/// Records the batches of finished jobs. Some of their writes may have failed, so a batch may not be enforced yet.
fn record_finished(finished: Vec<Origin>, meter: &mut Meter) {
    for Origin { batches, took, start } in finished {
        for (generation, at) in &batches {
            if start {
                meter.record_first_objects_applied(*generation);
            } else {
                meter.record_batch_applied(*generation, *at);
            }
        }
        if !start && !batches.is_empty() {
            meter.record_batches_written(batches.len(), took);
        }
    }
}

fn is_open(ring: &io::Result<()>) -> bool {
    if let Err(error) = ring {
        tracing::error!(%error, "cannot read the ring buffer; denied packets are counted but not reported; \
            restart the agent");
    }
    ring.is_ok()
}

fn answer(request: LoopRequest, reconciler: &Reconciler<Kernel>, meter: &Meter, reporter: &Reporter) {
    let enforced = meter.last_enforced().0;
    // A send fails if the client has disconnected.
    match request {
        LoopRequest::Metrics(client) => drop(client.send(metrics::render(reconciler, meter, reporter))),
        LoopRequest::Ready(client) => drop(client.send(meter.readiness.clone())),
        LoopRequest::Status(client) => drop(client.send(meter.status(reconciler, reporter))),
        LoopRequest::Check(check, client) => drop(client.send(reconciler.check(&check, meter.last_applied()))),
        LoopRequest::Pods(client) => drop(client.send(resources::pods(reconciler, enforced))),
        LoopRequest::Policies(query, client) => {
            drop(client.send(resources::policies(reconciler, reporter, query, enforced)));
        }
        LoopRequest::Explain(query, client) => {
            let generations = Generations { enforced, received: reconciler.last_received().0 };
            let evaluate = |pod_endpoint: &PodEndpoint, packet: &Packet| {
                reconciler
                    .dataplane()
                    .evaluate(pod_endpoint.endpoint.ifindex, packet)
                    .map(|evaluation| evaluation.reason)
            };
            drop(client.send(resources::explain(reconciler, &query, generations, evaluate)));
        }
        LoopRequest::Shadow(query, client) => {
            drop(client.send(resources::shadow(reconciler, reporter, query, enforced)));
        }
        LoopRequest::Generations(client) => drop(client.send(resources::generations(reconciler, enforced))),
    }
}

/// Reports ready although pods still wait: a pod without an interface must not keep the agent unready.
fn ready_without_waiting(reconciler: &Reconciler<Kernel>, ready: &mut bool, file: Option<&std::path::Path>) {
    if reconciler.is_node_unknown() {
        return;
    }
    if !std::mem::replace(ready, true) {
        tracing::warn!(
            pods = reconciler.pods_waiting(),
            devices = reconciler.devices_waiting(),
            "reporting ready, but some pods of this node are not enforced, or packets that leave by some devices are not \
             evaluated: their interfaces were not found or could not be used"
        );
        report_ready(reconciler, file);
    }
}

fn report_ready(reconciler: &Reconciler<Kernel>, file: Option<&std::path::Path>) {
    tracing::info!(endpoints = reconciler.attached_endpoints().count(), "ready");
    if let Some(file) = file
        && let Err(error) = std::fs::write(file, format!("{}\n", std::process::id()))
    {
        tracing::error!(file = %file.display(), %error, "cannot write the ready file");
    }
}
