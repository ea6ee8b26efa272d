//! Sends requests to agents: to the agent of this node by a Unix socket, or to all agents of a cluster by the API
//! server.
//!
//! ```text
//! kubeconfig ─► list pods of the DaemonSet ─► pods/exec `netpol-agent connect` ─► the agent's socket
//!                                             one for each node, in parallel      HTTP/1.1
//! ```
//!
//! No port is opened on a node, and the user needs only the permissions to list the agents' pods and to run a command
//! in them (deploy/components/viewer).

mod connect;
mod fleet;
mod http;
mod kubernetes;

pub(crate) use fleet::{AGENT_LABEL, Answer, Failure, Fleet, progress};
pub(crate) use http::Lines;
pub(crate) use kubernetes::{Kube, explain_error, within};

/// The hint in messages if the user has no right to list the agents' pods or to run commands in them.
const VIEWER: &str = "; an administrator can grant it with deploy/components/viewer";

/// Creates the tokio runtime of a command.
pub(crate) fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    anyhow::Context::context(
        tokio::runtime::Builder::new_current_thread().enable_all().build(),
        "cannot start the runtime",
    )
}
