//! How to start an agent.

use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long an agent may take to enforce what it finds when it starts.
const START: Duration = Duration::from_secs(40);

/// How to start one.
#[derive(Clone, Debug)]
pub struct AgentOptions {
    pub(super) node: u8,
    pub(super) arguments: Vec<String>,
    pub(super) binary: Option<PathBuf>,
    pub(super) patience: Duration,
    pub(super) api_server: Option<netpol_apiserver::Options>,
    pub(super) in_cluster: bool,
}

impl Default for AgentOptions {
    fn default() -> Self {
        Self { node: 1, arguments: Vec::new(), binary: None, patience: START, api_server: None, in_cluster: false }
    }
}

impl AgentOptions {
    /// The node it is for; the first unless told.
    #[must_use]
    pub const fn node(mut self, node: u8) -> Self {
        self.node = node;
        self
    }

    /// Further arguments of `netpol-agent run`.
    #[must_use]
    pub fn arguments(mut self, arguments: &[&str]) -> Self {
        self.arguments.extend(arguments.iter().map(|&argument| argument.to_owned()));
        self
    }

    /// The executable, where it is not the one beside this test.
    #[must_use]
    pub fn binary(mut self, path: &Path) -> Self {
        self.binary = Some(path.to_owned());
        self
    }

    /// Lets it get its objects from such an API server in its node, which says what the cluster's manifests say.
    /// [`super::as_deployed`] is one; without this, [`super::SOURCE`] decides.
    #[must_use]
    pub fn api_server(mut self, options: netpol_apiserver::Options) -> Self {
        self.api_server = Some(options);
        self
    }

    /// Lets it find its API server and its credentials as in a pod: by environment and mounted service account. Only with
    /// [`Self::api_server`].
    #[must_use]
    pub const fn in_cluster(mut self) -> Self {
        self.in_cluster = true;
        self
    }

    /// How long it may take to get ready, where the machine is an emulated one.
    #[must_use]
    pub const fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }
}
