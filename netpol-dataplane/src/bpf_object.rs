//! The BPF object file: the compiled eBPF programs. It is built into the agent, or given with `--bpf-object`.

use std::path::{Path, PathBuf};

use thiserror::Error;

/// Why there is no BPF object file to load.
#[derive(Debug, Error)]
pub enum ObjectError {
    /// The agent was built without the BPF object.
    #[error(
        "this netpol-agent was built without its BPF programs; run `cargo xtask build` and start the agent that it builds"
    )]
    NotBuiltIn,
    /// The file of `--bpf-object` cannot be read.
    #[error("cannot read the BPF object {path}: {source}; check --bpf-object")]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
}

// `build.rs` sets `netpol_bpf_object` if the BPF object file exists.
#[cfg(netpol_bpf_object)]
static EMBEDDED: Option<&[u8]> = Some(aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/netpol.o")));
#[cfg(not(netpol_bpf_object))]
static EMBEDDED: Option<&[u8]> = None;

/// Returns the content of the BPF object file at `path`, or of the built-in one.
///
/// # Errors
/// If the file cannot be read, or none is built in.
pub fn load(path: Option<&Path>) -> Result<Vec<u8>, ObjectError> {
    match (path, EMBEDDED) {
        (Some(path), _) => std::fs::read(path).map_err(|source| ObjectError::Read { path: path.to_owned(), source }),
        (None, Some(bytes)) => Ok(bytes.to_vec()),
        (None, None) => Err(ObjectError::NotBuiltIn),
    }
}
