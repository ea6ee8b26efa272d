//! Lines to standard output, from a thread of their own: a reader who stops must not stop enforcement.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};

use serde::Serialize;

/// Lines that wait for their reader, at most.
const QUEUE: usize = 4096;

/// Where lines go.
#[derive(Debug)]
pub struct Lines {
    sender: SyncSender<Vec<u8>>,
    lost: Arc<AtomicU64>,
}

impl Lines {
    /// Writes to `out` from a thread. When writing fails the thread ends, and all later lines count as lost.
    pub fn to(mut out: impl Write + Send + 'static) -> Self {
        let (sender, receiver) = sync_channel::<Vec<u8>>(QUEUE);
        std::thread::spawn(move || {
            while let Ok(line) = receiver.recv() {
                if out.write_all(&line).and_then(|()| out.flush()).is_err() {
                    tracing::warn!("standard output is closed; denied packets are counted but not told");
                    return;
                }
            }
        });
        Self { sender, lost: Arc::default() }
    }

    pub(super) fn push(&self, line: &impl Serialize) {
        let written = serde_json::to_vec(line).map(|mut bytes| {
            bytes.push(b'\n');
            self.sender.try_send(bytes).is_ok()
        });
        if !matches!(written, Ok(true)) {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(super) fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }
}
