//! `netpol-agent run`.

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::CommandFactory;
use clap::error::ErrorKind;
use netpol_common::Settings;
use netpol_policy::cluster_state::Event;
use netpol_policy::model::Object;
use tokio::runtime::Handle;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};

use super::flow_export::FlowExport;
use super::{RecordFlows, RunArgs, log, requirements, start_gate};
use crate::api::{self, About, LoopRequest, Progress, Requests, Socket, SocketError};
use crate::conflicts;
use crate::events::kubernetes::{self, Sink};
use crate::events::{FlowBuffer, Lines, Reporter};
use crate::export::{self, Exporters};
use crate::gate::StartingPods;
use crate::metrics::Meter;
use crate::reconcile::task::{self, Inputs};
use crate::reconcile::{Compiler, ContainerStarts, Options, Reconciler};
use netpol_dataplane::bpf_object;
use netpol_dataplane::{Dataplane, Kernel, KernelError, KernelOptions, Lock, Mounts};
use netpol_node::{CacheUse, Changed, InterfaceReader, InterfaceWatcher, KnownVeths, Monitor, PodAddressMonitor};
use netpol_source::{Batch, Feed};

/// Time after a signal until the process is ended by force. Normally it ends within a few milliseconds. With
/// --kube-events, it first writes the last Events.
const STOP_TIMEOUT: Duration = Duration::from_millis(850);
const _: () = assert!(kubernetes::FINISH_TIMEOUT.as_millis() < STOP_TIMEOUT.as_millis());
const _: () = assert!(export::FINISH_TIMEOUT.as_millis() < STOP_TIMEOUT.as_millis());

pub(super) fn run(args: RunArgs) -> Result<ExitCode> {
    if args.kube_events && args.source.api_client().is_none() {
        let message = "--kube-events needs --source kube: Events are written to the API server that objects come from";
        super::Cli::command().error(ErrorKind::ArgumentConflict, message).exit();
    }
    check_targets(&args.flow_export);
    requirements::check("run")?;
    log::start(args.log_format, args.verbose);
    // Three runtimes, each on its own thread: parsing objects, enforcing policies and serving the API do not delay each
    // other.
    let api_runtime = api::start_runtime().context(NO_THREAD)?;
    api_runtime.spawn(exit_after_timeout());
    let sources =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the runtime")?;
    let result = sources.block_on(run_until_signal(args, &api_runtime));
    // Does not wait for threads that are still reading manifests.
    sources.shutdown_background();
    result.map(|()| ExitCode::SUCCESS)
}

/// Exits with an error if two `--flow-export` have the same target: two threads would write the same file.
fn check_targets(exports: &[FlowExport]) {
    let mut names = BTreeSet::new();
    if let Some(repeated) = exports.iter().map(|export| export.0.name()).find(|name| !names.insert(name.clone())) {
        let message = format!("--flow-export has the target {repeated} twice");
        super::Cli::command().error(ErrorKind::ArgumentConflict, message).exit();
    }
}

/// An error message.
const NO_THREAD: &str = "cannot start a thread; check the pids limit";

/// Ends the process if it has not ended by itself soon after a signal: a system call may block for long (copying into a
/// resized map, or waiting for `rtnl_lock`).
///
/// This is as safe as a crash. Each write to a map is atomic. After each write, the packets of every endpoint are
/// evaluated either by its old policy or by its new policy. The next agent adopts all pinned state (ARCHITECTURE.md,
/// "Changes").
async fn exit_after_timeout() {
    let (Ok(mut terminate), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tokio::time::sleep(STOP_TIMEOUT).await;
    tracing::warn!("stopped while an operation was still in progress; what is enforced stays enforced");
    // SAFETY: `_exit` has no preconditions. It does not wait for destructors and other threads: they may take long.
    unsafe { libc::_exit(0) };
}

/// Runs the agent until SIGTERM or SIGINT.
async fn run_until_signal(args: RunArgs, api_runtime: &Handle) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
    let object_file = bpf_object::load(args.bpf_object.as_deref()).map_err(KernelError::from)?;
    // Start the source first: if --source is invalid, the agent exits before it creates a mount, a lock or a socket.
    let feed = args.source.clone().start(args.limits())?;
    // The start gate adds the addresses of starting pods to the objects of the source.
    let (mut feed, starting) = StartingPods::add_to(feed, &args.node);
    if Mounts::ensure(&args.pin_path)? {
        tracing::info!("mounted a BPF filesystem at /sys/fs/bpf");
    }
    let _lock = Lock::take(&args.pin_path)?;
    if let Some(file) = &args.ready_file {
        // The file of an earlier agent is not valid for this one. If it cannot be removed, writing it will fail and
        // log an error.
        let _ = std::fs::remove_file(file);
    }
    let flows = FlowBuffer::new(args.flow_buffer);
    let about = About {
        node: args.node.clone(),
        source: args.source.to_string(),
        state: feed.state.clone(),
        flows: flows.clone(),
    };
    let (requests, loop_requests, progress) = api::requests(about, feed.queries.clone(), starting);
    let _socket = {
        // Tasks that are spawned here run in the API's runtime.
        let _entered = api_runtime.enter();
        start_gate::start(&args, &requests);
        serve_api(&args, &requests)?
    };
    // A signal must stop the agent also while the API server is unavailable.
    let first_batch = tokio::select! {
        batch = feed.batches.recv() => batch.context("the source ended before its first objects")?,
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    };
    tracing::info!(source = %args.source, "objects read");
    let (sink, events_thread) = kube_events(&args)?.unzip();
    let targets: Vec<_> = args.flow_export.iter().map(|export| export.0.clone()).collect();
    let (exporters, export_threads) = Exporters::start(&targets, &args.node).context(NO_THREAD)?;
    let (stop, stopped) = oneshot::channel::<()>();
    let (result_sender, mut result) = oneshot::channel();
    // The pods that the gate delays; `None` without the gate.
    let container_starts = (requests.gate.mode().0 != "off").then(|| requests.container_starts.clone());
    let inputs = EnforceInputs { loop_requests, progress, flows, sink, exporters, container_starts };
    let work = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.context("cannot start the runtime");
        let stopped = async { drop(stopped.await) };
        let result = runtime
            .and_then(|runtime| runtime.block_on(enforce(&args, object_file, first_batch, feed, inputs, stopped)));
        drop(result_sender.send(result));
    };
    std::thread::Builder::new().name("enforce".to_owned()).spawn(work).context(NO_THREAD)?;
    let result = tokio::select! {
        result = &mut result => result,
        _ = terminate.recv() => { drop(stop); result.await }
        _ = interrupt.recv() => { drop(stop); result.await }
    };
    result
        .unwrap_or_else(|_| bail!("the enforcement thread died; what is enforced stays enforced; restart the agent"))?;
    // Not dropped earlier: the main loop would spin on the closed channel.
    drop(requests);
    let events = async {
        if let Some(events_thread) = events_thread {
            events_thread.finish().await;
        }
    };
    tokio::join!(events, export_threads.finish());
    tracing::info!("stopped; what is enforced stays enforced");
    Ok(())
}

/// What the main thread passes to the thread that runs [`enforce`].
struct EnforceInputs {
    loop_requests: mpsc::Receiver<LoopRequest>,
    progress: Progress,
    flows: FlowBuffer,
    sink: Option<Sink>,
    exporters: Exporters,
    container_starts: Option<ContainerStarts>,
}

/// Enforces the policies that the source sends, until `stopped` resolves. `object_file`: the compiled BPF programs.
/// `first_batch`: all objects that existed when the source started.
async fn enforce(
    args: &RunArgs,
    object_file: impl AsRef<[u8]>,
    mut first_batch: Batch,
    feed: Feed,
    EnforceInputs { loop_requests, progress, flows, sink, exporters, container_starts }: EnforceInputs,
    stopped: impl Future<Output = ()>,
) -> Result<()> {
    warn_of_wrong_node(&first_batch.events, &args.node);
    // The engine must receive the current time before it receives the objects, because the time decides which
    // suspensions of enforcement are in effect.
    first_batch.events.insert(0, Event::Clock(jiff::Timestamp::now().into()));
    let monitor = Monitor::open()?;
    let pod_addresses = PodAddressMonitor::open()?;
    let mut reader = InterfaceReader::open()?;
    let listed_at = Instant::now();
    let interfaces = reader.read(&KnownVeths::default(), &Changed::default(), CacheUse::Bypassed)?;
    tracing::info!(
        veths = interfaces.veths.len(),
        local_addresses = interfaces.local_addresses.len(),
        "interfaces listed"
    );

    let options = KernelOptions {
        pin_path: args.pin_path.clone(),
        attach: args.attach,
        capacities: args.sizes.capacities(),
        observe: args.observe,
        flow_totals: args.flow_totals,
    };
    let (mut kernel, outcomes) = Kernel::start(object_file.as_ref(), &options)?;
    kernel.set_settings(Settings { record_allowed: u32::from(args.record_flows == RecordFlows::All) })?;
    drop(object_file);
    tracing::info!(pin_path = %args.pin_path.display(), "programs loaded");
    // The content of the maps, which an earlier agent may have written.
    let old = kernel.snapshot()?;
    let ring = kernel.events()?;
    let flow_totals = kernel.take_flow_totals();
    let mut meter = Meter::new(kernel.counters()?, feed.state.clone());
    meter.exporters = exporters.clone();
    match conflicts::start(kernel.foreign(), args.cni_config.clone()) {
        Ok(conflicts) => meter.conflicts = conflicts,
        Err(error) => tracing::error!(%error, "cannot start the thread that detects conflicts; check the pids limit"),
    }
    let reconcile = Options {
        node: args.node.as_str().into(),
        unknown_pods: args.unknown_pods,
        anti_spoofing: !args.no_anti_spoofing,
        tunnels_to_node: args.allow_tunnels_to_node,
        policy_memory: Some(args.sizes.max_policy_memory.0),
        agent_namespace: args.agent_namespace.as_str().into(),
        observe: args.observe,
        container_starts,
    };
    let (compiler, compiled) = Compiler::start().context(NO_THREAD)?;
    let mut reconciler = Reconciler::begin(kernel, reconcile, old, first_batch, interfaces, compiler)?;
    reconciler.interfaces_listed_at(listed_at);
    let reporter = Reporter::new(Lines::to(std::io::stdout()), flows)
        .with_allowed_flows(args.record_flows == RecordFlows::All)
        .with_flow_totals(flow_totals.as_ref())
        .with_kube_events(sink)
        .with_exporters(exporters);
    let inputs = Inputs {
        source: feed.batches,
        monitor,
        pod_addresses,
        interface_watcher: InterfaceWatcher::start(reader).context(NO_THREAD)?,
        outcomes,
        compiled,
        ring,
        flow_totals,
        loop_requests,
        progress,
        ready_file: args.ready_file.clone(),
    };
    Box::pin(task::run(reconciler, inputs, reporter, meter, stopped)).await?;
    Ok(())
}

/// Starts to write Events to the API server, if enabled.
fn kube_events(args: &RunArgs) -> Result<Option<(Sink, kubernetes::Handle)>> {
    let Some(client) = args.source.api_client().filter(|_| args.kube_events) else { return Ok(None) };
    kubernetes::start(&args.node, client).map(Some).context("cannot start a thread for --kube-events")
}

/// Serves health, metrics and the API socket. If another agent listens on the socket, returns an error. If the socket
/// cannot be created for any other reason, the agent logs the error, and enforces policies anyway.
fn serve_api(args: &RunArgs, requests: &Requests) -> Result<Option<Socket>> {
    if let Some(address) = args.health {
        api::serve_health(address, requests.clone());
    }
    if let Some(address) = args.metrics {
        api::serve_metrics(address, requests.clone());
    }
    match Socket::listen(&args.api_socket) {
        Ok((socket, listener)) => {
            api::serve_socket(listener, requests.clone());
            Ok(Some(socket))
        }
        Err(error @ SocketError::Taken(_)) => Err(error.into()),
        Err(error @ (SocketError::NotASocket(_) | SocketError::Failed { .. })) => {
            tracing::error!("{error}; `netpol wait` does not work on this node");
            Ok(None)
        }
    }
}

/// Warns if all pods are on other nodes. The most frequent cause is a wrong `--node`.
fn warn_of_wrong_node(events: &[Event], node: &str) {
    let first_objects = events.iter().flat_map(|event| match event {
        Event::Reset(objects) => objects.as_slice(),
        _ => &[],
    });
    let nodes: BTreeSet<&str> = first_objects
        .filter_map(|object| match object {
            Object::Pod(pod) => pod.node.as_deref(),
            _ => None,
        })
        .collect();
    if !nodes.is_empty() && !nodes.contains(node) {
        let nodes_of_pods = nodes.into_iter().take(8).collect::<Vec<_>>().join(", ");
        tracing::warn!(
            node,
            nodes_of_pods,
            "no pod is on this node; set --node to spec.nodeName of the pods on this node"
        );
    }
}
