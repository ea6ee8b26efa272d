//! Where things are.

use std::path::{Path, PathBuf};

/// The checkout this xtask was built from.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask is a folder of the workspace")
}

/// The workspace's target directory: build products, downloads, unpacked kernels. Deleting it loses nothing but time.
pub(crate) fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), |dir| root().join(dir))
}

/// The BPF object: `ebpf` writes it, the agent's build script embeds it.
pub(crate) fn bpf_object() -> PathBuf {
    target().join("bpf/netpol.o")
}
