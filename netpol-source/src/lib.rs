//! Sources of API objects. A source first sends all objects as one [`Event::Reset`], and then sends each change.

pub mod dir;
pub mod kube;
mod state;

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use std::time::Instant;

use netpol_files::Limits;
use netpol_policy::cluster_state::Event;
use netpol_policy::model::ObjectKey;
use thiserror::Error;
use tokio::sync::{mpsc, oneshot};

pub use state::{KindState, SourceState};

/// The number of a batch, starting at 1. If a batch is enforced, all earlier batches are enforced, too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Generation(pub u64);

/// Events that arrived together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// The number of the batch.
    pub generation: Generation,
    /// The events, in order.
    pub events: Vec<Event>,
    /// Whether the source lost its watch and resynced. In this case, the events are the differences since the loss.
    /// They must be enforced together, because a state with only some of them never existed.
    pub after_resync: bool,
    /// When the first event of the batch arrived at the agent.
    pub received: Instant,
}

/// A query to a source for the current state of a subject, such as a policy. After the reply, the agent waits until
/// this state is enforced. The current state may be newer than the last event that the source sent.
#[derive(Debug)]
pub struct SourceQuery {
    /// The subject.
    pub subject: Subject,
    /// Receives the reply after all changes that existed at the time of the query were sent as batches. An error is the
    /// reason why the state is unknown.
    pub answer: oneshot::Sender<Result<SubjectState, String>>,
}

/// The subject of a query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// One object.
    Object(ObjectKey),
    /// All objects. This subject always exists.
    Everything,
}

/// The state of a subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SubjectState {
    /// Whether the subject exists.
    pub exists: bool,
    /// The number of the batch that includes this state, or of a later batch.
    pub generation: Generation,
}

/// A running source.
#[derive(Debug)]
pub struct Feed {
    /// The batches of the source. The first batch has one [`Event::Reset`] with all objects.
    pub batches: mpsc::Receiver<Batch>,
    /// Sends queries to the source.
    pub queries: mpsc::Sender<SourceQuery>,
    /// The state of the source, for readiness and metrics.
    pub state: SourceState,
}

/// A source as given on the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ObjectSource {
    /// `dir:PATH`: manifests in a directory tree, watched.
    Dir(PathBuf),
    /// `kube`: the API server of the cluster in which this process runs; `kube:PATH`: the API server in this
    /// kubeconfig.
    Kube(Option<PathBuf>),
}

/// Why a source cannot start.
#[derive(Debug, Error)]
pub enum SourceError {
    /// The directory cannot be listed or watched.
    #[error(
        "cannot {verb} the manifests' directory {path}: {source}; --source dir:PATH takes a directory that the agent can read"
    )]
    Dir {
        /// The operation that failed.
        verb: &'static str,
        /// The directory.
        path: PathBuf,
        /// The reason.
        #[source]
        source: std::io::Error,
    },
    /// The credentials for the API server cannot be read.
    #[error(
        "cannot read the credentials for the API server: {reason}; run in a pod with a service account, or give a kubeconfig: \
         --source kube:PATH"
    )]
    Kube {
        /// The reason.
        reason: String,
    },
}

impl ObjectSource {
    /// Starts the source in its own task. The first batch has all objects. `limits`: the maximum sizes of manifest
    /// files.
    ///
    /// # Errors
    /// If the directory cannot be listed or watched, or the credentials cannot be read. Invalid objects are only
    /// logged.
    pub fn start(self, limits: Limits) -> Result<Feed, SourceError> {
        match self {
            Self::Dir(path) => dir::start(&path, limits),
            Self::Kube(kubeconfig) => kube::start(kubeconfig, kube::Options::default()),
        }
    }
}

impl ObjectSource {
    /// Returns a function that creates further clients of the API server; `None` for a directory.
    pub fn api_client(&self) -> Option<impl Fn() -> Result<::kube::Client, String> + Send + 'static> {
        match self {
            Self::Kube(kubeconfig) => {
                let kubeconfig = kubeconfig.clone();
                Some(move || kube::client(kubeconfig.as_deref()))
            }
            Self::Dir(_) => None,
        }
    }
}

impl FromStr for ObjectSource {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            Some(("dir", path)) if !path.is_empty() => Ok(Self::Dir(path.into())),
            Some(("kube", path)) if !path.is_empty() => Ok(Self::Kube(Some(path.into()))),
            None if text == "kube" => Ok(Self::Kube(None)),
            _ => Err(format!(
                "invalid source `{text}`; use kube, kube:PATH (a kubeconfig), or dir:PATH (a directory of manifests)"
            )),
        }
    }
}

impl fmt::Display for ObjectSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dir(path) => write!(f, "dir:{}", path.display()),
            Self::Kube(None) => f.write_str("kube"),
            Self::Kube(Some(path)) => write!(f, "kube:{}", path.display()),
        }
    }
}
