//! The BPF object inside the agent.

use std::path::{Path, PathBuf};

use thiserror::Error;

/// Why there is no object to load.
#[derive(Debug, Error)]
pub enum ObjectError {
    /// The agent was built before the object.
    #[error("this netpol-agent was built without its BPF programs; run `cargo xtask build` and start the one it makes")]
    NotBuiltIn,
    /// The given file cannot be read.
    #[error("cannot read the BPF object {path}: {source}; see --bpf-object")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
}

#[cfg(netpol_bpf_object)]
static EMBEDDED: Option<&[u8]> = Some(aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/netpol.o")));
#[cfg(not(netpol_bpf_object))]
static EMBEDDED: Option<&[u8]> = None;

/// The object to load: that file, or the one built in.
///
/// # Errors
/// Where the file cannot be read, or none is built in.
pub fn object(path: Option<&Path>) -> Result<Vec<u8>, ObjectError> {
    match (path, EMBEDDED) {
        (Some(path), _) => std::fs::read(path).map_err(|source| ObjectError::Read { path: path.to_owned(), source }),
        (None, Some(bytes)) => Ok(bytes.to_vec()),
        (None, None) => Err(ObjectError::NotBuiltIn),
    }
}
