//! Forwards log messages of programs that were built with `cargo xtask ebpf --log`. These messages report states that
//! should never occur.

use aya::Ebpf;
use aya_log::{EbpfLogger, Error};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Starts a tokio task that forwards log messages of the programs. Does nothing if they were built without `--log`.
pub(super) fn forward(ebpf: &mut Ebpf) {
    let logger = match EbpfLogger::init(ebpf) {
        Ok(logger) => logger,
        Err(Error::MapNotFound) => return,
        Err(error) => {
            tracing::warn!(%error, "cannot read log messages of the BPF programs; build them without --log");
            return;
        }
    };
    // SAFETY: the logger owns its descriptor, and keeps it open as long as it lives.
    let registered = unsafe { AsyncFd::register_with_interest(logger, Interest::READABLE) };
    let mut logger = match registered {
        Ok(logger) => logger,
        Err(error) => {
            tracing::warn!(%error, "cannot wait for log messages of the BPF programs; build them without --log");
            return;
        }
    };
    tracing::info!("BPF programs were built with --log: unexpected states are logged");
    tokio::spawn(async move {
        while let Ok(mut guard) = logger.readable_mut().await {
            guard.get_inner_mut().flush();
            guard.clear_ready();
        }
    });
}
