//! The BPF toolchain: found, or installed.

use anyhow::{Result, bail};

use crate::run;

/// Makes sure that BPF objects can be built; does nothing when they can.
pub(crate) fn setup() -> Result<()> {
    if run::find("bpf-linker").is_none() {
        bail!("bpf-linker is not installed: run `cargo install bpf-linker --version 0.10.3 --locked`");
    }
    Ok(())
}
