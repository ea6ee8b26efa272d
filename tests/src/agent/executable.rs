//! The executables under test.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

/// The agent: `NETPOL_AGENT`, else the one Cargo put beside this executable.
///
/// # Errors
/// Where there is none, with the line that builds it.
pub fn agent() -> Result<PathBuf> {
    let path = if let Some(path) = std::env::var_os("NETPOL_AGENT") {
        PathBuf::from(path)
    } else {
        let own = std::env::current_exe().context("finding this executable")?;
        let directory = own.parent().context("this executable is in a directory")?;
        let directory = if directory.ends_with("deps") { directory.parent().unwrap_or(directory) } else { directory };
        directory.join("netpol-agent")
    };
    ensure!(
        path.is_file(),
        "there is no agent at {}: build it with `cargo xtask ebpf && cargo build -p netpol-agent`, or name one in NETPOL_AGENT",
        path.display()
    );
    Ok(path)
}

/// `netpol`, beside the agent.
///
/// # Errors
/// Where there is none, with the line that builds it.
pub fn netpol() -> Result<PathBuf> {
    let path = agent()?.with_file_name("netpol");
    ensure!(path.is_file(), "there is no netpol at {}: build it with `cargo build -p netpol-cli`", path.display());
    Ok(path)
}
