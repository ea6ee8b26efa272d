//! Paths of the executables under test.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

/// Returns the agent's path: the value of `NETPOL_AGENT`, or else the executable that Cargo built next to this one.
///
/// # Errors
/// Returns an error with the command that builds it if it does not exist.
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
/// Returns an error with the command that builds it if it does not exist.
pub fn netpol() -> Result<PathBuf> {
    let path = agent()?.with_file_name("netpol");
    ensure!(path.is_file(), "netpol not found at {}: build it with `cargo build -p netpol-cli`", path.display());
    Ok(path)
}

/// Returns the path of the CNI plugin `netpol-cni`, next to the agent.
///
/// # Errors
/// Returns an error with the command that builds it if it does not exist.
pub fn netpol_cni() -> Result<PathBuf> {
    let path = agent()?.with_file_name("netpol-cni");
    ensure!(path.is_file(), "netpol-cni not found at {}: build it with `cargo build -p netpol-cni`", path.display());
    Ok(path)
}
