//! Runs an agent with in-cluster configuration: API server address and credentials as in a pod.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use crate::netns::Netns;

/// The path at which kubelet mounts a pod's service account.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// Script that bind-mounts the directory of credentials (`$0`) at [`SERVICE_ACCOUNT`] and then executes the command.
/// The script runs in a private mount namespace.
const MOUNT: &str = r#"mount -t tmpfs none /run && mkdir -p "$ACCOUNT" && mount --bind "$0" "$ACCOUNT" && exec "$@""#;

/// Returns a command that runs `binary` as in a pod with these credentials. KUBECONFIG and HOME are unset, so
/// that no kubeconfig is used.
pub(super) fn command(netns: &Netns, binary: &Path, credentials: &Path, server: SocketAddr) -> Command {
    let mut command = netns.command("unshare");
    command.args(["--mount", "sh", "-c", MOUNT]).arg(credentials).arg(binary);
    command.env("ACCOUNT", SERVICE_ACCOUNT);
    command.env("KUBERNETES_SERVICE_HOST", server.ip().to_string());
    command.env("KUBERNETES_SERVICE_PORT", server.port().to_string());
    command.env_remove("KUBECONFIG").env_remove("HOME");
    command
}
