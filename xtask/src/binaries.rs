//! `build`: the binaries for users.

use anyhow::Result;

use crate::{ebpf, run};

/// Builds the BPF object, then the agent with the object embedded, and the CLI.
pub(crate) fn build() -> Result<()> {
    ebpf::build()?;
    run::step(
        "building target/release/netpol and target/release/netpol-agent",
        &mut run::cargo(["build", "--release", "--package", "netpol-agent", "--package", "netpol-cli"]),
    )
}
