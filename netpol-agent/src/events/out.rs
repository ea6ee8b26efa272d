//! Lines to standard output, from a thread of their own: a reader who stops must not stop enforcement.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};

use netpol_policy::text;
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
    /// Writes to `out` from a thread. When writing fails, that line and all later ones count as lost.
    pub fn to(mut out: impl Write + Send + 'static) -> Self {
        let (sender, receiver) = sync_channel::<Vec<u8>>(QUEUE);
        let lost = Arc::new(AtomicU64::new(0));
        let unwritten = Arc::clone(&lost);
        std::thread::spawn(move || {
            while let Ok(line) = receiver.recv() {
                if let Err(error) = out.write_all(&line).and_then(|()| out.flush()) {
                    tracing::warn!(%error, "cannot write to standard output; denied packets are counted but not told");
                    unwritten.fetch_add(1, Ordering::Relaxed);
                    break;
                }
            }
            while receiver.recv().is_ok() {
                unwritten.fetch_add(1, Ordering::Relaxed);
            }
        });
        Self { sender, lost }
    }

    pub(super) fn push(&self, line: &impl Serialize) {
        let written = serde_json::to_string(line).map(|line| {
            let mut bytes = text::json(&line).into_owned().into_bytes();
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

#[cfg(test)]
mod tests {
    use std::io;
    use std::time::{Duration, Instant};

    use super::*;

    /// A pipe whose reader goes away after one line.
    struct Closing(u32);

    impl Write for Closing {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 += 1;
            if self.0 > 1 { Err(io::ErrorKind::BrokenPipe.into()) } else { Ok(bytes.len()) }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn every_line_that_is_not_written_is_counted() {
        let lines = Lines::to(Closing(0));
        for _ in 0..100 {
            lines.push(&"a line");
        }
        let begun = Instant::now();
        while lines.lost() < 99 && begun.elapsed() < Duration::from_secs(10) {
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(lines.lost(), 99);
    }

    /// A reader that has stopped.
    struct Stuck;

    impl Write for Stuck {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            loop {
                std::thread::park();
            }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_who_stops_stops_nobody() {
        let lines = Lines::to(Stuck);
        for _ in 0..QUEUE + 101 {
            lines.push(&"a line");
        }
        // The thread holds one, or has not taken it yet.
        assert!((100..=101).contains(&lines.lost()), "{}", lines.lost());
    }
}
