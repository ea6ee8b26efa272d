//! Paths of the executables under test.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

const DAEMON_SET: &str = include_str!("../../../deploy/base/daemonset.yaml");

/// Returns the agent's path: the value of `NETPOL_AGENT`, or else the executable that Cargo built next to this one.
///
/// # Errors
/// If the executable does not exist, returns an error that contains the command to build it.
pub fn agent() -> Result<PathBuf> {
    let path = if let Some(path) = std::env::var_os("NETPOL_AGENT") {
        PathBuf::from(path)
    } else {
        let this = std::env::current_exe().context("finding this executable")?;
        let directory = this.parent().context("this executable's path has no directory")?;
        let directory = if directory.ends_with("deps") { directory.parent().unwrap_or(directory) } else { directory };
        directory.join("netpol-agent")
    };
    ensure!(
        path.is_file(),
        "netpol-agent not found at {}: build it with `cargo xtask ebpf && cargo build -p netpol-agent`, or set NETPOL_AGENT to its path",
        path.display()
    );
    Ok(path)
}

/// Returns the path of `netpol`, next to the agent.
///
/// # Errors
/// If the executable does not exist, returns an error that contains the command to build it.
pub fn netpol() -> Result<PathBuf> {
    let path = agent()?.with_file_name("netpol");
    ensure!(path.is_file(), "netpol not found at {}: build it with `cargo build -p netpol-cli`", path.display());
    Ok(path)
}

/// Returns the path of the CNI plugin `netpol-cni`, next to the agent.
///
/// # Errors
/// If the executable does not exist, returns an error that contains the command to build it.
pub fn netpol_cni() -> Result<PathBuf> {
    let path = agent()?.with_file_name("netpol-cni");
    ensure!(path.is_file(), "netpol-cni not found at {}: build it with `cargo build -p netpol-cni`", path.display());
    Ok(path)
}

/// Creates a directory with a script that starts the agent with exactly the capabilities that the `DaemonSet` in
/// `deploy/` adds to the agent's container. Returns the path of the script.
///
/// The script limits the bounding set of capabilities. It has to do so, because a program that root executes gets all
/// capabilities of the bounding set: capabilities(7).
///
/// # Errors
/// Returns an error if the agent's executable does not exist, the `DaemonSet` adds no capabilities, or the script
/// cannot be written.
pub fn with_deployed_capabilities(directory: &Path) -> Result<PathBuf> {
    let line = DAEMON_SET.lines().find_map(|line| line.trim().strip_prefix("add: [")?.strip_suffix(']'));
    let added: Vec<_> =
        line.context("the DaemonSet adds no capabilities")?.split(", ").map(str::to_lowercase).collect();
    let set: String = added.iter().flat_map(|name| [",+", name]).collect();
    std::fs::create_dir_all(directory)?;
    let (script, agent) = (directory.join("agent"), agent()?);
    let text = format!("#!/bin/sh\nexec setpriv --inh-caps=-all --bounding-set=-all{set} {} \"$@\"\n", agent.display());
    std::fs::write(&script, text)?;
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755))?;
    Ok(script)
}
