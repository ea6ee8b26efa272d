//! `netpol-agent run`.

use std::process::ExitCode;

use anyhow::{Context, Result};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::{RunArgs, log};
use crate::dataplane::{Kernel, KernelError, KernelOptions, Lock, Mounts};
use crate::endpoints::{Monitor, Surveyor};
use crate::events::{Lines, Reporter};
use crate::metrics::{self, Meter};
use crate::object;
use crate::reconcile::task::{self, Inputs};
use crate::reconcile::{Options, Reconciler};

pub(super) fn run(args: RunArgs) -> Result<ExitCode> {
    log::start(args.log_format, args.verbose);
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the runtime")?;
    runtime.block_on(serve(args))?;
    // A thread may be in the middle of a write that nobody reads.
    runtime.shutdown_background();
    Ok(ExitCode::SUCCESS)
}

async fn serve(args: RunArgs) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
    let object = object::object(args.bpf_object.as_deref()).map_err(KernelError::from)?;
    if Mounts::ensure(&args.pin_path)? {
        tracing::info!("mounted a BPF filesystem at /sys/fs/bpf");
    }
    let _lock = Lock::take(&args.pin_path)?;

    let mut source = args.source.clone().start()?;
    let objects = source.recv().await.context("the source ended before it began")?;
    tracing::info!(source = %args.source, "objects read");
    let monitor = Monitor::open()?;
    let mut surveyor = Surveyor::open()?;
    let survey = surveyor.look(&std::collections::BTreeSet::new(), true)?;
    tracing::info!(veths = survey.veths.len(), own_addresses = survey.own.len(), "interfaces listed");

    let options =
        KernelOptions { pin_path: args.pin_path.clone(), attach: args.attach, capacities: args.sizes.capacities() };
    let kernel = Kernel::start(&object, &options)?;
    drop(object);
    let attach = if kernel.is_tcx() { "tcx" } else { "tc" };
    tracing::info!(pin_path = %args.pin_path.display(), attach, "programs loaded");
    let old = kernel.snapshot()?;
    let ring = kernel.events()?;
    let meter = Meter::new(kernel.counters()?);
    let reconcile = Options {
        node: args.node.as_str().into(),
        unknown_pods: args.unknown_pods,
        source_guard: !args.no_source_guard,
    };
    let reconciler = Reconciler::start(kernel, reconcile, &old, objects, survey)?;
    drop(old);

    let (scrapes_in, scrapes) = mpsc::channel(8);
    if let Some(address) = args.metrics {
        metrics::serve(address, scrapes_in.clone())
            .await
            .with_context(|| format!("cannot serve metrics on {address}; choose another --metrics"))?;
        tracing::info!(%address, "metrics served");
    }
    let inputs = Inputs { source, monitor, surveyor, ring, scrapes, ready_file: args.ready_file };
    let reporter = Reporter::new(Lines::to(std::io::stdout()));
    let stop = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    task::run(reconciler, inputs, reporter, meter, stop).await?;
    // Held until here: without a sender the loop would spin on a closed channel.
    drop(scrapes_in);
    tracing::info!("stopped; what is enforced stays enforced");
    Ok(())
}
