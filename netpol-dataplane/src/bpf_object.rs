//! The BPF object file built into the agent.

use std::path::{Path, PathBuf};

use thiserror::Error;

/// Why there is no BPF object to load.
#[derive(Debug, Error)]
pub enum ObjectError {
    /// The agent was built without the BPF object.
    #[error(
        "this netpol-agent was built without its BPF programs; run `cargo xtask build` and start the agent that it builds"
    )]
    NotBuiltIn,
    /// The given file cannot be read.
    #[error("cannot read the BPF object {path}: {source}; check --bpf-object")]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
}

#[cfg(netpol_bpf_object)]
static EMBEDDED: Option<&[u8]> = Some(aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/netpol.o")));
#[cfg(not(netpol_bpf_object))]
static EMBEDDED: Option<&[u8]> = None;

/// Returns the BPF object: the given file, or the built-in object.
///
/// # Errors
/// If the file cannot be read, or there is no built-in object.
pub fn load(path: Option<&Path>) -> Result<Vec<u8>, ObjectError> {
    match (path, EMBEDDED) {
        (Some(path), _) => std::fs::read(path).map_err(|source| ObjectError::Read { path: path.to_owned(), source }),
        (None, Some(bytes)) => Ok(bytes.to_vec()),
        (None, None) => Err(ObjectError::NotBuiltIn),
    }
}
