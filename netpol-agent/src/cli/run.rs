//! `netpol-agent run`.

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::CommandFactory;
use clap::error::ErrorKind;
use netpol_policy::model::Object;
use netpol_policy::world::Event;
use tokio::runtime::Handle;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};

use super::{RunArgs, log, machine};
use crate::api::{self, About, Desk, Progress, Question, Socket, SocketError};
use crate::conflicts;
use crate::dataplane::{Kernel, KernelError, KernelOptions, Lock, Mounts};
use crate::endpoints::{KnownVeths, Lookout, Monitor, PodAddressMonitor, Surveyor};
use crate::events::kubernetes::{self, Sink};
use crate::events::{Lines, Reporter};
use crate::metrics::Meter;
use crate::object;
use crate::reconcile::task::{self, Inputs};
use crate::reconcile::{Compiler, Options, Reconciler};
use crate::source::{Batch, Feed};

/// After a signal the agent ends by itself within some milliseconds, with Events of the API server within half a second.
const STOPPING: Duration = Duration::from_millis(850);

pub(super) fn run(args: RunArgs) -> Result<ExitCode> {
    if args.kube_events && args.source.api_client().is_none() {
        let message = "--kube-events needs --source kube: Events are written to the API server that objects come from";
        super::Cli::command().error(ErrorKind::ArgumentConflict, message).exit();
    }
    machine::check("run")?;
    log::start(args.log_format, args.verbose);
    // Three runtimes, each on a thread of its own: parsing objects, enforcing them and answering delay each other in no way.
    let answers = api::runtime().context(NO_THREAD)?;
    answers.spawn(end_in_time());
    let sources =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the runtime")?;
    let served = sources.block_on(serve(args, &answers));
    // A thread may be in the middle of a write that nobody reads.
    sources.shutdown_background();
    served.map(|()| ExitCode::SUCCESS)
}

const NO_THREAD: &str = "cannot start a thread; see the pids limit";

/// Ends the process when it has not ended by itself soon after a signal: the kernel may hold a thread for long (a map of another
/// size that is being filled, a lock of network devices).
///
/// Ending in the middle of a write is as safe as a crash: each write to a map is atomic, their order leaves every endpoint judged
/// by its old policy or by its new one after each of them, and the next agent takes over whatever is pinned
/// (ARCHITECTURE.md, "Change").
async fn end_in_time() {
    let (Ok(mut terminate), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return;
    };
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tokio::time::sleep(STOPPING).await;
    tracing::warn!("stopped in the middle of something that took too long; what is enforced stays enforced");
    // SAFETY: takes a number. Destructors and other threads are left out on purpose, as they are what takes long.
    unsafe { libc::_exit(0) };
}

async fn serve(args: RunArgs, answers: &Handle) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
    let object = object::object(args.bpf_object.as_deref()).map_err(KernelError::from)?;
    // Before anything is made: who mistypes the source leaves nothing behind.
    let mut feed = args.source.clone().start(args.limits())?;
    if Mounts::ensure(&args.pin_path)? {
        tracing::info!("mounted a BPF filesystem at /sys/fs/bpf");
    }
    let _lock = Lock::take(&args.pin_path)?;
    if let Some(file) = &args.ready_file {
        // An earlier agent's says nothing of this one. Where it cannot be removed, writing it will fail and say so.
        let _ = std::fs::remove_file(file);
    }
    let about = About { node: args.node.clone(), source: args.source.to_string(), state: feed.state.clone() };
    let (desk, questions, progress) = api::desk(about, feed.inquiries.clone());
    let _socket = {
        let _on_its_thread = answers.enter();
        serve_api(&args, &desk)?
    };
    // A cluster's API server may be away for long.
    let first = tokio::select! {
        first = feed.batches.recv() => first.context("the source ended before it began")?,
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    };
    tracing::info!(source = %args.source, "objects read");
    let (sink, events) = kube_events(&args)?.unzip();
    let (stop, stopped) = oneshot::channel::<()>();
    let (ended, mut end) = oneshot::channel();
    let work = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.context("cannot start the runtime");
        let stopped = async { drop(stopped.await) };
        let result = runtime.and_then(|runtime| {
            runtime.block_on(enforce(&args, object, first, feed, (questions, progress), sink, stopped))
        });
        drop(ended.send(result));
    };
    std::thread::Builder::new().name("enforce".to_owned()).spawn(work).context(NO_THREAD)?;
    let result = tokio::select! {
        result = &mut end => result,
        _ = terminate.recv() => { drop(stop); end.await }
        _ = interrupt.recv() => { drop(stop); end.await }
    };
    result.unwrap_or_else(|_| bail!("the thread that enforces has died; what is enforced stays enforced"))?;
    // Held until here: without a desk the loop would spin on a closed channel.
    drop(desk);
    if let Some(events) = events {
        events.finish().await;
    }
    tracing::info!("stopped; what is enforced stays enforced");
    Ok(())
}

/// Enforces what the source sends, until `stopped`.
async fn enforce(
    args: &RunArgs,
    object: impl AsRef<[u8]>,
    first: Batch,
    feed: Feed,
    (questions, progress): (mpsc::Receiver<Question>, Progress),
    sink: Option<Sink>,
    stopped: impl Future<Output = ()>,
) -> Result<()> {
    warn_of_strange_node(&first.events, &args.node);
    let monitor = Monitor::open()?;
    let pod_addresses = PodAddressMonitor::open()?;
    let mut surveyor = Surveyor::open()?;
    let looked = Instant::now();
    let survey = surveyor.read_all(&KnownVeths::default(), BTreeSet::new(), true)?;
    tracing::info!(veths = survey.veths.len(), own_addresses = survey.own.len(), "interfaces listed");

    let options =
        KernelOptions { pin_path: args.pin_path.clone(), attach: args.attach, capacities: args.sizes.capacities() };
    let (kernel, outcomes) = Kernel::start(object.as_ref(), &options)?;
    drop(object);
    tracing::info!(pin_path = %args.pin_path.display(), "programs loaded");
    let old = kernel.snapshot()?;
    let ring = kernel.events()?;
    let mut meter = Meter::new(kernel.counters()?, feed.state.clone());
    match conflicts::start(kernel.foreign(), args.cni_config.clone()) {
        Ok(counts) => meter.conflicts = counts,
        Err(error) => tracing::error!(%error, "cannot start a thread that looks for conflicts; see the pids limit"),
    }
    let reconcile = Options {
        node: args.node.as_str().into(),
        unknown_pods: args.unknown_pods,
        source_guard: !args.no_source_guard,
        tunnels_to_node: args.allow_tunnels_to_node,
        policy_memory: Some(args.sizes.max_policy_memory.0),
    };
    let (compiler, compiled) = Compiler::start().context(NO_THREAD)?;
    let mut reconciler = Reconciler::begin(kernel, reconcile, old, first, survey, compiler)?;
    reconciler.looked_at(looked);
    let reporter = Reporter::new(Lines::to(std::io::stdout())).and_to(sink);
    let inputs = Inputs {
        source: feed.batches,
        monitor,
        pod_addresses,
        lookout: Lookout::start(surveyor).context(NO_THREAD)?,
        outcomes,
        compiled,
        ring,
        questions,
        progress,
        ready_file: args.ready_file.clone(),
    };
    Box::pin(task::run(reconciler, inputs, reporter, meter, stopped)).await?;
    Ok(())
}

/// Starts to write Events of the API server, where that is asked for.
fn kube_events(args: &RunArgs) -> Result<Option<(Sink, kubernetes::Handle)>> {
    let Some(client) = args.source.api_client().filter(|_| args.kube_events) else { return Ok(None) };
    kubernetes::start(&args.node, client).map(Some).context("cannot start a thread for --kube-events")
}

/// Answers requests, from the loop's start on. Without its socket the agent does its work all the same.
fn serve_api(args: &RunArgs, desk: &Desk) -> Result<Option<Socket>> {
    if let Some(address) = args.health {
        api::serve_health(address, desk.clone());
    }
    if let Some(address) = args.metrics {
        api::serve_metrics(address, desk.clone());
    }
    match Socket::listen(&args.api_socket) {
        Ok((socket, listener)) => {
            api::serve_socket(listener, desk.clone());
            Ok(Some(socket))
        }
        Err(error @ SocketError::Taken(_)) => Err(error.into()),
        Err(error @ (SocketError::NoSocket(_) | SocketError::Failed { .. })) => {
            tracing::error!("{error}; until then nobody can wait for policies on this node");
            Ok(None)
        }
    }
}

/// Pods that name other nodes only are most often a misspelt `--node`.
fn warn_of_strange_node(objects: &[Event], node: &str) {
    let pods = objects.iter().flat_map(|event| match event {
        Event::Reset(objects) => objects.as_slice(),
        _ => &[],
    });
    let nodes: BTreeSet<&str> = pods
        .filter_map(|object| match object {
            Object::Pod(pod) => pod.node.as_deref(),
            _ => None,
        })
        .collect();
    if !nodes.is_empty() && !nodes.contains(node) {
        let named = nodes.into_iter().take(8).collect::<Vec<_>>().join(", ");
        tracing::warn!(node, named, "no pod is on this node; --node must be what pods' spec.nodeName says");
    }
}
