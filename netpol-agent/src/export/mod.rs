//! Exports flow records to files and to OpenTelemetry collectors. Each target has its own thread and a bounded queue: a
//! full disk or a slow collector delays neither enforcement nor another target. Records that do not fit into a queue
//! are dropped and counted.

mod counters;
mod file;
mod otlp;
mod rotation;
#[cfg(test)]
mod tests;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use netpol_api::Record;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

pub use counters::{DropReason, ExportCounters};

/// Maximum number of queued records of a target. A record has one or two KiB, and all targets share one copy of it.
const MAX_QUEUED_RECORDS: usize = 4096;
/// Maximum time that [`ExportThreads::finish`] waits.
pub const FINISH_TIMEOUT: Duration = Duration::from_millis(600);
/// The largest number of files of a [`FileTarget`].
pub const MAX_FILES: u32 = 1000;

/// Where flow records are exported to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Files on this node.
    File(FileTarget),
    /// An OpenTelemetry collector.
    Otlp(Endpoint),
}

impl Target {
    /// Returns the value of the metric label `target`.
    pub fn name(&self) -> String {
        match self {
            Self::File(file) => format!("file:{}", file.path.display()),
            Self::Otlp(endpoint) => {
                format!("otlp:http://{}{}", endpoint.authority(), endpoint.path.trim_end_matches("/v1/logs"))
            }
        }
    }
}

/// Rotated files: `PATH` is the newest file, then `PATH.1`, `PATH.2`, and so on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileTarget {
    /// The file that is written.
    pub path: PathBuf,
    /// Maximum size of each file in bytes.
    pub max_size: u64,
    /// Maximum number of files, including the newest file. At most [`MAX_FILES`].
    pub files: u32,
}

/// Where a collector receives logs by OTLP/HTTP. In other modules, an endpoint is the interface of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// A name or an address; an IPv6 address has no brackets.
    pub host: String,
    /// Usually 4318.
    pub port: u16,
    /// The path of requests. Ends with `/v1/logs`.
    pub path: String,
}

impl Endpoint {
    /// Returns the value of the header `Host`.
    fn authority(&self) -> String {
        let Self { host, port, .. } = self;
        if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
    }
}

/// Sends records to the threads of all targets. Clones send to the same threads, which end when the last clone is
/// dropped.
#[derive(Clone, Debug, Default)]
pub struct Exporters(Arc<[Exporter]>);

/// The queue and the counters of one target.
#[derive(Debug)]
struct Exporter {
    /// The result of [`Target::name`].
    target: String,
    queue: mpsc::Sender<Arc<Record>>,
    counters: Arc<ExportCounters>,
    /// Dropping this sender resolves [`Input::stopped`]. Then the thread does not pause between retries any more.
    _running: oneshot::Sender<()>,
}

/// What the thread of a target receives.
struct Input {
    records: mpsc::Receiver<Arc<Record>>,
    counters: Arc<ExportCounters>,
    /// Resolves when the [`Exporters`] are dropped, because the agent stops.
    stopped: oneshot::Receiver<()>,
}

impl Exporters {
    /// Starts a thread for each target. The thread opens a file or connects to a collector, and retries if this fails:
    /// the agent enforces policies with or without exports.
    ///
    /// # Errors
    /// If a thread cannot be started.
    pub fn start(targets: &[Target], node: &str) -> io::Result<(Self, ExportThreads)> {
        let (mut exporters, mut threads) = (Vec::new(), Vec::new());
        for target in targets {
            let (queue, records) = mpsc::channel(MAX_QUEUED_RECORDS);
            let (running, stopped) = oneshot::channel();
            let (ended, thread_end) = oneshot::channel();
            let counters = Arc::new(ExportCounters::default());
            let input = Input { records, counters: Arc::clone(&counters), stopped };
            let (own_target, node) = (target.clone(), node.to_owned());
            std::thread::Builder::new().name("flow-export".to_owned()).spawn(move || {
                match own_target {
                    Target::File(file) => file::run(file, input),
                    Target::Otlp(endpoint) => otlp::run(endpoint, &node, input),
                }
                // `ExportThreads` may have been dropped.
                let _ = ended.send(());
            })?;
            exporters.push(Exporter { target: target.name(), queue, counters, _running: running });
            threads.push(thread_end);
        }
        Ok((Self(exporters.into()), ExportThreads(threads)))
    }

    /// Adds a record to the queue of each target. Never waits: if a queue is full, the record counts as dropped.
    pub fn push(&self, record: &Arc<Record>) {
        for exporter in &*self.0 {
            if exporter.queue.try_send(Arc::clone(record)).is_err() {
                exporter.counters.count_dropped(DropReason::QueueFull, 1);
            }
        }
    }

    /// Returns whether there are no targets. In this case, no records are needed.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the counters of each target, with its name.
    pub fn counters(&self) -> impl Iterator<Item = (&str, &ExportCounters)> {
        self.0.iter().map(|exporter| (&*exporter.target, &*exporter.counters))
    }
}

/// Waits for the threads to end. Each receiver resolves when a thread ends.
#[derive(Debug, Default)]
pub struct ExportThreads(Vec<oneshot::Receiver<()>>);

impl ExportThreads {
    /// Waits until the queued records are exported, for at most [`FINISH_TIMEOUT`]. Drop the [`Exporters`] first.
    pub async fn finish(self) {
        let all = async {
            for thread_end in self.0 {
                // An error also means that the thread has ended.
                let _ = thread_end.await;
            }
        };
        let _ = timeout(FINISH_TIMEOUT, all).await;
    }
}

/// Returns a record as one line of JSON without a line feed. Characters that are not visible are escaped.
fn json(record: &impl serde::Serialize) -> serde_json::Result<String> {
    Ok(netpol_policy::text::json(&serde_json::to_string(record)?).into_owned())
}
