//! Where objects come from. A source sends everything it knows once, as a reset, and then each change.

pub mod dir;

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use netpol_policy::world::Event;
use thiserror::Error;
use tokio::sync::mpsc;

/// One step of a source: events that belong together.
pub type Batch = Vec<Event>;

/// A source that can be named on the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ObjectSource {
    /// `dir:PATH`: manifests in a directory tree, watched.
    Dir(PathBuf),
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
}

impl ObjectSource {
    /// Reads everything there is, sends it as the first batch, and goes on in a task of its own.
    ///
    /// # Errors
    /// Where the source is not there at all. Objects that are not understood are told in the log instead.
    pub fn start(self) -> Result<mpsc::Receiver<Batch>, SourceError> {
        match self {
            Self::Dir(path) => dir::start(&path),
        }
    }
}

impl FromStr for ObjectSource {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            Some(("dir", path)) if !path.is_empty() => Ok(Self::Dir(path.into())),
            _ => Err(format!("`{text}` is no source; write dir:PATH, a directory of manifests")),
        }
    }
}

impl fmt::Display for ObjectSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dir(path) => write!(f, "dir:{}", path.display()),
        }
    }
}
