//! Options of an agent under test.

use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long an agent may take to become ready.
const START_TIMEOUT: Duration = Duration::from_secs(40);

/// Options of an agent.
#[derive(Clone, Debug)]
pub struct AgentOptions {
    pub(super) node: u8,
    pub(super) arguments: Vec<String>,
    pub(super) binary: Option<PathBuf>,
    pub(super) start_timeout: Duration,
    pub(super) api_server: Option<netpol_apiserver::Options>,
    pub(super) in_cluster: bool,
}

impl Default for AgentOptions {
    fn default() -> Self {
        Self {
            node: 1,
            arguments: Vec::new(),
            binary: None,
            start_timeout: START_TIMEOUT,
            api_server: None,
            in_cluster: false,
        }
    }
}

impl AgentOptions {
    /// Sets the number of the agent's node. The default is 1, the first node.
    #[must_use]
    pub const fn node(mut self, node: u8) -> Self {
        self.node = node;
        self
    }

    /// Adds arguments of `netpol-agent run`.
    #[must_use]
    pub fn arguments(mut self, arguments: &[&str]) -> Self {
        self.arguments.extend(arguments.iter().map(|&argument| argument.to_owned()));
        self
    }

    /// Sets the executable. The default is the agent next to this test's executable.
    #[must_use]
    pub fn binary(mut self, path: &Path) -> Self {
        self.binary = Some(path.to_owned());
        self
    }

    /// Makes the agent read the cluster's objects from a fake API server, which runs with these options on the agent's
    /// node. [`super::options_with_deployed_role`] returns options for a server that grants the agent only the
    /// permissions of its role in `deploy/`. Without this setting, the environment variable [`super::SOURCE`] selects
    /// what the agent reads.
    #[must_use]
    pub fn api_server(mut self, options: netpol_apiserver::Options) -> Self {
        self.api_server = Some(options);
        self
    }

    /// Uses in-cluster configuration: the agent reads the address of the API server from the environment, and its
    /// credentials from a mounted service account. Requires [`Self::api_server`].
    #[must_use]
    pub const fn in_cluster(mut self) -> Self {
        self.in_cluster = true;
        self
    }

    /// Sets how long the agent may take to become ready. In virtual machines, the agent needs more time.
    #[must_use]
    pub const fn start_timeout(mut self, start_timeout: Duration) -> Self {
        self.start_timeout = start_timeout;
        self
    }
}
