//! An agent that finds who it is, and where the API server is, as a process in a pod does.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use crate::netns::Netns;

/// Where kubelet mounts a pod's service account.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// Mounts the credentials (`$0`) there, in a mount namespace of its own, and becomes the command.
const MOUNT: &str = r#"mount -t tmpfs none /run && mkdir -p "$ACCOUNT" && mount --bind "$0" "$ACCOUNT" && exec "$@""#;

/// A command as which `binary` runs in a pod with these credentials. No home, so no kubeconfig of somebody else.
pub(super) fn command(netns: &Netns, binary: &Path, credentials: &Path, server: SocketAddr) -> Command {
    let mut command = netns.command("unshare");
    command.args(["--mount", "sh", "-c", MOUNT]).arg(credentials).arg(binary);
    command.env("ACCOUNT", SERVICE_ACCOUNT);
    command.env("KUBERNETES_SERVICE_HOST", server.ip().to_string());
    command.env("KUBERNETES_SERVICE_PORT", server.port().to_string());
    command.env_remove("KUBECONFIG").env_remove("HOME");
    command
}
