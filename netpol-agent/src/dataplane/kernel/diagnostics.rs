//! What programs say that were built with `cargo xtask ebpf --log`: things that should never happen.

use aya::Ebpf;
use aya_log::{EbpfLogger, Error};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Passes on to the log what the programs say; needs a runtime then. The usual programs say nothing, and cost nothing here.
pub(super) fn pass_on(ebpf: &mut Ebpf) {
    let logger = match EbpfLogger::init(ebpf) {
        Ok(logger) => logger,
        Err(Error::MapNotFound) => return,
        Err(error) => {
            tracing::warn!(%error, "cannot read what the programs have to say; build them without --log");
            return;
        }
    };
    // SAFETY: the logger owns its descriptor, and keeps it as long as it lives.
    let registered = unsafe { AsyncFd::register_with_interest(logger, Interest::READABLE) };
    let mut logger = match registered {
        Ok(logger) => logger,
        Err(error) => {
            tracing::warn!(%error, "cannot wait for what the programs have to say; build them without --log");
            return;
        }
    };
    tracing::info!("the programs were built with --log: what should never happen is said here");
    tokio::spawn(async move {
        while let Ok(mut guard) = logger.readable_mut().await {
            guard.get_inner_mut().flush();
            guard.clear_ready();
        }
    });
}
