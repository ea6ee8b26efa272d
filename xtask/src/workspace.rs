//! Paths in the workspace.

use std::path::{Path, PathBuf};

/// Returns the checkout that this xtask was built from.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask is not in a folder")
}

/// Returns the workspace's target directory: build products, downloads and unpacked kernels. All of it can be
/// rebuilt.
pub(crate) fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), |dir| root().join(dir))
}

/// Returns the path of the BPF object. The module `ebpf` writes it, and the agent's build script embeds it.
pub(crate) fn bpf_object() -> PathBuf {
    target().join("bpf/netpol.o")
}
