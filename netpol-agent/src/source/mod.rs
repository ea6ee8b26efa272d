//! Where objects come from. A source sends everything it knows once, as a reset, and then each change.

pub mod dir;
pub mod kube;
mod state;

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use std::time::Instant;

use netpol_files::Limits;
use netpol_policy::model::ObjectKey;
use netpol_policy::world::Event;
use thiserror::Error;
use tokio::sync::{mpsc, oneshot};

pub use state::{KindState, SourceState};

/// Counts what a source sent, batch by batch, from 1: whoever has enforced a revision has enforced all before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Revision(pub u64);

/// Events that came at one time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Its number.
    pub revision: Revision,
    /// What happened, in order.
    pub events: Vec<Event>,
    /// The source had lost sight: the events are what differs now, and nothing between before and now ever was.
    pub after_gap: bool,
    /// When the first of it reached the agent.
    pub received: Instant,
}

/// Asks a source what it knows, as of now rather than of when it last heard of it.
#[derive(Debug)]
pub struct Inquiry {
    /// Of what.
    pub subject: Subject,
    /// Answered once everything that is so at the time of asking was sent. An error says why that cannot be known.
    pub answer: oneshot::Sender<Result<Known, String>>,
}

/// What is asked about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// One object.
    Object(ObjectKey),
    /// All that there is; it always exists.
    Everything,
}

/// What is known of a subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// Whether there is such a thing.
    pub exists: bool,
    /// The batch that says so, or one after it.
    pub revision: Revision,
}

/// A source that runs.
#[derive(Debug)]
pub struct Feed {
    /// What it tells; first of all a reset, with everything there is.
    pub batches: mpsc::Receiver<Batch>,
    /// What it is asked.
    pub inquiries: mpsc::Sender<Inquiry>,
    /// How it is.
    pub state: SourceState,
}

/// A source that can be named on the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ObjectSource {
    /// `dir:PATH`: manifests in a directory tree, watched.
    Dir(PathBuf),
    /// `kube`: the API server of the cluster this runs in; `kube:PATH`: of this kubeconfig.
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
        /// What was tried.
        verb: &'static str,
        /// The directory.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// Who to be for the API server cannot be read.
    #[error(
        "cannot read the credentials for the API server: {reason}; run in a pod with a service account, or give a kubeconfig: \
         --source kube:PATH"
    )]
    Kube {
        /// Why not.
        reason: String,
    },
}

impl ObjectSource {
    /// Sends everything there is as the first batch, and goes on, in a task of its own. `limits` are for files.
    ///
    /// # Errors
    /// Where the source is not there at all. Objects that are not understood are told in the log instead.
    pub fn start(self, limits: Limits) -> Result<Feed, SourceError> {
        match self {
            Self::Dir(path) => dir::start(&path, limits),
            Self::Kube(kubeconfig) => kube::start(kubeconfig, kube::Options::default()),
        }
    }
}

impl ObjectSource {
    /// Makes further clients of the API server that objects come from; none where they come from elsewhere.
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
                "`{text}` is no source; write kube, kube:PATH of a kubeconfig, or dir:PATH, a directory of manifests"
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
